"""The size of one optimizer step: right numbers, nothing where nothing can be known."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="integrations need the extra 'trl'")
pytest.importorskip("trl", reason="integrations need the extra 'trl'")

import transformers  # noqa: E402

from trainvitals.integrations import tiny  # noqa: E402
from trainvitals.integrations.later import Later  # noqa: E402
from trainvitals.integrations.trl import attach  # noqa: E402
from trainvitals.integrations.update_size import (  # noqa: E402
    NUMBERS,
    TENSORS,
    UpdateSize,
    lost_fraction,
    moved_in_place,
    moved_outside,
    places,
    sampled,
    stride,
    strided,
)


def test_a_known_step_has_its_known_ratio() -> None:
    model = torch.nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    size, later = UpdateSize(), Later()
    assert size.before(model) == {"optim.trainable_fraction": 1.0}
    with torch.no_grad():
        model.weight.add_(0.1)
    size.after(later)
    assert later.ready() == {"optim.update_ratio": pytest.approx(0.05)}
    size.after(later)  # no step without a `before`
    assert later.ready() == {}


def test_what_is_trained_is_told_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 1), torch.nn.Linear(9, 9))
    model[1].requires_grad_(False)
    size = UpdateSize()
    assert size.before(model) == {"optim.trainable_fraction": 0.1}
    assert size.before(model) == {}


def test_the_sample_is_bounded_and_leaves_out_what_does_not_train() -> None:
    layers = [torch.nn.Linear(300, 300) for _ in range(50)]
    for layer in layers[::2]:
        layer.weight.requires_grad_(False)
    views = [strided(p.detach()) for p in sampled(parameter for layer in layers for parameter in layer.parameters())]
    assert 0 < len(views) <= TENSORS
    assert all(len(view) <= NUMBERS for view in views)
    trained = {layer.weight.data_ptr() for layer in layers[1::2]}
    assert {view.data_ptr() for view in views} <= trained
    assert sampled([torch.nn.Parameter(torch.zeros(5))]) == []


def test_the_places_are_spread_and_keep_no_time_with_kinds_of_matrices_that_take_turns() -> None:
    for count in range(1, 4001):
        found = places(count)
        assert len(set(found)) == min(count, TENSORS)
        assert found == sorted(found)
        assert 0 <= found[0] <= found[-1] < count
        if count > TENSORS and count % 2 == 0:  # LoRA's A and B
            assert 2 <= sum(place % 2 for place in found) <= TENSORS - 2
        if count > TENSORS and count % 7 == 0:  # seven projections in a layer
            assert len({place % 7 for place in found}) >= 4


@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 16), (16, 4096), (128, 64), (11008, 4096), (300, 300), (4, 4), (151936, 896)])
def test_numbers_of_a_matrix_come_from_many_columns_and_all_over_it(shape: tuple[int, int]) -> None:
    rows, columns = shape
    taken = range(0, rows * columns, stride(rows * columns, columns))[:NUMBERS]
    assert min(NUMBERS, rows * columns) / 2 <= len(taken) <= NUMBERS
    assert taken[-1] >= 0.97 * (rows * columns - 1)
    assert len({place % columns for place in taken}) >= min(columns, len(taken)) * 0.9


def test_of_an_adapter_both_matrices_are_sampled(tmp_path: Any) -> None:
    import peft

    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({f"layer{i}": torch.nn.ModuleDict({name: torch.nn.Linear(32, 32) for name in "qkvo"}) for i in range(8)})
    model = peft.get_peft_model(layers, peft.LoraConfig(r=4, target_modules=list("qkvo")))
    names = {p.data_ptr(): name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == 64  # an even stride of 4 would take A sixteen times
    kinds = ["A" if "lora_A" in names[p.data_ptr()] else "B" for p in sampled(model.parameters())]
    assert 4 <= kinds.count("A") <= 12
    assert kinds.count("A") + kinds.count("B") == TENSORS


def test_weights_of_zero_have_no_relative_step() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.zeros_(model.weight)
    size, later = UpdateSize(), Later()
    size.before(model)
    size.after(later)
    assert later.ready() == {}


class Slowly(transformers.TrainerCallback):
    """Copies all weights around each step."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def _weights(self, model: Any) -> Any:
        return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters() if p.dim() >= 2])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before = self._weights(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.ratios.append(float((self._weights(model) - self.before).norm() / self.before.norm()))


def test_in_real_training_the_sample_agrees_with_all_weights(tmp_path: Any) -> None:
    slowly = Slowly()
    trainer = tiny.sft(str(tmp_path), max_steps=6, callbacks=[slowly], learning_rate=1e-3, lr_scheduler_type="constant")
    callback = attach(trainer, console=io.StringIO(), fail_soft=False)
    seen = []
    publish = callback._publish

    def note(item: Any) -> None:
        seen.append(getattr(item, "values", {}).get("optim.update_ratio"))
        publish(item)

    callback._publish = note
    trainer.train()
    assert [value for value in seen if value is not None] == pytest.approx(slowly.ratios, rel=0.1)


def rough(dtype: torch.dtype, step: float) -> tuple[dict[str, float], torch.nn.Module]:
    """One step of plain gradient descent on weights of 1, of which the first row has no gradient."""
    model = torch.nn.Linear(8, 4, bias=False).to(dtype)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.weight.grad = torch.full_like(model.weight, step)
    model.weight.grad[0] = 0
    model.weight.grad[1] = 0.5
    size, later = UpdateSize(), Later()
    size.before(model, optimizer)
    optimizer.step()
    size.after(later)
    return later.ready(), model


def test_of_the_numbers_with_a_gradient_those_that_stay_are_lost() -> None:
    # below 1 the numbers of bfloat16 lie 1/256 apart: less than half of that is rounded away
    assert rough(torch.bfloat16, 0.0019)[0]["optim.update_lost_fraction"] == pytest.approx(2 / 3)
    assert rough(torch.bfloat16, 0.0021)[0]["optim.update_lost_fraction"] == 0
    assert "optim.update_lost_fraction" not in rough(torch.float32, 1e-9)[0]


def test_an_optimizer_with_a_finer_copy_loses_nothing_and_says_nothing() -> None:
    model = torch.nn.Linear(8, 4, bias=False).bfloat16()
    model.weight.grad = torch.ones_like(model.weight)
    copies = torch.optim.SGD([model.weight.detach().float().requires_grad_()], lr=1.0)  # what DeepSpeed and apex hold
    other = type("SGD", (torch.optim.SGD,), {"__module__": "torchao.optim"})(model.parameters(), lr=1.0)
    for optimizer in (copies, other, None):
        size, later = UpdateSize(), Later()
        size.before(model, optimizer)
        size.after(later)
        assert set(later.ready()) == {"optim.update_ratio"}
    wrapped = type("AcceleratedOptimizer", (), {"optimizer": torch.optim.SGD(model.parameters(), lr=1.0)})()
    assert moved_in_place(wrapped) == {id(model.weight)}


def test_only_rough_matrices_can_lose_a_step() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False).bfloat16(), torch.nn.Linear(8, 4, bias=False))
    for layer in model:
        torch.nn.init.ones_(layer.weight)
        layer.weight.grad = torch.full_like(layer.weight, 0.5 if layer.weight.dtype == torch.bfloat16 else 1e-9)
    optimizer, size, later = torch.optim.SGD(model.parameters(), lr=1.0), UpdateSize(), Later()
    size.before(model, optimizer)
    optimizer.step()
    size.after(later)
    assert later.ready()["optim.update_lost_fraction"] == 0, "the step of the float32 matrix is below its last bit, and not asked about"


def test_without_any_gradient_nothing_is_lost() -> None:
    assert lost_fraction([torch.tensor(0), torch.tensor(0)]) == {}


def stepped(size: UpdateSize, model: torch.nn.Module, later: Later, optimizer: Any = None) -> dict[str, float]:
    """One update that moves every weight a little; what was said of what came before it."""
    size.before(model, optimizer, later)
    told = later.ready()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    size.after(later)
    later.ready()
    return told


def test_what_changes_between_two_updates_is_told_at_the_second() -> None:
    torch.manual_seed(0)
    model, size, later = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4)), UpdateSize(), Later()
    assert stepped(size, model, later) == {}, "before the first update nobody asks"
    assert stepped(size, model, later) == {"optim.moved_outside_ratio": 0}
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.dim() == 1]).norm()
    with torch.no_grad():
        changed = 0.25 * model[1].weight.norm()
        model[1].weight.mul_(1.25)  # a norm: four numbers of forty-four, and the vectors are asked by themselves
    assert stepped(size, model, later) == {"optim.moved_outside_ratio": pytest.approx(float(changed / before))}
    assert changed / before > 0.2
    assert stepped(size, model, later) == {"optim.moved_outside_ratio": 0}
    with torch.no_grad():
        model[0].weight[1, 2] = math.nan
    assert math.isnan(stepped(size, model, later)["optim.moved_outside_ratio"])


def test_another_training_and_a_layer_wise_optimizer_are_not_asked() -> None:
    model, size, later = torch.nn.Linear(8, 4), UpdateSize(), Later()
    stepped(size, model, later)
    with torch.no_grad():
        model.weight.mul_(2)
    size.begin()
    assert stepped(size, model, later) == {}
    dummy = type("LayerWiseDummyOptimizer", (), {})()
    assert stepped(size, model, later, dummy) == {}
    assert moved_outside([torch.tensor(0.0), torch.tensor(0.0)]) == {}, "weights of zero have no size"
    assert moved_outside([torch.tensor(x) for x in (1.0, 4.0, 1.0, 2.0)]) == {"optim.moved_outside_ratio": 0.5}


def test_a_checkpoint_remembers_a_few_numbers_of_the_weights() -> None:
    torch.manual_seed(0)
    model, size, later = torch.nn.Linear(8, 4), UpdateSize(), Later()
    assert size.mark() == []
    stepped(size, model, later)
    mark = size.mark()
    assert len(mark) == 12  # eight of the matrix, four of the bias
    for change, share in ((0.0, 0.0), (0.5, 1.0)):
        resumed, other = UpdateSize(), torch.nn.Linear(8, 4)
        other.load_state_dict({name: p.bfloat16().float() + change for name, p in model.state_dict().items()})
        resumed.expect(mark)
        assert resumed.before(other)["optim.resumed_differing_fraction"] == share
        assert "optim.resumed_differing_fraction" not in resumed.before(other)
    resumed.expect(mark[:-1])
    assert resumed.before(other) == {}, "something else is trained"
