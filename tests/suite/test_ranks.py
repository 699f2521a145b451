"""Several processes: what ranks tell each other, what rank 0 makes of it, and real training under torchrun."""

from __future__ import annotations

import importlib.util
import math
import statistics
import struct
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent / "ranks"))
from launch import fired, launch, records, series

from trainvitals.integrations import ranks, tiny
from trainvitals.integrations.hooks import Hooks
from trainvitals.integrations.rank_exchange import (
    ENDED,
    MANY,
    OFF,
    TRAINING,
    Exchange,
    Post,
    Row,
    all_lags,
    exhausted,
    is_local,
    pack,
    reduced,
    standing_signals,
    step_signals,
    unpack,
)  # fmt: skip
from trainvitals.integrations.transformers import VitalsCallback

OF_THE_MACHINE = {"throughput-drop", "training-stalled", "slow-rank"}  # true or not depends on what else runs on this machine
HARMLESS = OF_THE_MACHINE | {"prompt-learned"}  # an info, and true: these chats are trained on as a whole, as is TRL's default

FIRST_NORM = {"1.0.0": 2.15846}.get(version("trl"), 2.22809)  # TRL 1.0 puts other tokens under the loss


def rows(*own: float, seconds: float = 10.0, **changes: Any) -> dict[int, Row]:
    return {rank: Row(1, seconds, mine, 9.0, **{"loss": 1.0, **changes}) for rank, mine in enumerate(own)}


# ---- numbers in, numbers out ----


def test_a_post_survives_the_way():
    post = Post(7, 3, -1, ENDED, 12, [Row(1, 0.5, 0.25, math.nan), Row(2, 0.5, 0.0, 0.4, math.inf, 31.5), Row(3, 1.0, 0.1, 0.9, 0.0, None)])
    back = unpack(pack(post))
    assert math.isnan(back.rows[0].step_seconds)
    back.rows[0].step_seconds = post.rows[0].step_seconds  # NaN is not equal to itself
    assert back == post
    shared = Post(rows=[Row(1, 0.5, 0.25, 0.4)], values=[(1, {"token.label_fraction": 0.25, "reward.component_mean{component=ä{}}": -math.inf}), (2, {})])
    assert unpack(pack(shared)) == shared
    nan = unpack(pack(Post(rows=[Row(1, 1.0, 1.0, 1.0, math.nan)]))).rows[0]
    assert nan.loss is not None
    assert math.isnan(nan.loss)
    with pytest.raises(struct.error):
        unpack(b"short")


@pytest.mark.parametrize(
    ("own", "rank", "expected"),
    [((1.0, 4.0), 1, 0.3), ((1.0, 4.0), 0, 0.0), ((1.0, 1.0, 1.0, 3.0), 3, 0.2), ((1.0, 2.0, 9.0), 2, 0.75), ((0.0, 99.0), 1, 1.0), ((1.0,), 0, 0.0)],
)
def test_a_rank_lags_by_its_own_time_beyond_the_others(own, rank, expected):
    assert all_lags(rows(*own))[rank] == pytest.approx(expected)


def test_lags_are_those_of_the_plain_definition():
    random = Random(1)
    for count in (2, 3, 4, 5, 8, 9):
        own = [random.choice([0.5, 1.0, random.random()]) for _ in range(count)]
        plain = {rank: max(0.0, (mine - statistics.median(own[:rank] + own[rank + 1 :])) / 10) for rank, mine in enumerate(own)}
        assert all_lags(rows(*own)) == pytest.approx(plain)


def test_a_step_without_time_has_no_lag():
    assert all_lags(rows(0.0, 1.0, seconds=0.0)) == {0: 0.0, 1: 0.0}


def test_one_rank_has_nobody_to_be_compared_with():
    assert step_signals(rows(1.0)) == {}
    assert standing_signals({0: Post()}, stalled=True) == {}


def test_a_nan_counts_only_where_others_are_finite():
    mixed = rows(1.0, 1.0, 1.0)
    mixed[1].loss = math.nan
    values = step_signals(mixed)
    assert [values[f"optim.rank_nonfinite_alone{{rank={rank}}}"] for rank in range(3)] == [0.0, 1.0, 0.0]
    assert math.isnan(values["optim.rank_loss{rank=1}"])
    everywhere = step_signals(rows(1.0, 1.0, loss=math.nan))
    assert everywhere["optim.rank_nonfinite_alone{rank=0}"] == everywhere["optim.rank_nonfinite_alone{rank=1}"] == 0.0


def test_weights_that_differ_from_the_median_of_all():
    changed = rows(1.0, 1.0, 1.0, weights=20.0)
    changed[2].weights = 21.0
    values = step_signals(changed)
    assert [values[f"optim.rank_weight_drift{{rank={rank}}}"] for rank in range(3)] == pytest.approx([0.0, 0.0, 0.05])
    changed[0].weights = None  # sharded there, or a step without a look: no comparison
    assert not any("weight_drift" in name for name in step_signals(changed))


def test_signals_of_several_ranks_become_one():
    parts = [{"reward.mean": 0.25, "reward.max": 1.0, "completion.length_min": 3.0, "memory.host_available_bytes": 9.0, "data.drift": 0.1},
             {"reward.mean": 0.75, "reward.max": 2.0, "completion.length_min": 5.0, "memory.host_available_bytes": 4.0}]  # fmt: skip
    expected = {"reward.mean": 0.5, "reward.max": 2.0, "completion.length_min": 3.0, "memory.host_available_bytes": 4.0, "data.drift": 0.1}
    assert reduced(parts) == expected
    assert reduced([{"policy.entropy": 0.1}] * 3) == {"policy.entropy": 0.1}  # (0.1 + 0.1 + 0.1) / 3 is not 0.1
    assert math.isnan(reduced([{"policy.entropy": 1.0}, {"policy.entropy": math.nan}, {"policy.entropy": 2.0}])["policy.entropy"])
    assert reduced([{"sampler.is_ratio_max": math.inf}, {"sampler.is_ratio_max": 2.0}])["sampler.is_ratio_max"] == math.inf
    assert reduced([]) == {}


@pytest.mark.parametrize(
    ("name", "local"),
    [("token.label_fraction", True), ("optim.loss_raw", True), ("optim.grad_norm", False), ("run.progress", False), ("data.rank_exhausted{rank=1}", False),
     ("reward.component_mean{component=f}", True), ("eval.reward", False)],
)  # fmt: skip
def test_what_a_rank_makes_of_its_own_data(name, local):
    assert is_local(name) is local


def test_a_large_world_publishes_who_stands_out():
    many = rows(*[1.0] * 300)
    many[17].own, many[250].loss = 6.0, math.nan
    shown = {name.partition("rank=")[2].rstrip("}") for name in step_signals(many)}
    assert {"17", "250"} <= shown
    assert len(shown) <= MANY


@pytest.mark.parametrize(
    ("posts", "expected"),
    [
        ([Post(full=7, short=-1), Post(full=6, short=6)], {1}),  # rank 1 had 6 batches, rank 0 has its seventh
        ([Post(full=6, short=6), Post(full=6, short=6)], set()),  # the end of an epoch
        ([Post(full=7, short=6), Post(full=6, short=6)], set()),  # rank 0 is first in the next epoch
        ([Post(full=7, short=6), Post(full=7, short=6)], set()),
        ([Post(full=6, short=-1), Post(full=6, short=6)], set()),  # rank 0 has not fetched yet: nobody knows
        ([Post(full=13, short=6), Post(full=12, short=12), Post(full=13, short=6)], {1}),
    ],
)
def test_data_ran_out_on_one_rank_only(posts, expected):
    assert exhausted(dict(enumerate(posts))) == expected


def test_who_is_missing_in_a_stall():
    waiting = {0: Post(place=40), 1: Post(place=38), 2: Post(place=40)}
    standing = standing_signals(waiting, stalled=True, silent={1: 3.0, 2: 50.0})
    assert [standing[f"run.rank_behind{{rank={rank}}}"] for rank in range(3)] == [0, 2, 0]
    assert standing["run.rank_silent_seconds{rank=2}"] == 50.0
    assert not any(standing_signals(waiting, stalled=False, silent={1: 50.0}).values())  # while steps end, places just differ


def test_a_rank_that_left_is_missing_and_one_without_data_is_not_blamed_twice():
    left = standing_signals({0: Post(place=40), 1: Post(place=44, state=ENDED)}, stalled=True)
    assert (left["run.rank_behind{rank=0}"], left["run.rank_behind{rank=1}"]) == (0, 1)
    empty = standing_signals({0: Post(place=40, full=7), 1: Post(place=90, full=6, short=6, state=ENDED)}, stalled=True)
    assert (empty["data.rank_exhausted{rank=1}"], empty["run.rank_behind{rank=1}"], empty["run.rank_behind{rank=0}"]) == (1, 0, 0)
    unseen = standing_signals({0: Post(place=40), 1: Post(place=3, state=OFF)}, stalled=True)  # its counting has stopped, not the rank
    assert not any(unseen.values())
    over = standing_signals({0: Post(state=ENDED), 1: Post(state=ENDED)}, stalled=True)
    assert not any(over.values())


# ---- the exchange, over a store of torch's own ----


def exchanges(store: Any, world: int, **kwargs: Any) -> list[Exchange]:
    made = [Exchange(store, rank, world, "test", on_error=pytest.fail, beat=0.05, pause=0.01, **kwargs) for rank in range(world)]
    for one in made:
        one.start()
    return made


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.01)


def test_rank_0_gets_each_step_once_when_all_have_ended_it():
    made = exchanges(dist.HashStore(), 3)
    try:
        until(lambda: len(made[0].posts) == 3)
        for step in (1, 2):
            for one in made[: 3 if step == 1 else 2]:  # rank 2 is still in step 2
                one.add(Row(step, 1.0, 0.1 * one.rank, 1.0, float(one.rank)))
        found: list[dict[int, Row]] = []
        until(lambda: found.extend(made[0].complete()) or found)
        assert [row.loss for _, row in sorted(found[0].items())] == [0.0, 1.0, 2.0]
        assert made[0].complete() == []
        made[2].add(Row(2, 1.0, 0.2, 1.0, 2.0))
        until(lambda: found.extend(made[0].complete()) or len(found) == 2)
        assert sorted(found[1]) == [0, 1, 2]
    finally:
        assert all(one.finish(ENDED) for one in made)


def test_a_step_is_reduced_once_when_all_who_speak_have_ended_it():
    made = exchanges(dist.HashStore(), 3)
    try:
        until(lambda: len(made[0].posts) == 3)
        for one in made:
            one.share(1, {"token.accuracy": float(one.rank)})
        found: list[dict[str, float]] = []
        until(lambda: found.extend(made[0].settled()) or found)
        assert reduced(found) == {"token.accuracy": 1.0}
        assert made[0].settled() == []
        made[0].share(2, {"token.accuracy": 0.5}), made[1].share(2, {})
        made[2].share(3, {"token.accuracy": 0.9})  # a rank that is ahead, and whose second step was lost
        until(lambda: made[0]._newest.get(2) == 3 and made[0]._newest.get(1) == 2)
        assert made[0].settled() == [{"token.accuracy": 0.5}, {}]
        assert made[1].finish(OFF)  # who is not observed any more is not waited for
        made[0].share(3, {"token.accuracy": 0.1})
        until(lambda: found.extend(made[0].settled()) or len(found) == 5)
        assert reduced(found[3:]) == {"token.accuracy": 0.5}
    finally:
        assert all(one.finish(ENDED) for one in (made[0], made[2]))


def test_a_rank_keeps_its_own_signals_until_it_hears_of_others(monkeypatch):
    monkeypatch.setattr(ranks._Ranks, "_start", lambda self: None)
    one = ranks._Ranks(SimpleNamespace())
    own = {"token.accuracy": 0.5, "optim.learning_rate": 1e-4}
    assert one.share(1, own) == own  # no exchange
    one._exchange = exchange = Exchange(dist.HashStore(), 0, 2, "test", on_error=pytest.fail)
    assert one.share(1, own) == own  # the other rank has not spoken yet, and perhaps never will
    exchange.posts[1] = Post()
    assert one.share(2, own) == own  # it has, but not of a whole step
    exchange._take(1, 2, {"token.accuracy": 0.1})
    assert one.share(3, own) == {"token.accuracy": pytest.approx((0.5 + 0.5 + 0.1) / 3), "optim.learning_rate": 1e-4}
    assert one.share(4, own) == {"optim.learning_rate": 1e-4}  # nothing new: a step of the others is still under way


def test_a_rank_that_never_speaks_makes_nobody_wait():
    store = dist.HashStore()
    alone = Exchange(store, 0, 4, "test", on_error=pytest.fail, beat=0.05, pause=0.01)
    alone.start()
    for step in range(1, 50):
        alone.add(Row(step, 1.0, 0.1, 1.0, 1.0))
    until(lambda: alone.complete())
    assert list(alone.posts) == [0]
    assert alone.finish(ENDED)


def test_rank_0_hears_the_last_word():
    made = exchanges(dist.HashStore(), 2)
    until(lambda: len(made[0].posts) == 2)
    made[1].mine.short = 0
    assert made[1].finish(ENDED)
    assert made[0].finish(ENDED)
    assert (made[0].posts[1].state, made[0].posts[1].short) == (ENDED, 0)


def test_a_rank_that_is_gone_becomes_silent():
    made = exchanges(dist.HashStore(), 2)
    until(lambda: len(made[0].posts) == 2)
    made[1].finish(TRAINING)  # as a killed process: its last word says that it trains
    until(lambda: made[0].standing(stalled=True)["run.rank_silent_seconds{rank=1}"] > 0.3)
    made[0].finish(ENDED)


class Broken:
    """A store whose server is gone."""

    def set(self, key: str, value: bytes) -> None:
        raise RuntimeError("Broken pipe")


class Deaf:
    """A store that does not answer."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def set(self, key: str, value: bytes) -> None:
        self.free.wait(20)


def test_a_broken_store_is_told_once_and_training_goes_on():
    told: list[str] = []
    one = Exchange(Broken(), 1, 2, "test", on_error=told.append, beat=0.02, pause=0.01)
    one.start()
    one.add(Row(1, 1.0, 1.0))
    until(lambda: told)
    one.add(Row(2, 1.0, 1.0))
    one.finish(ENDED)
    assert told == ["ranks are no longer compared: RuntimeError: Broken pipe. Training goes on."]


def test_a_store_that_does_not_answer_delays_no_step_and_hardly_the_end():
    store = Deaf()
    one = Exchange(store, 1, 2, "test", on_error=pytest.fail, beat=0.02, pause=0.01)
    one.start()
    began = time.monotonic()
    for step in range(1000):
        one.add(Row(step, 1.0, 1.0))
    assert not one.finish(ENDED, timeout=0.2)
    assert time.monotonic() - began < 2
    store.free.set()


# ---- the family ----


def test_a_single_process_is_left_alone(tmp_path):
    trainer = tiny.sft(str(tmp_path), max_steps=1)
    hooks = Hooks(VitalsCallback(console=False), trainer, (ranks.install,))
    assert not hooks.gives & ranks.SIGNALS
    assert hooks.at_step_end == hooks.at_finish == []
    hooks.remove()


def test_waiting_is_counted_once_and_only_in_the_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ranks.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(ranks._Ranks, "_start", lambda self: None)
    trainer = SimpleNamespace(model_wrapped=SimpleNamespace(parameters=lambda: iter([]), require_backward_grad_sync=False))
    one = ranks._Ranks(SimpleNamespace(trainer=trainer, wrap=lambda *args, **kwargs: True))

    def passes(seconds: float) -> None:
        now[0] += seconds

    one.enter((), {}), passes(7), one.leave(None, (), {}, 7)  # between steps: an evaluation
    one.before_training_step((), {})
    passes(1)
    one.enter((), {}), passes(1), one.enter((), {}), passes(1), one.leave(None, (), {}, 2), passes(0.5), one.leave(None, (), {}, 2.5)  # one in another
    one.before_backward((), {}), passes(4), one.after_backward(None, (), {}, 4)  # not the last micro-batch: nobody to wait for
    trainer.model_wrapped.require_backward_grad_sync = True
    one.before_backward((), {}), passes(8), one.after_backward(None, (), {}, 8)
    one.after_training_step(ranks.torch.tensor(1.0), (), {}, 15.5)
    assert one._busy_seconds == 15.5
    assert one._waiting_seconds == 2.5 + 8


# ---- real training ----


def healthy(folder: Path, world: int) -> None:
    """A sound run: nobody is named, every rank has records of its own, and rank 0's numbers are those of the ranks."""
    assert {rule for rule, _ in fired(folder)} <= HARMLESS
    for rank in range(world):
        found = records(folder, rank)
        assert [(found[0]["kind"], found[0]["rank"]), found[-1]["kind"], found[-1]["status"]] == [("run_start", rank), "run_end", "completed"]
        told = series(folder, 0, f"optim.rank_loss{{rank={rank}}}")
        assert len(told) >= 3
        if rank:
            own = series(folder, rank, "optim.loss_raw")
            places = [own.index(loss) for loss in told]  # told a step or a few late, in order, each at most once
            assert places == sorted(set(places))
        assert set(series(folder, 0, f"optim.rank_weight_drift{{rank={rank}}}")) <= {0.0}
    together = series(folder, 0, "optim.loss_raw")[1:]  # after its own first one: what the ranks made of each step, a step or a few late
    everybody = [loss for rank in range(1, world) for loss in series(folder, rank, "optim.loss_raw")]
    assert 3 <= len(together) <= 30
    assert statistics.fmean(together[-3:]) == pytest.approx(statistics.fmean(everybody[-3:]), rel=0.2)
    norms = {record["step"]: record["values"] for record in records(folder, 0) if record.get("event") == "frame" and record["closes"]}
    assert len(norms) == 30
    assert all(values["optim.grad_norm_step"] == pytest.approx(values["optim.grad_norm"]) for values in norms.values())
    assert norms[1]["optim.grad_norm"] == pytest.approx(FIRST_NORM, abs=1e-4)  # the same batch and weights under DDP, FSDP and ZeRO
    assert not any("{rank=" in key for record in records(folder, 1) if "values" in record for key in record["values"])


def killed(folder: Path) -> None:
    """One rank got SIGKILL at its tenth step: what it wrote is whole, and the other one said goodbye."""
    gone, left = records(folder, 1), records(folder, 0)
    assert max(record["step"] or 0 for record in gone) == 9
    assert "run_end" not in {record["kind"] for record in gone}
    assert left[-1]["kind"] == "run_end"
    assert left[-1]["status"] in {"failed", "killed"}


def slow_rewards(folder: Path) -> None:
    """GRPO, where ranks meet in a function that the trainer's module imported: the rank whose reward function sleeps is named."""
    assert ("slow-rank", "1") in fired(folder)
    assert ("slow-rank", "0") not in fired(folder)
    slow, other = (series(folder, 0, f"time.rank_own_seconds{{rank={rank}}}") for rank in (1, 0))
    assert statistics.median(slow) - statistics.median(other) == pytest.approx(0.15, abs=0.08)


@pytest.mark.slow
@pytest.mark.alone
def test_ddp_on_two_ranks(tmp_path):
    done = launch(tmp_path, 2, "ddp", "healthy", "no_collectives", "heldout", "accumulate", "only_rank_0", "off", "slow_rewards", "killed")
    assert done.stdout.count("done slow_rewards") == 2, done.stdout[-4000:]
    healthy(tmp_path / "healthy", 2)
    assert len(series(tmp_path / "accumulate", 0, "optim.rank_loss{rank=1}")) > 0
    for folder in ("accumulate", "only_rank_0"):
        assert {rule for rule, _ in fired(tmp_path / folder)} <= HARMLESS
    for folder in ("only_rank_0", "off"):
        assert not any("{rank=" in key for record in records(tmp_path / folder, 0) if "values" in record for key in record["values"])
    slow_rewards(tmp_path / "slow_rewards")
    killed(tmp_path / "killed")


NEEDS_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("mode", ["fsdp1", "fsdp2", pytest.param("zero2", marks=NEEDS_DEEPSPEED), pytest.param("zero3", marks=NEEDS_DEEPSPEED)])
def test_a_model_in_parts_on_two_ranks(mode, tmp_path):
    done = launch(tmp_path, 2, mode, "healthy", "no_collectives", "heldout", "slow1", "nan1", "killed")
    assert done.stdout.count("done nan1") == 2, done.stdout[-4000:]
    healthy(tmp_path / "healthy", 2)
    assert ("slow-rank", "1") in fired(tmp_path / "slow1")
    assert ("slow-rank", "0") not in fired(tmp_path / "slow1")
    assert ("rank-nonfinite", "1") in fired(tmp_path / "nan1")
    assert ("rank-nonfinite", "0") not in fired(tmp_path / "nan1")
    killed(tmp_path / "killed")
