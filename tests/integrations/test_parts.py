"""The parts that need no trainer: clock, delayed reads, NVML, plain PyTorch, ends of a process, facts of a run."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainvitals.events import CATALOGUE
from trainvitals.integrations import facts, later, nvml
from trainvitals.integrations.lifecycle import ExitGuard, status_of
from trainvitals.integrations.torch import _fractions, gradient_norm, gradient_signals, memory_signals
from trainvitals.integrations.watchdog import Watchdog
from trainvitals.items import Tick


def wait_for(condition: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


class TestWatchdog:
    def test_ticks_with_time_and_step_until_stopped(self):
        ticks: list[Tick] = []
        dog = Watchdog(ticks.append, lambda: 7, 0.01, clock=lambda: 123.0)
        dog.start()
        dog.start()  # does not start a second thread
        assert wait_for(lambda: len(ticks) >= 3)
        dog.stop()
        assert not dog.alive
        count = len(ticks)
        time.sleep(0.05)
        assert len(ticks) == count
        assert ticks[0] == Tick(7, 123.0)

    def test_it_does_not_keep_the_process_alive_and_dies_quietly(self):
        dog = Watchdog(lambda tick: 1 / 0, lambda: 0, 0.001)
        dog.start()
        assert dog._thread is not None
        assert dog._thread.daemon
        assert wait_for(lambda: not dog.alive)
        dog.stop()

    def test_it_can_be_stopped_from_its_own_thread(self):
        dog = Watchdog(lambda tick: dog.stop(), lambda: 0, 0.001)
        dog.start()
        assert wait_for(lambda: not dog.alive)

    @pytest.mark.parametrize("seconds", [0, -1, math.nan])
    def test_a_senseless_interval_is_refused(self, seconds):
        with pytest.raises(ValueError, match="positive number of seconds"):
            Watchdog(lambda tick: None, lambda: 0, seconds)


class FakeEvent:
    def __init__(self) -> None:
        self.done = False
        self.waited = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited = self.done = True


class TestLater:
    def test_host_tensors_are_read_at_once(self):
        queue = later.Later()
        queue.put([torch.tensor(2.5, requires_grad=True)], later.scalar("optim.loss_raw"))
        assert queue.ready() == {"optim.loss_raw": 2.5}
        assert queue.ready() == {}

    def test_a_device_that_is_not_done_is_not_waited_for(self):
        queue, event = later.Later(), FakeEvent()
        queue._waiting.append(later._Waiting([torch.tensor(1.0)], later.scalar("optim.loss_raw"), event))
        queue.put([torch.tensor(2.0)], later.scalar("optim.grad_norm_step"))
        assert queue.ready() == {}  # in order: nothing overtakes
        event.done = True
        assert queue.ready() == {"optim.loss_raw": 1.0, "optim.grad_norm_step": 2.0}
        assert not event.waited

    def test_only_the_end_waits(self):
        queue, event = later.Later(), FakeEvent()
        queue._waiting.append(later._Waiting([torch.tensor(1.0)], later.scalar("optim.loss_raw"), event))
        assert queue.ready(wait=True) == {"optim.loss_raw": 1.0}
        assert event.waited

    def test_a_later_value_never_hides_a_nan(self):
        queue = later.Later()
        for value in (1.0, math.nan, 3.0):
            queue.put([torch.tensor(value)], later.scalar("optim.loss_raw"))
        assert math.isnan(queue.ready()["optim.loss_raw"])

    def test_memory_is_bounded(self):
        queue = later.Later()
        for _ in range(200):
            queue._waiting.append(later._Waiting([torch.tensor(1.0)], later.scalar("x"), FakeEvent()))
            queue.put([torch.tensor(1.0)], later.scalar("x"))
        assert queue.dropped > 0
        assert len(queue) < 300

    def test_a_computation_that_fails_is_told_once_and_the_others_go_on(self):
        told: list[str] = []
        queue = later.Later(told.append)

        def broken(tensors: list[torch.Tensor]) -> dict[str, float]:
            raise KeyError("shape")

        for _ in range(3):
            queue.put([torch.tensor(1.0)], broken)
            queue.put([torch.tensor(2.0)], later.scalar("optim.loss_raw"))
        assert queue.ready() == {"optim.loss_raw": 2.0}
        assert len(told) == 1
        assert "broken raised KeyError" in told[0]


class TestNvml:
    def test_no_driver_means_no_device(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert nvml.Nvml.open() is None

    def test_what_the_device_does_not_offer_is_left_out(self):
        def unsupported(*args: Any) -> Any:
            raise RuntimeError("Not Supported")

        library = SimpleNamespace(
            nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=34),
            nvmlDeviceGetTemperature=unsupported,
            NVML_TEMPERATURE_GPU=0,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x1 | 0x40,
        )
        device = nvml.Nvml(library, "handle")
        assert device.sample() == {"device.utilization_fraction": 0.34, "device.throttled": 1.0} == device.latest
        assert set(device.latest) <= CATALOGUE.keys()


class TestTorch:
    def test_gradient_norm_is_the_norm_that_clipping_reports(self):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        assert gradient_norm(model.parameters()) is None
        model(torch.randn(3, 4)).pow(2).sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        assert float(gradient_norm(model.parameters())) == pytest.approx(float(expected), rel=1e-6)

    def test_gradient_signals_count_what_is_broken_and_what_is_left_out(self):
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        model[0](torch.randn(3, 4)).sum().backward()
        model[0].weight.grad[0, 0] = math.inf
        values = gradient_signals(model.parameters())
        assert values["optim.trainable_with_grad"] == 0.5
        assert values["optim.nonfinite_grads"] == 1
        assert math.isinf(values["optim.grad_norm_step"])

    def test_memory_counts_other_processes_and_never_exceeds_one(self):
        gib = 2**30
        values = _fractions(free=2 * gib, total=10 * gib, allocated=3 * gib, reserved=5 * gib, peak_reserved=6 * gib)
        assert values["memory.vram_used_fraction"] == pytest.approx(0.9)  # 6 of ours, 3 of somebody else's
        assert values["memory.vram_static_fraction"] == pytest.approx(0.6)
        full = _fractions(free=0, total=10 * gib, allocated=9 * gib, reserved=9 * gib, peak_reserved=12 * gib)
        assert full["memory.vram_used_fraction"] == 1.0

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
    def test_without_cuda_there_is_no_memory_to_report(self):
        assert memory_signals() == {}


class TestLifecycle:
    def test_words_for_an_end(self):
        assert status_of(None) == status_of(SystemExit(0)) == "completed"
        assert status_of(KeyboardInterrupt()) == status_of(SystemExit(3)) == "interrupted"
        assert status_of(MemoryError()) == "failed"

    def test_handlers_are_put_back(self):
        before = signal.getsignal(signal.SIGTERM)
        guard = ExitGuard(lambda status: None)
        guard.install()
        if before is signal.SIG_DFL:
            assert signal.getsignal(signal.SIGTERM) == guard._on_signal
        guard.remove()
        assert signal.getsignal(signal.SIGTERM) == before

    def test_somebody_elses_handler_is_left_alone(self):
        def mine(number: int, frame: Any) -> None: ...

        before = signal.signal(signal.SIGTERM, mine)
        try:
            guard = ExitGuard(lambda status: None)
            guard.install()
            assert signal.getsignal(signal.SIGTERM) is mine
            guard.remove()
            assert signal.getsignal(signal.SIGTERM) is mine
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_a_thread_may_install_it(self):
        errors: list[BaseException] = []

        def work() -> None:
            try:
                guard = ExitGuard(lambda status: None)
                guard.install()
                guard.remove()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not errors

    @pytest.mark.parametrize(
        ("body", "code", "said"),
        [
            ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ["killed"]),
            ("with guard.busy():\n    os.kill(os.getpid(), signal.SIGTERM); say('inside')", -signal.SIGTERM, ["inside", "killed"]),
            ("raise KeyboardInterrupt", -signal.SIGINT, ["interrupted"]),
            ("raise MemoryError('cuda')", 1, ["failed"]),
            ("pass", 0, ["interrupted"]),
            ("guard.remove()", 0, []),
        ],
    )
    def test_a_process_that_dies_speaks_first(self, body, code, said):
        script = textwrap.dedent("""
            import os, signal
            from trainvitals.integrations.lifecycle import ExitGuard
            def say(text): print(text, flush=True)
            guard = ExitGuard(say)
            guard.install()
        """)
        done = subprocess.run([sys.executable, "-c", script + body], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == said
        assert done.returncode == code


class TestFacts:
    def test_secrets_stay_out_and_token_counts_stay_in(self):
        args = SimpleNamespace(
            hub_token="hf_x", api_key="k", max_tokens=5, learning_rate=1e-6, eval_strategy=SimpleNamespace(value="no"),
            bad=math.nan, nested={"a": 1}, bf16=True,
        )  # fmt: skip
        assert facts.config_of(args) == {"max_tokens": 5, "learning_rate": 1e-6, "eval_strategy": "no", "bf16": True}

    def test_kinds_come_from_the_nearest_known_class(self):
        kind = type("MyGRPOTrainer", (type("GRPOTrainer", (), {}),), {})
        assert facts.trainer_kind(kind()) == "grpo"
        assert facts.trainer_kind(object()) == "unknown"

    def test_only_what_can_come_is_announced(self):
        args = SimpleNamespace(beta=0.0, use_vllm=False, eval_strategy="no", max_grad_norm=1.0)
        bare = facts.emitted(args, "grpo", cuda=False, hooks=frozenset())
        assert "policy.kl_ref" not in bare
        assert not any(name.startswith(("memory.vram", "sampler.", "eval.", "preference.")) for name in bare)
        assert "policy.ratio_outside_fraction" not in bare
        full = facts.emitted(args, "grpo", cuda=True, hooks=facts.HOOKED)
        assert bare < full
        assert {"policy.ratio_outside_fraction", "memory.vram_used_fraction", "reward.group_std_mean"} <= full

    def test_the_size_of_the_vocabulary_is_the_text_model_s(self):
        text = SimpleNamespace(vocab_size=272)
        assert facts.model_settings(SimpleNamespace(config=text)) == {"model_vocab_size": 272}
        both = SimpleNamespace(vocab_size=None, get_text_config=lambda: text)
        assert facts.model_settings(SimpleNamespace(config=both)) == {"model_vocab_size": 272}
        assert facts.model_settings(SimpleNamespace(config=text, peft_config={})) == {"model_peft": True, "model_vocab_size": 272}
        assert facts.model_settings(SimpleNamespace(config=SimpleNamespace(vocab_size=None))) == {}
        assert facts.model_settings(None) == {}

    def test_trainers_with_a_queue_log_their_throughput(self):
        args = SimpleNamespace(use_vllm=True, eval_strategy="no", max_grad_norm=1.0)
        queued = {"time.tokens_per_second", "data.padding_fraction"}
        assert queued <= facts.emitted(args, "async_grpo", cuda=False, hooks=frozenset())
        assert queued <= facts.emitted(args, "distillation", cuda=False, hooks=frozenset({"rollout.queue_size"}))
        assert not queued & facts.emitted(args, "distillation", cuda=False, hooks=frozenset())
        assert not queued & facts.emitted(args, "sft", cuda=False, hooks=frozenset())

    def test_names_are_in_the_catalogue(self):
        assert CATALOGUE.keys() >= facts.HOOKED | facts._NEVER
