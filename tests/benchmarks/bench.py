"""What watching a run costs, as ratios measured in one process on one machine: `make bench`.

Absolute times say more about the machine than about us, so every cost is divided by something that the reader already pays:
the standard library's `json.dumps` of the same row, TensorBoard's `SummaryWriter` writing the same row, the training step
itself. The sides take turns in short chunks and the median chunk counts, so that a busy moment hits both.

    python tests/benchmarks/bench.py            all of it, prints a table
    python tests/benchmarks/bench.py --write    and writes docs/benchmarks.md
    python tests/benchmarks/bench.py --quick    a minute; fails when a step became dear, or memory grows
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 200
"""Rows per turn: long enough for the clock, short enough that the sides share the machine's moods."""
FIRST = 90
"""Rules that there were to be when the goal was set."""
CEILING = 1.0
"""CI fails when the median chunk of a step costs more than this many times `json.dumps`: a guard against regressions."""
ROOM = 0.15
"""CI fails when the goal of a whole run is missed by more than this: what a busy machine moves it by."""


@dataclass(frozen=True)
class Result:
    """One line of the table; `met` is None where there is no goal."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None
    detail: str = ""
    passes: bool = True
    """Under ``--quick``, what CI asks: a goal, with room for a busy machine."""


def grpo_rows(count: int = 997) -> list[dict[str, float]]:
    """Rows of a healthy GRPO run with 40 metrics under TRL 1.16's names; a prime number of them, to be cycled."""
    random.seed(7)
    rows = []
    for index in range(count):
        wave = random.gauss(0, 1)
        row = {
            "loss": 0.01 + 0.002 * wave, "grad_norm": 0.6 + 0.05 * random.gauss(0, 1), "learning_rate": 1e-6,
            "num_tokens": 1e4 + 4096.0 * index, "completions/mean_length": 180 + 6 * random.gauss(0, 1), "completions/min_length": 41.0,
            "completions/max_length": 256.0, "completions/clipped_ratio": 0.06 + 0.01 * random.random(),
            "completions/mean_terminated_length": 172 + 5 * random.gauss(0, 1), "completions/min_terminated_length": 41.0,
            "completions/max_terminated_length": 250.0, "tools/call_frequency": 0.5, "tools/failure_frequency": 0.02,
            "rewards/correct/mean": 0.55 + 0.03 * random.gauss(0, 1), "rewards/correct/std": 0.42 + 0.01 * random.gauss(0, 1),
            "rewards/format/mean": 0.80 + 0.02 * random.gauss(0, 1), "rewards/format/std": 0.31 + 0.01 * random.gauss(0, 1),
            "rewards/length/mean": 0.10 + 0.01 * random.gauss(0, 1), "rewards/length/std": 0.12 + 0.01 * random.gauss(0, 1),
            "reward": 1.45 + 0.05 * wave, "reward_std": 0.52 + 0.02 * random.gauss(0, 1), "frac_reward_zero_std": 0.2 + 0.05 * random.random(),
            "kl": 0.012 + 0.001 * random.gauss(0, 1), "entropy": 0.82 + 0.02 * random.gauss(0, 1), "clip_ratio/low_mean": 0.0004 + 0.0001 * random.random(),
            "clip_ratio/low_min": 0.0, "clip_ratio/high_mean": 0.0006 + 0.0001 * random.random(), "clip_ratio/high_max": 0.02,
            "clip_ratio/region_mean": 0.001 + 0.0002 * random.random(), "sampling/sampling_logp_difference/mean": 0.011 + 0.001 * random.random(),
            "sampling/sampling_logp_difference/max": 0.4 + 0.1 * random.random(), "sampling/importance_sampling_ratio/min": 0.7,
            "sampling/importance_sampling_ratio/mean": 0.999 + 0.001 * random.random(), "sampling/importance_sampling_ratio/max": 1.4,
            "step_time": 6.0 + 0.2 * random.gauss(0, 1), "epoch": 0.001 * index, "advantages/mean": 0.0, "advantages/std": 0.98,
            "policy/ratio_mean": 1.0 + 0.001 * random.gauss(0, 1), "aux_loss": 0.01,
        }  # fmt: skip
        rows.append(row)
    assert len(rows[0]) == 40
    return rows


class Ours:
    """The whole way of a logged row in a run: name table, bus, engine with every stable rule."""

    def __init__(self, first: int | None = None) -> None:
        """With every stable rule, or with the `first` so many by code, which is the order in which they were written."""
        from trainvitals import events, items
        from trainvitals.bus import SignalBus
        from trainvitals.engine import Engine
        from trainvitals.names import Mapper
        from trainvitals.rulelang.loader import load_rules

        self.mapper = Mapper("grpo")
        rules = load_rules()
        some = {rule.id for rule in sorted(rules, key=lambda rule: rule.code)[:first]}
        self.engine = Engine(replace(rules, rules=tuple(rule for rule in rules if rule.id in some)))
        self.bus = SignalBus(on_error=self._failed)
        self.found: list[Any] = []
        self.bus.subscribe("engine", self._observe)
        config = {"num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-6, "beta": 0.01,
                  "epsilon": 0.2, "max_completion_length": 256, "temperature": 1.0, "num_iterations": 2, "max_grad_norm": 1.0}  # fmt: skip
        emits = frozenset(events.split_label(key)[0] for key in self.mapper.frame(grpo_rows(1)[0], step=0).values)
        start = items.RunStart(
            "bench", trainer="grpo", framework="trl", config=config, total_steps=1_000_000, time=0.0, emits=emits
        )
        self.bus.publish(start)
        self.step = 0

    def _observe(self, item: Any) -> None:
        self.found += self.engine.observe(item)

    def _failed(self, name: str, error: Exception) -> None:
        raise error

    def feed(self, row: dict[str, float]) -> None:
        """One logged step."""
        self.step += 1
        self.bus.publish(self.mapper.frame(row, step=self.step, time=6.0 * self.step))


def timed(action: Callable[[dict[str, float]], object], rows: list[dict[str, float]]) -> float:
    """Seconds per row."""
    begin = time.perf_counter()
    for row in rows:
        action(row)
    return (time.perf_counter() - begin) / len(rows)


def chunks(rows: list[dict[str, float]]) -> Iterator[list[dict[str, float]]]:
    """Endless chunks of `CHUNK` rows, cycling."""
    place = 0
    while True:
        yield [rows[(place + i) % len(rows)] for i in range(CHUNK)]
        place += CHUNK


def step_cost(quick: bool) -> list[Result]:
    """One logged step with every stable rule, against json.dumps and SummaryWriter, early and late in a run."""
    from torch.utils.tensorboard import SummaryWriter

    ours, supply, cost, dumps, board = Ours(), chunks(grpo_rows()), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)

        def write(row: dict[str, float]) -> float:
            writer.flush()  # its thread is idle when a step is logged, as between two steps of a run
            begin = time.perf_counter()
            for key, value in row.items():
                writer.add_scalar(key, value, ours.step)
            return time.perf_counter() - begin

        gc.collect()
        timed(ours.feed, next(supply)[:100])  # windows fill, plans are cached
        last = 20_000 if quick else 100_000
        while ours.step < last:
            turn = next(supply)
            dumps.append(timed(json.dumps, turn))
            cost.append(timed(ours.feed, turn))
            if len(cost) % (last // 2_000) == 1:
                board.append(statistics.median(write(row) for row in turn[:20]))
        writer.close()
    # Each chunk is divided by the json.dumps right before it: a machine that slows down meanwhile slows both.
    ratios = [mine / text for mine, text in zip(cost, dumps, strict=True)]
    tenth = max(5, len(ratios) // 10)
    early, late, ratio = (statistics.median(part) for part in (ratios[:tenth], ratios[-tenth:], ratios))
    mine, text = statistics.median(cost), statistics.median(dumps)
    # Some work falls due every thousand rows, in one chunk of five, so the whole run is divided, not its median chunk.
    whole = sum(cost) / sum(dumps)
    tb = min(board)  # its writer thread makes it vary a lot: the cheapest turn is the fairest opponent
    count = len(ours.engine.coverage().rules)
    note = f"median chunk {ratio:.2f}: {mine * 1e6:.1f} us a row against {text * 1e6:.1f} us; {sum(f.kind == 'finding' for f in ours.found)} findings"
    return [
        Result(f"one logged step of 40 metrics, {count} rules / `json.dumps` of the row", f"{whole:.2f}", "< 1.00", whole < 1, note, ratio < CEILING and whole < 1 + ROOM),
        fewer_rules(last),
        Result("one logged step, all rules / TensorBoard `SummaryWriter` for the row", f"1/{tb / mine:.0f}", "< 1/50", mine / tb < 1 / 50, f"SummaryWriter takes {tb * 1e6:.0f} us", True),
        Result(f"cost at rows up to {last:,} / cost at rows from 100", f"{late / early:.2f}", "0.80 to 1.25", 0.8 < late / early < 1.25, f"{early:.2f}, then {late:.2f} times json.dumps", late / early < 1.5),
    ]  # fmt: skip


def fewer_rules(last: int) -> Result:
    """The same with as many rules as the goal was set for."""
    ours, supply, cost, dumps = Ours(FIRST), chunks(grpo_rows()), 0.0, 0.0
    timed(ours.feed, next(supply)[:100])
    while ours.step < last:
        turn = next(supply)
        dumps += timed(json.dumps, turn)
        cost += timed(ours.feed, turn)
    return Result(f"the same with the first {FIRST} rules, for which the goal was set", f"{cost / dumps:.2f}", "< 1.00", cost < dumps, "", cost < dumps)


def resident() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(quick: bool) -> list[Result]:
    """Resident memory late in a run against early, in a process of its own."""
    late = 100_000 if quick else 1_000_000
    done = subprocess.run([sys.executable, __file__, "--memory", str(late)], capture_output=True, text=True, check=True)
    first, last = json.loads(done.stdout)
    what = f"memory after {late:,} steps minus after 10,000"
    return [
        Result(what, f"{last - first:+.1f} MiB", "within 5 MiB", abs(last - first) < 5, f"{first:.0f} MiB, then {last:.0f} MiB")
    ]


def memory_child(late: int) -> None:
    """Print resident MiB after 10,000 and after `late` steps."""
    ours, supply, seen = Ours(), chunks(grpo_rows()), []
    for stop in (10_000, late):
        while ours.step < stop:
            for row in next(supply):
                ours.feed(row)
        seen.append(resident())
    print(json.dumps(seen))


def check_speed(quick: bool) -> list[Result]:
    """Rows per second of `trainvitals check` on a long log, the process's start included."""
    count = 10_000 if quick else 100_000
    rows = grpo_rows()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        with log.open("w") as out:
            for step in range(count):
                out.write(json.dumps({"step": step + 1, **rows[step % len(rows)]}) + "\n")
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "trainvitals", "check", str(log)], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
    size = f"{count / seconds:,.0f} rows/s"
    return [Result(f"`trainvitals check` on a {count:,}-row log", size, "", None, f"{seconds:.1f} s, exit {done.returncode}")]


def import_time() -> list[Result]:
    """Time from nothing to a parsed command line, against an empty interpreter."""
    ours, bare, loads = [], [], []
    for _ in range(7):
        for command, times in (
            (["-c", "pass"], bare),
            (["-c", "import trainvitals.cli"], loads),
            (["-m", "trainvitals", "--help"], ours),
        ):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - begin)
    base, load, full = statistics.median(bare), statistics.median(loads), statistics.median(ours)
    return [
        Result(
            "`trainvitals --help` / an empty Python",
            f"{full / base:.1f}",
            "",
            None,
            f"{full * 1e3:.0f} ms against {base * 1e3:.0f} ms",
        ),
        Result("`import trainvitals.cli`", f"{(load - base) * 1e3:.0f} ms", "", None, "on top of the interpreter"),
    ]


def training(quick: bool) -> Iterator[Result]:
    """CPU time of a step of real training with and without `attach`, for every trainer of the suite; quick: GRPO alone, for a few seconds."""
    from tests.benchmarks.training import costs

    for cost in costs(["grpo"], seconds=4.0, rounds=6) if quick else costs([]):
        (low, high), (least, most) = cost.ratio.interval, cost.noise.interval
        note = (
            f"95%: {low:.3f} to {high:.3f}; without / without {cost.noise.middle:.3f} ({least:.3f} to {most:.3f}), quartiles {cost.noise.quartiles[0]:.3f} to"
            f" {cost.noise.quartiles[1]:.3f}{', so within noise' if cost.within_noise else ''}; a step takes {cost.plain * 1e3:.1f} ms, {cost.more.middle * 1e3:+.2f} ms with"
            f" attach, of which own time {cost.own * 1e3:.2f} ms; {cost.rounds} rounds. Own time of a step of 1 s: {cost.own:.2%}"
        )
        yield Result(f"CPU time of a step of {cost.trainer} with `attach` / without", f"{cost.ratio.middle:.3f}", "", None, note)


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    mark = {True: "met", False: "**missed**", None: ""}
    rows = [
        ("what", "result", "goal", "", "detail"),
        ("---",) * 5,
        *((r.what, r.value, r.goal, mark[r.met], r.detail) for r in results),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


PAGE = """# Benchmarks

Written by `make bench`. Costs are ratios measured in one run on one machine, because absolute times say more about the
machine than about the tool: the sides take turns in chunks of 200 rows. Of a whole run (the first two lines) the sums are divided, elsewhere the median chunk counts.

{table}
Measured with Python {python}, {cores} cores, {when}. A goal that was missed says so.

How each is measured is in `tests/benchmarks/bench.py`. The cost of a step is the whole way of a row: the name table, the
bus, the windows and every stable rule; in its first hundreds of updates a run has no proofs yet and a row costs more (docs/decisions/0010). Writing the JSONL record is not in it, nor is it in the other two. `check` and
`--help` include starting Python. The trainings are of two-layer models on a CPU, where a step takes some tens of
milliseconds: the least favourable case for us, since our time per step (own time: hooks, callback, records, rules) hardly depends on
the model: `sft, 24 layers` has twelve times the matrices of `sft`. Within one training, blocks of {block} steps take turns: with our callback and wraps, without
them, and without them again, in all six orders. The ratio is the median over the rounds, with a 95 % bootstrap interval; *without / without* is
the same code twice and so the noise; *within noise* means that the ratio lies between its quartiles, that is, a single block could not tell. The share of a
step of 1 s is extrapolated: own time here over one second, the order of a real step on a GPU. `python -m tests.benchmarks.training dpo` measures one trainer.

## Wider models

Models eight times as wide (`python -m tests.benchmarks.training --width 512`, in its own words; measured apart on {wide_when}, kept in
`tests/benchmarks/wide.txt`). A step takes some tenths of a second, still far less than a real one; our own time is nearly what it was.

```text
{wide}```

The two that a block could tell there, sixteen times as wide (``--width 1024``, {wider_when}, `tests/benchmarks/wider.txt`):

```text
{wider}```
"""


def main() -> int:
    """Run, print, and under ``--quick`` fail when a goal that must always hold is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; exit 1 when a goal is missed")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--no-training", action="store_true", help="leave out the real training run")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        memory_child(args.memory)
        return 0
    parts: list[Callable[[], Iterable[Result]]] = [
        lambda: step_cost(args.quick),
        lambda: memory(args.quick),
        lambda: check_speed(args.quick),
        import_time,
    ]
    if not args.no_training:
        parts.append(lambda: training(args.quick))
    results: list[Result] = []
    for part in parts:
        for result in part():
            results.append(result)
            verdict = {True: "goal met", False: "GOAL MISSED", None: ""}[result.met]
            print(f"{result.what:<78} {result.value:>16}  {result.goal:<14} {verdict:<12} {result.detail}", flush=True)
    if args.write and not args.quick:
        from tests.benchmarks.training import BLOCK

        (wide_when, _, wide), (wider_when, _, wider) = ((ROOT / "tests" / "benchmarks" / name).read_text().partition("\n") for name in ("wide.txt", "wider.txt"))
        page = PAGE.format(
            wide=wide, wide_when=wide_when, wider=wider, wider_when=wider_when, table=table(results), python=platform.python_version(), cores=os.cpu_count(), when=time.strftime("%Y-%m-%d"), block=BLOCK
        )
        (ROOT / "docs" / "benchmarks.md").write_text(page)
        print("wrote docs/benchmarks.md")
    return 1 if args.quick and not all(result.passes for result in results) else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
