"""Mixtures of experts under SFT and GRPO: loads and entropies are those of the routers, counted once, and nothing stays behind."""

from __future__ import annotations

from collections import deque

import build_models
import numpy as np
import pytest
import torch

from trainvitals.integrations import moe, tiny

pytestmark = pytest.mark.trl

STEPS = 4
CALM = {"max_steps": STEPS, "warmup_steps": 2, "learning_rate": 1e-4}


def mixture(kind="qwen3_moe"):
    """Hardly pretrained: what is counted does not depend on it."""
    return build_models.mixture(tiny.tokenizer(), kind, steps=10)


@pytest.fixture
def calls(monkeypatch):
    """Tokens of every router call that was counted."""
    counted: list[int] = []
    original = moe.router_counts

    def counting(logits, picks, weight, experts, top_k):
        row = original(logits, picks, weight, experts, top_k)
        counted.append(int(row[-2]))
        return row

    monkeypatch.setattr(moe, "router_counts", counting)
    return counted


def ours(model):
    """Hooks of the family that are still on a model (transformers 5 keeps some of its own)."""
    hooks = [
        hook for module in model.modules() for kept in (module._forward_hooks, module._forward_pre_hooks) for hook in kept.values()
    ]
    return [hook for hook in hooks if getattr(hook, "__module__", "") == moe.__name__]


def first_batch(trainer):
    """What the first batch gives by hand, found when training asks for its loss; a pass without gradients is not counted."""
    found = {}
    original = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        if not found:
            assert len(ours(trainer.model)) == 4  # two routers, before and after the layers
            found["tokens"] = int(inputs["attention_mask"].sum())
            found["loads"], found["entropy"] = by_hand(trainer.model, inputs)
        return original(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    return found


def by_hand(model, inputs, top_k=2):
    """Loads per layer and mean entropy, from the router logits that the model itself returns."""
    mask = inputs["attention_mask"].reshape(-1).bool()
    with torch.no_grad():
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_router_logits=True)
    loads, entropies = [], []
    for logits in output.router_logits:
        logits = logits.reshape(-1, logits.shape[-1])[mask]
        chosen = torch.zeros_like(logits).scatter_(1, logits.topk(top_k, dim=-1).indices, 1.0)
        loads.append(chosen.mean(0))
        entropies.append(float(torch.distributions.Categorical(logits=logits).entropy().mean()))
    return torch.stack(loads), sum(entropies) / len(entropies)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_the_loads_are_those_of_the_routers(tmp_path, train, saw, kind, calls):
    trainer = build_models.sft(str(tmp_path), model=mixture(kind), **CALM)
    found = first_batch(trainer)
    seen = train(trainer)
    assert seen.notices == []
    if kind == "qwen3_moe":
        saw("sft-moe", seen)
    loads = found["loads"]
    first = {
        name: seen.series(f"moe.{name}")[1]
        for name in ("max_load_fraction", "min_load_fraction", "router_entropy", "load_imbalance")
    }
    assert first == pytest.approx(
        {
            "max_load_fraction": float(loads.max()),
            "min_load_fraction": float(loads.min()),
            "router_entropy": found["entropy"],
            "load_imbalance": float(((loads.max(1).values - 0.5) / 0.5).mean()),
        },
        rel=1e-4,
    )
    assert seen.series("moe.fair_load_fraction") == {1: 0.5}
    assert seen.series("moe.aux_loss") == pytest.approx(seen.logged("aux_loss"))
    assert calls[:2] == [found["tokens"]] * 2
    assert len(calls) == 2 * STEPS
    assert ours(trainer.model) == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_layer_counts_once(tmp_path, train, calls, reentrant):
    trainer = build_models.sft(
        str(tmp_path), model=mixture(), gradient_accumulation_steps=2, per_device_train_batch_size=4,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant}, **{**CALM, "max_steps": 2},
    )  # fmt: skip
    seen = train(trainer)
    assert seen.notices == []
    assert len(calls) == 2 * 2 * 2  # layers, micro-batches, steps
    assert set(seen.series("moe.max_load_fraction")) == {1, 2}


def test_grpo_counts_what_it_trains_on(tmp_path, train, saw, calls):
    seen = train(build_models.grpo(str(tmp_path), model=mixture(), **CALM))
    assert seen.notices == []
    saw("grpo-moe", seen)
    assert len(calls) == 2 * STEPS  # not the forward passes of generation
    assert 0.5 <= seen.series("moe.max_load_fraction")[STEPS] < 0.8
    aux = seen.logged("aux_loss")  # since TRL 1.7
    assert seen.series("moe.aux_loss") == pytest.approx(aux)


def test_adapters_on_a_mixture(tmp_path, train):
    lora = build_models.lora(target_modules=["q_proj", "v_proj"])
    seen = train(build_models.sft(str(tmp_path), model=mixture(), peft=lora, **CALM))
    assert seen.notices == []
    assert {"moe.load_imbalance", "adapter.b_norm"} <= set(seen.signals)


def test_training_survives_a_router_that_cannot_be_read(tmp_path, train, monkeypatch):
    def broken(*args):
        raise LookupError("no such router")

    monkeypatch.setattr(moe, "read_output", broken)
    trainer = build_models.sft(str(tmp_path), model=mixture(), **CALM)
    seen = train(trainer)
    assert trainer.state.global_step == STEPS
    assert len(seen.notices) == 1
    assert "LookupError: no such router. Training goes on." in seen.notices[0]
    assert ours(trainer.model) == []


class Block(torch.nn.Module):
    """A mixture as small as can be: a linear gate and four linear experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts, self.top_k = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4)), 2

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        return sum(weights[..., index : index + 1] * expert(x) for index, expert in enumerate(self.experts))


class Small(torch.nn.Module):
    """Two such blocks."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x, attention_mask=None):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("compiles", [False, True])
def test_a_compiled_model_is_left_alone(calls, compiles):
    model = Small()
    hooks = Stub(model)
    moe.install(hooks)
    hooks.before((), {})
    torch._dynamo.reset()
    forward = (
        torch.compile(model, backend="eager", fullgraph=True) if compiles else model
    )  # fullgraph: a hook that breaks the graph is an error
    forward(torch.randn(2, 3, 8), attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]])).sum().backward()
    hooks.after(None, (), {}, 0.0)
    hooks.at_step_end[0]()
    assert calls == ([] if compiles else [5, 5])
    assert ours(model) == []


class Stub:
    """The part of `Hooks` that the family uses."""

    def __init__(self, model):
        self.trainer, self.at_step_end, self.given = type("Trainer", (), {"model": model})(), [], []

    def wrap(self, owner, name, after=None, *, before=None, gives=()):
        self.after, self.before = after, before
        return True

    def give(self, name, value):
        self.given.append((name, value))

    def put(self, tensors, compute):
        self.given += list(compute(list(tensors)).items())


def test_a_dense_model_has_no_routers():
    assert moe.routers_of(tiny.model(tiny.tokenizer())) == []


def test_capacity_drops_tokens():
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    torch.manual_seed(0)
    config = SwitchTransformersConfig(d_model=16, d_ff=16, num_experts=4, expert_capacity=3, router_jitter_noise=0.0)
    model = torch.nn.Module()
    model.layers, model.config = torch.nn.ModuleList([SwitchTransformersSparseMLP(config)]), config
    (router,) = moe.routers_of(model)
    assert (router.experts, router.top_k, router.path) == (4, 1, "layers.0.router")
    output = router.module(torch.randn(2, 16, 16))
    logits, picks = moe.read_output(output, 4, 1)
    row = moe.router_counts(logits, picks, None, 4, 1).double().numpy()
    values = moe.load_signals([row], [1], [deque()])
    assert values["moe.dropped_token_fraction"] == pytest.approx(1.0 - float(output[0].sum()) / 32)
    assert values["moe.dropped_token_fraction"] > 0.2


LOGITS, PICKS = torch.zeros(6, 8), torch.zeros(6, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("output", "logits", "picks"),
    [
        (LOGITS, LOGITS, None),  # a linear gate (4.57)
        ((LOGITS, torch.zeros(6, 2), PICKS), LOGITS, PICKS),  # routers of transformers 5
        ((torch.ones(6, 8), PICKS), None, PICKS),  # GPT-OSS of 4.57: scores, not logits
        ((PICKS, torch.zeros(6, 2)), None, PICKS),  # DeepSeek-V3 of 4.57
        ((torch.ones(6, 8), LOGITS), LOGITS, None),  # Llama 4
    ],
)
def test_what_routers_return(output, logits, picks):
    found = moe.read_output(output, 8, 2)
    assert found[0] is logits
    assert found[1] is picks


def test_an_output_without_either_is_an_error():
    with pytest.raises(LookupError):
        moe.read_output(torch.zeros(6, 16), 8, 2)


def test_loads_of_a_step():
    even, one = np.array([50.0] * 4), np.array([100.0, 100.0, 0.0, 0.0])
    recent = [deque(maxlen=10), deque(maxlen=10)]
    values = moe.load_signals([np.array([*even, 0, 120, 100, np.nan]), np.array([*one, 0, 80, 100, np.nan])], [2, 2], recent)
    assert values == {
        "moe.router_entropy": 1.0, "moe.max_load_fraction": 1.0, "moe.min_load_fraction": 0.0, "moe.load_imbalance": 0.5,
        "moe.dead_expert_fraction": 0.25,
    }  # fmt: skip
    assert (
        moe.load_signals([np.array([10.0, 10, 0, 0, 0, 5, 10, np.nan])], [2], [deque(maxlen=10)])
        .keys()
        .isdisjoint({"moe.dead_expert_fraction"})
    )


def test_experts_of_other_ranks_are_not_judged():
    picks = torch.tensor([[0, 4], [1, -1]])  # the index behind the last, or -1, stands for an expert elsewhere
    row = moe.router_counts(torch.zeros(2, 4), picks, None, 4, 2).double().numpy()
    assert row[:5].tolist() == [1, 1, 0, 0, 2]
    assert set(moe.load_signals([row], [2], [deque()])) == {"moe.router_entropy"}
