"""Run by torchrun: trains the same tiny task again and again in one process group, each time with something else wrong.

    torchrun --nproc_per_node 2 scenarios.py OUTPUT MODE NAME [NAME ...]

MODE is one of `MODES`. Each scenario writes its records to OUTPUT/NAME/vitals; the test that launched this reads them.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

torch.set_num_threads(1)
import torch.distributed as dist  # noqa: E402
import transformers  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from trainvitals.integrations import rank_exchange, ranks, tiny  # noqa: E402
from trainvitals.integrations.heldout import HeldoutProbe  # noqa: E402
from trainvitals.integrations.trl import attach  # noqa: E402

RANK = int(os.environ["RANK"])
rank_exchange.BEAT, ranks.STALL_SECONDS, ranks.WEIGHTS_EVERY = 0.5, 1.0, 5  # a test has no minutes
SPLIT = {"sync_module_states": False, "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]}
DEEPSPEED = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_batch_size": "auto"}
MODES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp1": {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 1, **SPLIT}},
    "fsdp2": {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, **SPLIT}},
    "zero2": {"deepspeed": {**DEEPSPEED, "zero_optimization": {"stage": 2}}},
    "zero3": {"deepspeed": {**DEEPSPEED, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}},
}
SHARDED = {"fsdp1", "fsdp2", "zero3"}
"""No rank holds a whole weight between steps."""


def deepspeed_on_cpu() -> None:
    """Without its own all-reduce in shared memory, which it compiles with g++ at the first use (two minutes): gloo does it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def fsdp_on_cpu(version: str) -> None:
    """accelerate switches FSDP on for accelerators only (`AcceleratorState`); its own code runs over gloo as well."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["FSDP_VERSION"] = version  # how transformers 4 says it
    init = PartialState.__init__

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.device = DistributedType.MULTI_XPU, torch.device("cpu")  # without an index, which FSDP1 does not find equal

    PartialState.__init__ = patched


class At(TrainerCallback):
    """Does something before one step (``step=None``: before every step)."""

    def __init__(self, do: Any, step: int | None = None) -> None:
        self.do, self.step = do, step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.step is None or state.global_step == self.step - 1:
            self.do(model)


def build(folder: Path, mode: str, **changes: Any) -> Any:
    settings = {"max_steps": 28, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "warmup_steps": 5, **MODES[mode], **changes}
    trainer = tiny.sft(str(folder), **settings)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def before_batches(trainer: Any, do: Any) -> None:
    """Call `do(number, features)` before the collator, with the number of the batch on this rank."""
    collate, count = trainer.data_collator, 0

    def wrapped(features: Any) -> Any:
        nonlocal count
        count += 1
        do(count, features)
        return collate(features)

    trainer.data_collator = wrapped


def slow(trainer: Any, rank: int, seconds: float) -> None:
    if rank == RANK:
        before_batches(trainer, lambda number, features: time.sleep(seconds))


def nan(trainer: Any, rank: int, at: int) -> None:
    """The loss of one rank is NaN at one step, as from rows without a label."""
    compute, count = trainer.compute_loss, 0

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        loss = compute(*args, **kwargs)
        bad = math.nan if count == at and rank == RANK else 1.0
        return (loss[0] * bad, *loss[1:]) if isinstance(loss, tuple) else loss * bad

    trainer.compute_loss = compute_loss


def endless(trainer: Any, rank: int) -> None:
    """The rows of one rank have no end token: a shard that another version has tokenised.

    An update takes a twentieth of a second at least. Ranks hear of each other through the store a few times a second: what is merged of updates
    of 20 ms came every second or third of them and sometimes after half of the run, too rarely for a mean over five.
    """

    def cut(number: int, features: Any) -> None:
        time.sleep(0.05)
        for row in features if rank == RANK else []:
            kept = [place for place, token in enumerate(row["input_ids"]) if token != tiny.END_ID]
            row.update({name: [row[name][place] for place in kept] for name in ("input_ids", "labels")})

    before_batches(trainer, cut)


def drift(trainer: Any, rank: int, at: int) -> None:
    def change(model: Any) -> None:
        if rank == RANK:
            with torch.no_grad():
                next(model.parameters()).mul_(1.01)

    trainer.add_callback(At(change, at))


def hang(trainer: Any, rank: int, at: int, seconds: float) -> None:
    if rank == RANK:
        before_batches(trainer, lambda number, features: time.sleep(seconds if number == at else 0))


class Short:
    """A loader that ends before its time."""

    def __init__(self, loader: Any, batches: int) -> None:
        self._loader, self._batches = loader, batches

    def __iter__(self) -> Any:
        return itertools.islice(iter(self._loader), self._batches)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def run_out(trainer: Any, rank: int, batches: int) -> None:
    """The loader of one rank ends early, as with a hand-made split into unequal parts."""
    make = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:
        loader = make()
        if rank == RANK:
            loader.base_dataloader = Short(loader.base_dataloader, batches)
        return loader

    trainer.get_train_dataloader = get_train_dataloader


def counted(call: Any) -> collections.Counter[str]:
    """Calls of torch's collectives while `call` runs."""
    counts: collections.Counter[str] = collections.Counter()
    names = ["all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier", "broadcast", "reduce", "_broadcast_coalesced"]
    real = {name: getattr(dist, name) for name in names}
    for name in names:
        setattr(dist, name, lambda *args, _name=name, **kwargs: (counts.update([_name]), real[_name](*args, **kwargs))[1])
    try:
        call()
    finally:
        for name in names:
            setattr(dist, name, real[name])
    return counts


def no_collectives(folder: Path, mode: str) -> None:
    """The trainer calls as many collectives with trainvitals as without."""
    plain = build(folder / "plain", mode, max_steps=6)
    without = counted(plain.train)
    observed = build(folder, mode, max_steps=6)
    attach(observed, console=False)
    assert counted(observed.train) == without
    assert without.total() > 0


def heldout(folder: Path, mode: str) -> None:
    """A probe on rank 0 changes no weight of any rank and calls no collective; of a sharded model it keeps away."""
    plain = build(folder / "plain", mode, max_steps=6)
    without = counted(plain.train)
    observed = build(folder, mode, max_steps=6)
    probe = HeldoutProbe(lambda completions, **kwargs: [float(len(text)) for text in completions], ["what is", "two"], every=2, max_new_tokens=8)
    observed.add_callback(probe)
    attach(observed, console=False)
    assert counted(observed.train) == without
    for one, other in zip(plain.model.parameters(), observed.model.parameters(), strict=True):
        here, there = (p.to_local() if hasattr(p, "to_local") else p for p in (one, other))
        assert torch.equal(here, there)
    assert probe.off == (mode in SHARDED and RANK == 0)
    assert [step for step, _ in probe.history] == ([0, 2, 4, 6] if mode not in SHARDED and RANK == 0 else [])


def slow_rewards(folder: Path) -> None:
    """GRPO: the reward function of one rank is slow, and the others wait where rewards are gathered."""
    from trl.trainer import grpo_trainer

    def reward(completions: Any, **kwargs: Any) -> list[float]:
        time.sleep(0.15 if RANK == 1 else 0.0)
        return tiny.vowels(completions, **kwargs)

    gather = grpo_trainer.gather
    tiny.policy = lambda vocabulary, **kwargs: tiny.model(vocabulary)  # what it says does not matter here
    trainer = tiny.grpo(str(folder), reward=reward, max_steps=32, per_device_train_batch_size=8, max_completion_length=4, learning_rate=1e-4)
    trainer.remove_callback(transformers.PrinterCallback)
    attach(trainer, console=True)
    trainer.train()
    assert grpo_trainer.gather is gather


FAULTS: dict[str, Any] = {
    "healthy": lambda trainer: None,
    "slow": lambda trainer: slow(trainer, 2, 0.15),
    "nan": lambda trainer: nan(trainer, 3, 12),
    "drift": lambda trainer: drift(trainer, 1, 8),
    "hang": lambda trainer: hang(trainer, 1, 8, 11.0),
    "run_out": lambda trainer: run_out(trainer, 1, 6),
    "slow1": lambda trainer: slow(trainer, 1, 0.15),
    "nan1": lambda trainer: nan(trainer, 1, 12),
    "endless": lambda trainer: endless(trainer, 1),
    "accumulate": lambda trainer: None,
    "only_rank_0": lambda trainer: None,
    "off": lambda trainer: None,
    "killed": lambda trainer: trainer.add_callback(At(lambda model: RANK == 1 and os.kill(os.getpid(), signal.SIGKILL), 10)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "healthy": {"max_steps": 30},
    "accumulate": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0, "max_steps": 40},
    "only_rank_0": {"max_steps": 8},
    "off": {"max_steps": 4},
    "hang": {"max_steps": 14},
    "run_out": {"per_device_train_batch_size": 1},
    "nan": {"max_steps": 18},
    "nan1": {"max_steps": 18},
}


def train(folder: Path, mode: str, name: str, overrides: list[Path]) -> None:
    trainer = build(folder, mode, **SETTINGS.get(name, {}))
    FAULTS[name](trainer)
    if name != "only_rank_0" or RANK == 0:
        attach(trainer, tick_seconds=0.5, overrides=overrides, console=True, gather_ranks=name != "off")
    trainer.train()


def main() -> None:
    output, mode, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if mode.startswith("fsdp"):
        fsdp_on_cpu(mode[-1])
    if mode.startswith("zero"):
        deepspeed_on_cpu()
    overrides = output / "trainvitals.yaml"
    for name in names:
        if name in {"no_collectives", "heldout"}:
            {"no_collectives": no_collectives, "heldout": heldout}[name](output / name, mode)
            print(f"rank {RANK} done {name}", flush=True)
            continue
        if name == "slow_rewards":
            slow_rewards(output / name)
            print(f"rank {RANK} done {name}", flush=True)
            continue
        try:
            train(output / name, mode, name, [overrides])
        finally:
            if name == "run_out" and RANK == 1:
                time.sleep(5)  # a process that ends takes its connections with it: the others would not wait any more
        print(f"rank {RANK} done {name}", flush=True)


main()
