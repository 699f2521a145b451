"""The same recordings through other tools: rl-doctor, rlprobe, rlwatch, trainpulse, fixed thresholds, "NaN only", silence.

    python -m tests.clinic.ward.peers --install                    make an environment for each tool under .peers/ (once)
    python -m tests.clinic.ward.peers [--peer NAME] [--split dev]  play the recordings, write results/peers.json
                                                                   (what was played before and is unchanged is kept; --again)
    python -m tests.clinic.ward.peers --later                      play those of the later rounds, write results/peers_later.json.xz

Each tool runs in an environment of its own at a pinned version, driven through its own callback or command line
(`peer_workers/`), on rows translated back to what TRL logs (`peer_rows`), one row per update, with its thresholds at their
defaults: what a user gets who follows its README. Only alerts are collected here; `score.py` judges them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.clinic.ward.peer_baselines import BASELINES
from tests.clinic.ward.peer_rows import Run, read_runs
from tests.clinic.ward.record import FOLDER, FOLDERS, LATER_WORDS
from tests.clinic.ward.score import set_aside

from trainvitals.engine import Engine
from trainvitals.findings import Category
from trainvitals.items import RunStart
from trainvitals.names import Mapper
from trainvitals.rulelang.loader import RuleSet, load_rules

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENTS = ROOT / ".peers"
WORKERS = Path(__file__).parent / "peer_workers"
RESULT = Path(__file__).parent / "results" / "peers.json"
RESULT_LATER = RESULT.with_name("peers_later.json.xz")
"""The same of the later rounds, of which no rule had seen anything when they were first scored."""
INSTALL = "python -m tests.clinic.ward.peers --install"
CHUNK = 60
"""Runs between two writings of the result file, and between two lines of progress."""
Tools = dict[str, dict[str, Any]]
"""Name in the results to version, settings, mode, runs and totals."""
LOUD = frozenset({"warning", "warn", "critical", "issue"})
"""Severities, in the tools' own words, that ask a reader to act. The other one is ``info``: in reports, and of rlprobe's step times."""
GROUP = frozenset({"grpo", "rloo", "ppo", "a2po", "async_grpo"})


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        name: Name in the results, ``<tool>`` or ``<tool>-<setup>``; the tool is its environment and its worker.
        requires: Pinned requirements; versions of what they pull in come from constraints.txt.
        modes: What it offers: ``live`` alerts during the run; ``report``: one diagnosis of the finished run, whose alerts
            all carry the last step.
        trainers: Trainers that its documentation speaks of; None: any. It is played on the others too, and marked.
        settings: How it was set up, in words.
    """

    name: str
    requires: tuple[str, ...]
    modes: tuple[str, ...]
    trainers: frozenset[str] | None
    settings: str

    @property
    def tool(self) -> str:
        """The tool whose environment and worker are used."""
        return self.name.partition("-")[0]


TRANSFORMERS = "transformers==5.23.0"
"""For the base class of callbacks; it works without torch."""
PEERS = (
    Peer("rldoctor", ("rldoctor==0.2.0", TRANSFORMERS), ("live", "report"), GROUP,
         "RLDoctorCallback() as in its README (a check every 25 rows from row 60 on, warnings and worse); `rl-doctor diagnose "
         "trainer_state.json` at the end"),
    Peer("rlprobe", ("rlprobe==0.1.0", TRANSFORMERS), ("live", "report"), GROUP,
         "attach(trainer, folder, on_finding=...): the README's one line says nothing during training, on_finding is its switch for "
         "that (a diagnosis every 25 steps); `rlprobe doctor` at the end"),
    Peer("rlwatch", ("rlwatch==0.5.1", TRANSFORMERS), ("live",), GROUP,
         "rlwatch.attach(trainer=trainer), the path its README recommends for TRL; the two lines of its quick start record nothing"),
    Peer("trainpulse", ("trainpulse==0.4.0", TRANSFORMERS), ("live",), None,
         "make_hf_callback(), defaults; the clock that it reads shows recorded step times, where a recording has them"),
)  # fmt: skip

def names_of(peer: Peer) -> dict[str, str]:
    """Mode to name in the results: the tool's own name for ``live``, ``<name>-report`` for a report."""
    return {mode: peer.name if mode == "live" else f"{peer.name}-{mode}" for mode in peer.modes}


_RULES: dict[str, dict[str, tuple[Category, ...]]] = {
    # What a rule of theirs speaks of, in our words. Several words where a rule speaks of several things; any of them counts as
    # right, so a tool is never marked down because its rules are cut differently from ours.
    "rldoctor": {
        "advantage_collapse": ("collapse", "data"),  # zero-variance groups: too hard, too easy, or collapsed
        "clip_saturation": ("ood-drift", "numerics"),
        "entropy_collapse": ("collapse",),
        "gradient_pathology": ("numerics", "stall"),  # spikes and NaN, or a norm that died
        "kl_drift": ("ood-drift",),
        "length_pathology": ("over-optimization", "collapse"),  # length hacking, or truncation
        "plateau": ("stall",),
        "reward_composition": ("over-optimization", "data"),
        "reward_hacking": ("over-optimization",),
    },
    "rlprobe": {
        "KL_BLOWUP": ("ood-drift",),
        "ENTROPY_COLLAPSE": ("collapse",),
        "REWARD_HACK_LENGTH": ("over-optimization",),
        "FORMAT_GAMING": ("over-optimization",),
        "CLIP_SATURATION": ("ood-drift", "numerics"),
        "DEGENERATE_GROUPS": ("collapse", "data"),
        "ADV_COLLAPSE": ("collapse", "stall"),
        "VALUE_DIVERGENCE": ("numerics", "stall"),
        "GRAD_PATHOLOGY": ("numerics",),
        "TRUNCATION_STARVE": ("collapse", "config"),
        "REPETITION_SPIRAL": ("collapse",),
        "REWARD_STD_DEATH": ("collapse", "stall"),
        "REF_POLICY_DRIFT_ASYMMETRY": ("ood-drift", "config"),
        "THROUGHPUT_ROT": ("efficiency",),
    },
    "rlwatch": {
        "entropy_collapse": ("collapse",),
        "kl_explosion": ("ood-drift",),
        "reward_hacking": ("over-optimization",),
        "advantage_variance": ("numerics",),
        "loss_nan": ("numerics",),
        "gradient_norm_spike": ("numerics",),
        "reward_mean_drift": ("over-optimization", "collapse"),  # upwards or downwards
    },
    "trainpulse": {
        "nan_detector": ("numerics",),
        "loss_spike": ("numerics",),
        "gradient": ("numerics", "stall"),  # exploding or vanishing
        "learning_rate": ("config",),
        "plateau": ("stall",),
        "step_time": ("efficiency",),
    },
    "fixed-thresholds": {
        "ExplodingTensor": ("numerics",),
        "VanishingGradient": ("stall", "numerics", "collapse"),  # a gradient of 0 is also what a collapsed advantage leaves
        "WeightUpdateRatio": ("numerics", "config"),
        "LossNotDecreasing": ("stall",),
        "Overfit": ("over-optimization", "data"),
    },
    "nan-only": {"not-finite": ("numerics",)},
    "always-silent": {},
}
CATEGORIES: Mapping[str, Mapping[str, tuple[Category, ...]]] = {
    **_RULES,
    **{name: _RULES[peer.tool] for peer in PEERS for name in names_of(peer).values()},
}
"""Tool (as named in the results) to rule to our categories."""


class MissingEnvironment(Exception):
    """A tool is not installed; the message says what to type."""


def python_of(peer: Peer, environments: Path = ENVIRONMENTS) -> Path:
    """Interpreter of a tool's environment.

    Raises:
        MissingEnvironment: There is none.
    """
    folder = environments / peer.tool
    if not (folder / ".installed").exists():
        raise MissingEnvironment(f"{peer.tool} is not installed under {environments}: `{INSTALL}` makes it")
    return folder / "bin" / "python"


def install(peers: Sequence[Peer], environments: Path = ENVIRONMENTS) -> None:
    """Make an environment for each tool; one that is complete is left alone.

    Raises:
        subprocess.CalledProcessError: pip failed; its message is on stderr.
    """
    for peer in peers:
        folder, wanted = environments / peer.tool, "\n".join(peer.requires)
        mark = folder / ".installed"
        if mark.exists() and mark.read_text() == wanted:
            print(f"{peer.name}: there already", file=sys.stderr)
            continue
        print(f"{peer.tool}: installing {', '.join(peer.requires)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *peer.requires], check=True)
        mark.write_text(wanted)


def in_split(case: str, seed: int, split: str) -> bool:
    """Whether a run belongs to ``dev``, to ``aside``, or to ``all``. Aside is a fault or a seed of the fixed list."""
    aside = set_aside()
    is_aside = case in aside.get("faults", ()) or seed in aside.get("seeds", ())
    return split == "all" or is_aside == (split == "aside")


def as_line(run: Run) -> str:
    """What a worker is told of a run, as one JSON line; numbers that are not finite as Python spells them."""
    rows = [(row.step, row.kind, row.logs, row.seconds) for row in run.rows]
    told = {"run": run.name, "trainer": run.trainer, "config": run.config, "total_steps": run.total_steps, "status": run.status, "rows": rows}
    return json.dumps(told)


def ask(peer: Peer, runs: Sequence[Run], environments: Path = ENVIRONMENTS) -> Iterator[dict[str, Any]]:
    """Play runs through a tool: first its version, then an answer for each run, in order.

    Raises:
        MissingEnvironment: It is not installed.
        RuntimeError: Its worker died; the message has the end of what it wrote to stderr.
    """
    python = python_of(peer, environments)
    with tempfile.TemporaryDirectory() as folder:
        told, noise = Path(folder) / "runs.jsonl", Path(folder) / "noise.txt"
        told.write_text("".join(f"{as_line(run)}\n" for run in runs))
        setup = peer.name.partition("-")[2]
        command = [str(python), str(WORKERS / f"play_{peer.tool}.py"), str(told), *([setup] if setup else [])]
        with noise.open("w") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, cwd=folder) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                yield json.loads(line)
        if worker.returncode:
            raise RuntimeError(f"the worker of {peer.name} ended with {worker.returncode}: ...{noise.read_text()[-1500:]}")


def status_of(peer: Peer, run: Run, errors: Sequence[str]) -> str:
    """``ok``, ``failed`` (it raised), or ``outside``: a trainer that its documentation does not speak of.

    No tool of these refuses a trainer. On one it does not know it stays attached and judges what names it recognises.
    """
    if errors:
        return "failed"
    return "ok" if peer.trainers is None or run.trainer in peer.trainers else "outside"


def fingerprint(run: Run) -> str:
    """Of what a worker is told of a run: an answer is kept as long as this stays the same."""
    return hashlib.sha256(as_line(run).encode()).hexdigest()[:10]


def play(peer: Peer, runs: Sequence[Run], environments: Path = ENVIRONMENTS) -> Tools:
    """Results of one tool, by name in the results: one entry for each of its modes."""
    answers = ask(peer, runs, environments)
    head = next(answers)
    about = {"version": head["version"], "python": head["python"], "settings": peer.settings}
    entries: Tools = {name: {**about, "mode": mode, "runs": {}} for mode, name in names_of(peer).items()}
    for run, answer in zip(runs, answers, strict=True):
        assert answer["run"] == run.name
        for entry in entries.values():
            told = {"status": status_of(peer, run, answer["errors"]), "of": fingerprint(run), "alerts": answer["alerts"].get(entry["mode"], [])}
            if answer["errors"]:
                told["errors"] = answer["errors"]
            if entry["mode"] == "live" and "rows" in answer:
                cost = {"us_per_row": round(1e6 * answer["seconds_per_row"]), "worst_ms": round(1e3 * answer["worst_seconds"], 1)}
                told |= {"rows": answer["rows"], **cost}
            entry["runs"][run.name] = told
    return entries


def baseline(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Results of one of `BASELINES`."""
    played = {}
    for run in runs:
        begin = time.perf_counter()
        alerts = BASELINES[name](run.rows)
        rows = sum(row.kind != "step" for row in run.rows)
        micros = round(1e6 * (time.perf_counter() - begin) / max(1, rows))
        played[run.name] = {"status": "ok", "of": fingerprint(run), "alerts": [list(alert) for alert in alerts], "rows": rows, "us_per_row": micros}
    return {"version": "", "python": "", "settings": (BASELINES[name].__doc__ or "").split("\n")[0], "mode": "live", "runs": played}


@functools.cache
def built_in() -> RuleSet:
    """Our stable rules, read once."""
    return load_rules()


def own_seconds(run: Run) -> list[float]:
    """Seconds of CPU that our name table and engine with all stable rules spend on each row of a run."""
    mapper, engine, spent = Mapper(run.trainer, "trl"), Engine(built_in()), []
    engine.observe(RunStart(run.name, run.trainer, "trl", config=run.config, total_steps=run.total_steps))
    for row in run.rows:
        if row.kind != "step":
            logs = dict(row.logs)
            begin = time.process_time()
            engine.observe(mapper.frame(logs, step=row.step))
            spent.append(time.process_time() - begin)
    return spent


def own_cost(runs: Sequence[Run]) -> dict[str, Any]:
    """What a row costs us, played as the others are, each run in a process forked for it: medians over runs, with the first row and without."""
    built_in()  # the fork inherits it, as a worker's fork inherits the imported tool
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        spent = [seconds for seconds in pool.imap(own_seconds, runs, chunksize=1) if len(seconds) > 1]
    whole, later = ([1e6 * statistics.mean(seconds[start:]) for seconds in spent] for start in (0, 1))
    return {"runs": len(spent), "us_per_row": round(statistics.median(whole)), "us_later": round(statistics.median(later))}


def is_kept(peer: Peer, run: Run, kept: Tools) -> bool:
    """Whether this very run was played through this version and setup before."""
    version = peer.requires[0].partition("==")[2]
    for name in names_of(peer).values():
        tool = kept.get(name, {})
        if (tool.get("version"), tool.get("settings")) != (version, peer.settings) or tool["runs"].get(run.name, {}).get("of") != fingerprint(run):
            return False
    return True


def fresh(tools: Tools, prints: Mapping[str, str]) -> Tools:
    """Tools without their answers about runs that were recorded again since, or are no longer; `prints` are fingerprints by run."""
    return {
        name: {**entry, "runs": {run: answer for run, answer in entry["runs"].items() if prints.get(run) == answer["of"]}} for name, entry in tools.items()
    }


def merged(kept: Tools, played: Tools, recorded: Collection[str]) -> Tools:
    """Old answers with the new ones over them, without those about runs that are recorded no longer; tools in their order."""
    tools = dict(kept)
    for name, entry in played.items():
        old = kept.get(name, {})
        same = (old.get("version"), old.get("settings")) == (entry["version"], entry["settings"])
        still = {run: answer for run, answer in old["runs"].items() if run in recorded} if same else {}
        tools[name] = {**entry, "runs": {**still, **entry["runs"]}}
    return {name: {**tools[name], "totals": totals(tools[name])} for name in CATEGORIES if name in tools}


def totals(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Counts over the runs of one tool, and its mean cost of a row."""
    runs = entry["runs"].values()
    rows = sum(run.get("rows", 0) for run in runs)
    cost = sum(run.get("us_per_row", 0) * run.get("rows", 0) for run in runs)
    rules = Counter(f"{alert[1]} {alert[2]}" for run in runs for alert in run["alerts"])
    return {
        "runs": len(runs), **Counter(run["status"] for run in runs), "runs_with_alerts": sum(bool(run["alerts"]) for run in runs),
        "alerts": sum(rules.values()), "rules": dict(rules.most_common()), "us_per_row": round(cost / rows) if rows else None,
        "worst_ms": max((run.get("worst_ms", 0.0) for run in runs), default=0.0),
    }  # fmt: skip


def write(path: Path, tools: Tools, own: Mapping[str, Any] | None = None) -> None:
    """The result file: one line for the head of a tool and one for each of its runs, so that a change shows as the runs that changed."""
    blocks = []
    for name, entry in tools.items():
        head = json.dumps({key: value for key, value in entry.items() if key != "runs"})[:-1]
        runs = ",\n".join(f"{json.dumps(run)}: {json.dumps(entry['runs'][run], separators=(',', ':'))}" for run in sorted(entry["runs"]))
        blocks.append(f'{json.dumps(name)}: {head}, "runs": {{\n{runs}\n}}}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"log_every": 1, "own": own})[:-1]
    text = (head + ', "tools": {\n' + ",\n".join(blocks) + "\n}}\n").encode()
    path.write_bytes(lzma.compress(text) if path.suffix == ".xz" else text)


def read(path: Path = RESULT) -> dict[str, Any]:
    """The result file. ``["own"]`` is our own cost; ``["tools"][tool]["runs"][run]["alerts"]`` lists ``[step, rule, severity]``, with the claimed onset as a fourth."""
    text = path.read_bytes()
    loaded: dict[str, Any] = json.loads(lzma.decompress(text) if path.suffix == ".xz" else text)
    return loaded


def recorded_in(folders: Sequence[Path]) -> list[Run]:
    """Every run that is recorded in these folders."""
    return [run for folder in folders for path in sorted(folder.glob("*.jsonl.xz")) for run in read_runs(path.name.removesuffix(".jsonl.xz"), folder)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 when every tool that was asked for was played."""
    names = [*(peer.name for peer in PEERS), *BASELINES]
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward.peers", description="The same recordings through other tools.")
    parser.add_argument("--install", action="store_true", help="make the environments and stop")
    parser.add_argument("--recordings", type=Path, action="append", metavar="DIR", help="default: the first round's")
    parser.add_argument("--later", action="store_true", help="the recordings of every later round")
    parser.add_argument("--out", type=Path, metavar="FILE", help="tools that are not played now are kept")
    parser.add_argument("--peer", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--split", choices=("dev", "aside", "all"), default="all")
    parser.add_argument("--again", action="store_true", help="also what was played before")
    parser.add_argument("--own", action="store_true", help="also measure what a row costs us, under the same conditions")
    parser.add_argument("--envs", type=Path, default=ENVIRONMENTS, metavar="DIR", help="where the environments are")
    options = parser.parse_args(argv)
    wanted = options.peer or names
    peers = [peer for peer in PEERS if peer.name in wanted]
    if options.install:
        try:
            install(peers, options.envs)
        except subprocess.CalledProcessError as error:
            print(f"pip ended with {error.returncode}; what it said is above. The command is the same to try again.", file=sys.stderr)
            return 2
        return 0
    folders = options.recordings or ([FOLDERS[word] for word in LATER_WORDS] if options.later else [FOLDER])
    out = options.out or (RESULT_LATER if options.later else RESULT)
    recorded = recorded_in(folders)
    runs = [run for run in recorded if in_split(run.case, run.seed, options.split)]
    if not runs:
        print(f"no recorded runs in {', '.join(map(str, folders))} for split {options.split}", file=sys.stderr)
        return 2
    print(f"{len(runs)} runs of {len({run.case for run in runs})} cases, {sum(len(run.rows) for run in runs)} rows", file=sys.stderr)
    kept = read(out) if out.exists() else {"tools": {}}
    tools, own = fresh(kept["tools"], {run.name: fingerprint(run) for run in recorded}), kept.get("own")
    try:
        for peer in peers:
            python_of(peer, options.envs)  # before an hour of playing, not after
        played = {name: baseline(name, runs) for name in BASELINES if name in wanted}
        tools = merged(tools, played, {run.name for run in recorded})
        for peer in peers:
            new = [run for run in runs if options.again or not is_kept(peer, run, tools)]
            for start in range(0, len(new), CHUNK):
                part = new[start : start + CHUNK]
                print(f"{peer.name}: {start} of {len(new)} runs played", file=sys.stderr)
                tools = merged(tools, play(peer, part, options.envs), {run.name for run in recorded})
                write(out, tools, own)  # an interrupted run goes on where it broke off
    except (MissingEnvironment, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.own:
        own = own_cost(runs[:: max(1, len(runs) // 60)])
    write(out, tools, own)
    for name, entry in tools.items():
        counts = entry["totals"]
        print(f"{name:18} {counts['alerts']:6} alerts in {counts['runs_with_alerts']} of {counts['runs']} runs, {counts.get('failed', 0)} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
