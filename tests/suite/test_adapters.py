"""LoRA and QLoRA under SFT, GRPO and DPO: the norms and ranks are those of the weights, and idle adapters show."""

from __future__ import annotations

import math

import build_models
import numpy as np
import peft
import pytest
import torch

from trainvitals.integrations import adapters, tiny

pytestmark = pytest.mark.trl

STEPS = 11  # readings of the rank at update 1 and 11
CALM = {"max_steps": STEPS, "warmup_steps": 2, "learning_rate": 1e-3}


def weights(model):
    """``(A, B, scale, W)`` of every LoRA linear layer, by PEFT's own names."""
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            yield (
                module.lora_A["default"].weight,
                module.lora_B["default"].weight,
                module.scaling["default"],
                module.get_base_layer().weight,
            )


def svd_reading(model, count=16):
    """Mean effective rank and mean relative size by a full singular value decomposition of each B@A."""
    found = list(weights(model))
    ranks, ratios = [], []
    for index in range(min(count, len(found))):
        a, b, scale, base = found[index * len(found) // count] if len(found) > count else found[index]
        delta = (b.double() @ a.double()).detach()
        singular = torch.linalg.svdvals(delta)
        share = singular[singular > 0] / singular.sum()
        ranks.append(float(torch.exp(-(share * share.log()).sum())))
        ratios.append(float(scale * delta.norm() / base.double().norm()))
    return sum(ranks) / len(ranks), sum(ratios) / len(ratios)


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_the_numbers_are_those_of_the_weights(tmp_path, train, saw, name):
    seen = train(getattr(build_models, name)(str(tmp_path), peft=build_models.lora(), **CALM))
    assert seen.notices == []
    saw(f"{name}-lora", seen)
    model = seen.trainer.model
    norms = [float(b.detach().norm()) for _, b, _, _ in weights(model)]
    assert seen.series("adapter.b_norm")[STEPS] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    rank, ratio = svd_reading(model)
    assert seen.series("adapter.effective_rank")[STEPS] == pytest.approx(rank, rel=1e-2)
    assert seen.series("adapter.delta_ratio")[STEPS] == pytest.approx(ratio, rel=1e-3)
    still = seen.series("adapter.still_fraction")
    assert still[1] == 1.0
    assert still[STEPS] == 0.0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert seen.series("adapter.trainable_fraction") == {1: pytest.approx(trainable / sum(p.numel() for p in model.parameters()))}
    assert set(seen.series("optim.trainable_with_grad").values()) == {1.0}


def test_an_adapter_loaded_for_inference_is_still(tmp_path, train):
    adapted = peft.get_peft_model(tiny.policy(tiny.tokenizer()), build_models.lora(init_lora_weights=False))  # B is not zero
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny.policy(tiny.tokenizer()), tmp_path / "adapter")  # is_trainable is False by default
    seen = train(build_models.sft(str(tmp_path), model=loaded, gradient_checkpointing=True, **{**CALM, "max_steps": 3}))
    assert seen.series("adapter.trainable_fraction") == {1: 0.0}
    assert set(seen.series("adapter.still_fraction").values()) == {1.0}
    assert seen.series("adapter.b_norm")[3] > 0
    assert set(seen.series("optim.grad_norm_step").values()) == {0.0}


def test_checkpointing_without_input_gradients_starves_the_adapter(tmp_path, train):
    lora = build_models.lora(target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    trainer = build_models.sft(
        str(tmp_path),
        peft=lora,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        **{**CALM, "max_steps": 3},
    )
    trainer.model.disable_input_require_grads()
    seen = train(trainer)
    if seen.series("optim.trainable_with_grad")[3] == 1.0:
        pytest.skip("this transformers passes gradients through checkpoints without it")
    assert seen.series("optim.trainable_with_grad")[3] < 0.2  # the head alone
    assert set(seen.series("adapter.still_fraction").values()) == {1.0}


@pytest.mark.skipif(not build_models.HAS_BITSANDBYTES, reason="needs bitsandbytes")
def test_four_bit_weights_are_not_measured(tmp_path, train, saw):
    model = build_models.quantised(tiny.tokenizer(), tmp_path / "base")
    seen = train(build_models.sft(str(tmp_path), model=model, peft=build_models.lora(), **CALM))
    assert seen.notices == []
    saw("sft-qlora", seen)
    assert not any(math.isnan(value) for frame in seen.frames for value in frame.values.values())
    assert "adapter.delta_ratio" not in seen.signals
    assert "adapter.delta_ratio" not in seen.start.emits
    norms = [
        float(m.lora_B["default"].weight.detach().float().norm()) for m in seen.trainer.model.modules() if hasattr(m, "lora_B")
    ]
    assert seen.trainer.model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.dtype == torch.bfloat16
    assert seen.series("adapter.b_norm")[STEPS] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    packed = sum(p.numel() for p in seen.trainer.model.parameters())
    trainable = sum(p.numel() for p in seen.trainer.model.parameters() if p.requires_grad)
    assert seen.series("adapter.trainable_fraction")[1] < 0.9 * trainable / packed  # two weights to a byte
    assert [finding.rule.id for finding in seen.callback.monitor.findings if finding.severity != "info"] == []


def test_a_model_without_adapters_promises_none(tmp_path, train):
    seen = train(build_models.sft(str(tmp_path), **{**CALM, "max_steps": 2}))
    assert not any(name.startswith(("adapter.", "moe.")) for name in [*seen.signals, *(seen.start.emits - {"moe.aux_loss"})])


@pytest.mark.parametrize(("dtype", "measured"), [(torch.bfloat16, True), (torch.int32, False), (torch.float8_e4m3fn, False)])
def test_packed_weights_have_no_norm(dtype, measured):
    model = torch.nn.Module()
    model.lora_A, model.lora_B = (
        torch.nn.ModuleDict({"x": torch.nn.Linear(8, 2)}),
        torch.nn.ModuleDict({"x": torch.nn.Linear(2, 8)}),
    )
    model.weight = torch.nn.Parameter(torch.zeros(8, 8).to(dtype), requires_grad=False)
    (found,) = adapters.adapters_of(model)
    assert (found.base is not None) == measured


def test_only_the_active_adapter_counts():
    model = peft.get_peft_model(tiny.model(tiny.tokenizer()), build_models.lora())
    model.add_adapter("other", build_models.lora(8))
    assert {item.a.shape[0] for item in adapters.adapters_of(model)} == {4}
    model.set_adapter("other")
    assert {item.a.shape[0] for item in adapters.adapters_of(model)} == {8}


def test_the_spectrum_of_a_product_comes_from_small_matrices():
    torch.manual_seed(0)
    a, b = torch.randn(6, 50, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    singular = adapters.product_spectrum((b.T @ b).numpy(), (a @ a.T).numpy())
    np.testing.assert_allclose(singular, torch.linalg.svdvals(b @ a)[:6].numpy(), rtol=1e-9)


@pytest.mark.parametrize(("singular", "rank"), [([1, 1, 1, 1], 4.0), ([1, 0, 0, 0], 1.0), ([0, 0], None), ([float("nan")], None)])
def test_effective_rank(singular, rank):
    found = adapters.effective_rank(np.asarray(singular, dtype=np.float64))
    assert found == (None if rank is None else pytest.approx(rank))


@pytest.mark.parametrize(
    ("rank", "modules", "count"), [(16, 224, 16), (64, 224, 16), (128, 224, 2), (256, 224, 0), (8, 3, 3), (8, 0, 0)]
)
def test_the_cost_of_the_rank_is_bounded(rank, modules, count):
    assert adapters.sample_size(rank, modules) == count


def test_a_broken_adapter_is_not_a_number_and_an_untrained_one_has_no_rank():
    eye = np.eye(2)
    assert math.isnan(adapters.product_signals([(eye * math.nan, eye)], [1.0], [1.0])["adapter.effective_rank"])
    assert adapters.product_signals([(eye * 0, eye)], [2.0], [1.0]) == {"adapter.delta_ratio": 0.0}
    assert adapters.product_signals([(eye, eye)], [2.0], [math.nan]) == {"adapter.effective_rank": pytest.approx(2.0)}
    assert adapters.product_signals([(eye, eye)], [-2.0], [4.0])["adapter.delta_ratio"] == pytest.approx(2 * math.sqrt(2) / 4)
