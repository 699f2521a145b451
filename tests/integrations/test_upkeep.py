"""What surrounds and underlies the updates: optimizer, disk, host, device memory, hidden states. Right numbers, nothing where nothing is known."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="integrations need the extra 'trl'")
pytest.importorskip("trl", reason="integrations need the extra 'trl'")

import peft  # noqa: E402
import transformers  # noqa: E402

from trainvitals.events import CATALOGUE  # noqa: E402
from trainvitals.integrations import features, housekeeping, nvml, tiny  # noqa: E402
from trainvitals.integrations import torch as own_torch  # noqa: E402
from trainvitals.integrations.model_facts import lora_settings, model_settings  # noqa: E402
from trainvitals.integrations.optimizer_check import OptimizerCheck, left_out, with_state  # noqa: E402


def pair() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(9, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    model(torch.ones(2, 9)).sum().backward()
    return model


class TestOptimizer:
    def test_what_it_does_not_hold_is_counted_in_numbers(self) -> None:
        model = pair()
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        assert left_out(model.parameters(), optimizer) == {"optim.left_out_fraction": 0.1}
        assert own_torch.optimizer_signals(model, optimizer) == {"optim.left_out_fraction": 0.1}
        model[1].weight.grad = None
        assert left_out(model.parameters(), optimizer) == {"optim.left_out_fraction": 0.0}

    def test_nothing_is_told_of_dummies_and_of_no_gradients(self) -> None:
        model = pair()

        class LayerWiseDummyOptimizer(torch.optim.SGD):
            pass

        assert left_out(model.parameters(), LayerWiseDummyOptimizer([torch.nn.Parameter(torch.ones(1))], lr=1.0)) == {}
        assert left_out(model.parameters(), None) == {}
        model.zero_grad()
        assert left_out(model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1)) == {}

    def test_what_is_never_reached(self) -> None:
        model = pair()
        check, optimizer = OptimizerCheck(), torch.optim.SGD(model.parameters(), lr=0.1)
        check.begin(resumed=False)
        model[0].weight.grad = None
        told = check.before(model, list(model.parameters()), optimizer)
        assert told == {"optim.trainable_with_grad": 0.5, "optim.left_out_fraction": 0.0, "optim.never_reached_fraction": 0.9}
        model[0].weight.grad = torch.zeros(1, 9)  # a gradient of zero is one
        assert check.before(model, list(model.parameters()), optimizer)["optim.never_reached_fraction"] == 0.0
        assert check.before(model, [], optimizer) == {}

    def test_experts_may_wait_for_tokens(self) -> None:
        model = torch.nn.ModuleDict({"experts": torch.nn.Linear(9, 1, bias=False), "rest": torch.nn.Linear(1, 1, bias=False)})
        check = OptimizerCheck()
        check.begin(resumed=False)
        told = check.before(model, list(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1))
        assert told["optim.never_reached_fraction"] == 0.1

    @pytest.mark.parametrize(("kept", "expected"), [(True, 1.0), (False, 0.0)])
    def test_state_after_a_resume(self, kept: bool, expected: float) -> None:
        model = pair()
        optimizer = torch.optim.AdamW(model.parameters())
        if kept:
            optimizer.step()
        check = OptimizerCheck()
        check.begin(resumed=True)
        check.before(model, list(model.parameters()), SimpleNamespace(optimizer=optimizer, param_groups=optimizer.param_groups))
        optimizer.step()
        assert check.after(SimpleNamespace(optimizer=optimizer)) == {"optim.state_restored_fraction": expected}
        assert check.after(optimizer) == {}

    def test_an_optimizer_without_state_has_none_to_lose(self) -> None:
        model = pair()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        check = OptimizerCheck()
        check.begin(resumed=True)
        check.before(model, list(model.parameters()), optimizer)
        optimizer.step()
        assert with_state(optimizer) == set()
        assert check.after(optimizer) == {}


class TestHousekeeping:
    def test_time_goes_to_what_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(housekeeping.time, "perf_counter", lambda: now[0])
        keeping = housekeeping.Housekeeping()
        keeping.begin()
        assert keeping.spent("evaluating") == {}  # outside of training
        now[0] = 190.0
        assert keeping.update_ended(1) == {}
        now[0] = 195.0
        assert keeping.spent("evaluating") == {"time.evaluating_fraction": 5 / 95}
        now[0] = 200.0
        assert keeping.spent("saving") == {"time.saving_fraction": 0.05}
        keeping.update_begins()
        assert keeping.spent("saving") == {}

    @pytest.mark.skipif(not housekeeping.LINUX, reason="reads /proc")
    def test_memory_of_the_host(self) -> None:
        before = housekeeping.host_memory()
        assert set(before) == {"memory.host_private_bytes", "memory.host_available_bytes"} <= CATALOGUE.keys()
        ballast = torch.ones(30_000_000)
        grown = housekeeping.Housekeeping().update_ended(housekeeping.EVERY)["memory.host_private_bytes"] - before["memory.host_private_bytes"]
        assert grown > 60e6
        assert float(ballast[0]) == 1.0

    def test_the_limit_of_a_container_counts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(housekeeping, "_CGROUP", tmp_path)
        for name, text in {"memory.max": "3000", "memory.current": "2500", "memory.stat": "anon 1\ninactive_file 200\n"}.items():
            (tmp_path / name).write_text(text)
        assert housekeeping.host_memory()["memory.host_available_bytes"] == 700.0
        (tmp_path / "memory.max").write_text("max\n")
        assert housekeeping.host_memory().get("memory.host_available_bytes", 1e6) > 1e5

    def test_room_for_checkpoints(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(os, "statvfs", lambda place: namedtuple("S", "f_bavail f_frsize")(30, 100), raising=False)
        model = torch.nn.Linear(10, 10, bias=False)
        args = SimpleNamespace(optim="adamw_torch_fused", save_strategy="steps", output_dir=str(tmp_path / "not" / "yet"))
        assert housekeeping.room_at_start(model, args, sharded=False) == {"run.checkpoint_room": 3000 / 1200}
        assert housekeeping.room_at_start(model, args, sharded=True) == {}
        args.save_only_model = True
        assert housekeeping.room_at_start(model, args, sharded=False) == {"run.checkpoint_room": 3000 / 400}
        args.save_strategy = "no"
        assert housekeeping.room_at_start(model, args, sharded=False) == {}
        (tmp_path / "a").write_bytes(b"x" * 700)
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "b").write_bytes(b"x" * 300)
        assert housekeeping.size_of(str(tmp_path)) == 1000.0
        assert housekeeping.room(str(tmp_path), 1000.0) == {"run.checkpoint_room": 3.0}


def test_uncorrectable_errors_count_from_when_we_came() -> None:
    counter = [3]
    library = SimpleNamespace(
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1, NVML_VOLATILE_ECC=0, nvmlDeviceGetTotalEccErrors=lambda handle, kind, scope: counter[0] if kind else 99
    )
    device = nvml.Nvml(library, "handle")
    assert device.sample() == {"device.ecc_errors": 0.0}
    counter[0] = 5
    assert device.sample() == {"device.ecc_errors": 2.0}


def test_memory_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "is_available": lambda: True, "mem_get_info": lambda device: (500, 1000), "memory_allocated": lambda device: 100,
        "memory_reserved": lambda device: 400, "max_memory_reserved": lambda device: 450, "max_memory_allocated": lambda device: 300,
        "memory_stats": lambda device: {"num_alloc_retries": 7, "inactive_split_bytes.all.current": 100},
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    values = own_torch.memory_signals(reset_peak=False)
    assert values["memory.vram_alloc_retries"] == 7.0
    assert values["memory.vram_split_fraction"] == 0.25
    assert set(values) <= CATALOGUE.keys()


class TestModelFacts:
    def test_adapters_on_the_attention_alone(self) -> None:
        def settings(*targets: str) -> dict[str, Any]:
            return lora_settings(peft.get_peft_model(tiny.model(tiny.tokenizer()), peft.LoraConfig(target_modules=list(targets))))

        assert settings("q_proj", "v_proj") == {"model_lora_attention_only": True}
        assert settings("q_proj", "up_proj") == {"model_lora_attention_only": False}
        assert lora_settings(tiny.model(tiny.tokenizer())) == {}

    def test_the_balancing_loss_of_a_mixture(self) -> None:
        config = transformers.MixtralConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2
        )
        model = transformers.MixtralForCausalLM(config)
        off = {"model_vocab_size": 16, "model_aux_loss": False, "model_aux_coef": 0.001}
        assert model_settings(model, SimpleNamespace()) == off
        assert model_settings(model, SimpleNamespace(aux_loss_enabled=True, router_aux_loss_coef=0.01)) == {**off, "model_aux_loss": True, "model_aux_coef": 0.01}
        assert model_settings(model) == {"model_vocab_size": 16}
        model.requires_grad_(False)
        assert model_settings(model, SimpleNamespace()) == {"model_vocab_size": 16}


class TestFeatures:
    def test_the_final_norm_is_found(self) -> None:
        model = tiny.model(tiny.tokenizer())
        assert features.final_norm(model) is model.model.norm
        assert features.final_norm(torch.nn.Linear(2, 2)) is None
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
        assert features.final_norm(transformers.BertModel(transformers.BertConfig(**small))) is None
        gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=16))
        assert features.final_norm(gpt) is gpt.transformer.ln_f

    def test_a_known_rank_and_size(self) -> None:
        torch.manual_seed(0)
        states = torch.randn(4, 40, 3) @ torch.randn(3, 32)  # three directions
        weight = torch.ones(4, 40)
        weight[:, :10] = 0.0
        states[:, :10] = 1e6  # padding
        values = features.first_signals(features.sketch(5 * states, states, weight))
        assert values["hidden.norm"] == values["hidden.norm_start"] < 200
        assert 1.5 < values["hidden.effective_rank"] == values["hidden.rank_start"] <= 3.01
        assert set(values) == features.SIGNALS - {"hidden.repeat_difference"}
        assert CATALOGUE.keys() >= features.SIGNALS
        weight[:, 25:] = 0.0  # 60 tokens are too few
        assert features.hidden_signals(features.sketch(states, states, weight)) == {}

    def test_every_tokens_same_state_has_no_rank(self) -> None:
        states = torch.ones(4, 40, 8)
        assert "hidden.effective_rank" not in features.hidden_signals(features.sketch(states, states, torch.ones(4, 40)))

    def test_rows_that_begin_alike(self) -> None:
        states = torch.ones(4, 3, 8)
        states[1, 0] = 2.0
        states[3, 0] = 9.0
        ids, weight = torch.tensor([[1, 5, 5], [1, 6, 6], [1, 7, 7], [2, 5, 5]]), torch.ones(4, 3)
        assert features.repeat_signals(features.repeats(states, ids, weight)) == {"hidden.repeat_difference": 0.0}  # of 1 and 0 the lower median
        weight[2, 0] = 0.0
        assert features.repeat_signals(features.repeats(states, ids, weight)) == {"hidden.repeat_difference": 1.0}
        weight[0, 0] = 0.0  # padded on the left
        assert features.repeat_signals(features.repeats(states, ids, weight)) == {}

    def test_only_causal_models_repeat_themselves(self) -> None:
        model = tiny.model(tiny.tokenizer())
        assert features.causal(model)
        assert features.causal(peft.get_peft_model(model, peft.LoraConfig()))
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
        assert not features.causal(transformers.BertModel(transformers.BertConfig(**small)))
