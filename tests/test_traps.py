"""Each trap here was a real bug of another tool (or of the first sketch of this one). Named after what went wrong there."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainvitals import Monitor, RunStart, __version__
from trainvitals.cli import main
from trainvitals.items import Boundary, Frame
from trainvitals.names import Mapper
from trainvitals.rulelang.errors import RuleError

ROOT = Path(__file__).resolve().parents[1]


def grpo_row(step: int, **changes: float) -> dict[str, float]:
    """A healthy row under TRL's names."""
    wave = 0.03 * math.sin(step * 1.7)
    row = {"loss": 0.01 + wave / 10, "grad_norm": 0.5 + wave, "learning_rate": 1e-6, "reward": 0.2 + step / 800 + wave, "reward_std": 0.4,
           "frac_reward_zero_std": 0.2, "entropy": 0.8 + wave, "completions/mean_length": 120 + 100 * wave,
           "completions/clipped_ratio": 0.02, "kl": 0.01 + wave / 10}  # fmt: skip
    return {**row, **changes}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A metrics JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What a monitor wrote, read strictly: a bare NaN is an error."""

    def refuse(word: str) -> float:
        raise AssertionError(f"bare {word} in JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "vitals" / f"rank{rank}.jsonl").read_text().splitlines()]


def firings(found: Iterable[dict[str, Any]]) -> list[str]:
    """Ids of the rules that opened."""
    return [record["rule"]["id"] for record in found if record["kind"] == "finding" and record["state"] == "firing"]


@pytest.mark.trl
def test_two_line_attach_that_records_nothing(tmp_path: Path) -> None:
    """Attach and train: every step is recorded, without any further call."""
    from trainvitals import attach
    from trainvitals.integrations import tiny

    trainer = tiny.grpo(str(tmp_path), max_steps=3)
    attach(trainer, console=False)
    trainer.train()
    found = records(tmp_path)
    assert found[0]["kind"] == "run_start"
    assert found[-1]["kind"] == "run_end"
    steps = {
        record["step"] for record in found if record["kind"] == "signal" and "optim.grad_norm_step" in record.get("values", {})
    }
    assert steps >= {1, 2, 3}


@pytest.mark.trl
def test_callback_that_is_no_trainer_callback() -> None:
    """The callback is a TrainerCallback, and none of its methods is shadowed by the base's empty one."""
    from transformers import TrainerCallback

    from trainvitals import VitalsCallback

    assert issubclass(VitalsCallback, TrainerCallback)
    for name in ("on_train_begin", "on_step_end", "on_log", "on_train_end", "on_save"):
        assert getattr(VitalsCallback, name) is not getattr(TrainerCallback, name), name


def test_exception_out_of_a_call() -> None:
    """A metric that is no number, a step that is no step, a subscriber that raises: none reaches the training loop."""

    def broken(item: Any) -> None:
        raise RuntimeError("a bug of ours")

    out = io.StringIO()
    with Monitor(console=out) as monitor:
        monitor.bus.subscribe("broken", broken)
        monitor.log(1, {"loss": object(), "reward": "not a number", "kl": [1, 2]})
        monitor.log(2, grpo_row(2))
        monitor.log("three", grpo_row(3))  # type: ignore[arg-type]
        monitor.log(4, grpo_row(4))
    assert monitor.step == 4
    assert out.getvalue().count("a bug of ours") == 1


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, str])
def test_numpy_scalars(tmp_path: Path, kind: Any) -> None:
    """Numbers of any kind are numbers, in the rules and in the record."""
    with Monitor(output_dir=tmp_path, console=False, fail_soft=False) as monitor:
        monitor.log(1, {"grad_norm": kind(3)})
    values = next(record["values"] for record in records(tmp_path) if record["kind"] == "signal")
    assert values["optim.grad_norm"] == 3


def test_call_after_close(tmp_path: Path) -> None:
    """Late calls do nothing and closing twice writes one end."""
    monitor = Monitor(output_dir=tmp_path, console=False, fail_soft=False)
    monitor.log(1, grpo_row(1))
    monitor.close()
    size = (tmp_path / "vitals" / "rank0.jsonl").stat().st_size
    monitor.log(2, grpo_row(2))
    monitor.boundary("epoch", 2)
    monitor.close()
    assert (tmp_path / "vitals" / "rank0.jsonl").stat().st_size == size
    assert [record["kind"] for record in records(tmp_path)].count("run_end") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules:\n  - {id: advantage-colapse, disable: true, reason: typo}\n", "advantage-collapse"),
        ("rules:\n  - {id: advantage-collapse, params: {near_zer: 0.1}, reason: typo}\n", "near_zero"),
        ("rules:\n  - {id: advantage-collapse, params: {near_zero: '0.1'}, reason: a text}\n", "number"),
        ("rules:\n  - {id: advantage-collapse, disable: true}\n", "reason"),
    ],
)
def test_misspelt_or_mistyped_config(tmp_path: Path, text: str, said: str) -> None:
    """It is told at once, with its place and what was meant; it is never ignored."""
    path = tmp_path / "overrides.yaml"
    path.write_text(text)
    with pytest.raises(RuleError) as caught:
        Monitor(overrides=[path], console=False)
    words = "\n".join(problem.render() for problem in caught.value.problems)
    assert said in words
    assert re.search(r"overrides\.yaml:2:\d+ ", words)


def test_misspelt_argument() -> None:
    """A keyword that does not exist is an error, not a setting without effect."""
    with pytest.raises(TypeError):
        Monitor(overide=[])  # type: ignore[call-arg]


def test_secrets_in_the_run_record(tmp_path: Path) -> None:
    """Tokens and keys of the configuration are not written."""
    secret = "hf_" + "a1B2" * 8
    config = {"hub_token": secret, "api_key": secret, "report_to": "none", "learning_rate": 1e-6, "hub_model_id": f"me/{secret}"}
    with Monitor(output_dir=tmp_path, console=False, run=RunStart("r", config=config)) as monitor:
        monitor.log(1, grpo_row(1))
    text = (tmp_path / "vitals" / "rank0.jsonl").read_text()
    assert secret not in text
    assert records(tmp_path)[0]["config"]["learning_rate"] == 1e-6


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_bare_nan_in_json(tmp_path: Path, word: str) -> None:
    """A value that is not finite is written in strict JSON and read back as it was."""
    with Monitor(output_dir=tmp_path, console=False) as monitor:
        monitor.log(1, grpo_row(1, grad_norm=float(word)))
    values = next(record["values"] for record in records(tmp_path) if record["kind"] == "signal")
    assert values["optim.grad_norm"] == {"value": None, "nonfinite": word}
    from trainvitals.readers import read

    frame = next(item for item in read(tmp_path / "vitals" / "rank0.jsonl").items if isinstance(item, Frame))
    assert str(frame.values["optim.grad_norm"]) == word


def test_torn_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that was cut off by a crash is said and does not cost the rest."""
    log = write(tmp_path / "log.jsonl", ({"step": step, **grpo_row(step)} for step in range(1, 200)))
    whole = main(["check", str(log)])
    with log.open("a") as out:
        out.write('{"step": 200, "loss": 0.0')
    assert main(["check", str(log)]) == whole == 0
    assert "line 200" in "".join(capsys.readouterr()) or "torn" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 2),
        ("\n\n", 2),
        ('{"step": 1, "my_metric": 1.0}\n{"step": 2, "my_metric": 1.0}\n', 3),
        ('{"step": 1, "loss": 1.0}\n', 3),
        ("hello\nworld\n", 2),
        ("\x00\x01\x02" * 50, 2),
    ],
)
def test_empty_or_unknown_metrics_reported_as_healthy(tmp_path: Path, text: str, code: int) -> None:
    """0 is never the answer to a log that was not understood."""
    log = tmp_path / "log.jsonl"
    log.write_text(text)
    assert main(["check", str(log)]) in (2, 3)
    if code == 2:
        assert main(["check", str(log)]) == 2


def test_closing_summary_row_read_as_a_step(tmp_path: Path) -> None:
    """`train_runtime`, `train_loss` and the like are the end of the run, not one more step."""
    history = [{"step": step, **grpo_row(step)} for step in range(1, 51)]
    history.append({"step": 50, "train_runtime": 100.0, "train_loss": 9e9, "train_samples_per_second": 1.0, "total_flos": 0.0})  # type: ignore[dict-item]
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 50, "max_steps": 50, "log_history": history}))
    from trainvitals.readers import read

    frames = [item for item in read(state).items if isinstance(item, Frame)]
    assert len([frame for frame in frames if "optim.loss" in frame.values]) == 50
    assert max(frame.values.get("optim.loss", 0.0) for frame in frames) < 1


def test_eval_row_counted_as_a_training_row() -> None:
    """A row of an evaluation gives eval signals and no training signal, whatever its metrics are called."""
    mapper = Mapper("grpo")
    mapper.frame(grpo_row(1), step=1)
    frame = mapper.frame({"eval_loss": 5.0, "eval_reward": 0.9, "eval_runtime": 3.0}, step=1)
    assert frame.values
    assert all(key.startswith("eval.") for key in frame.values)
    assert frame.phase == "eval"


def test_windows_in_rows_instead_of_steps(tmp_path: Path) -> None:
    """The same run logged every step and every fifth step gets the same finding at about the same step."""
    onset = {}
    for every in (1, 5):
        monitor = Monitor(console=False, fail_soft=False, run=RunStart("r", trainer="grpo", config={"num_generations": 8}))
        for step in range(every, 401, every):
            flat = step > 200
            changes = {"frac_reward_zero_std": 1.0, "reward_std": 0.0, "reward": 0.0} if flat else {}
            monitor.log(step, grpo_row(step, **changes), time=float(step))
        monitor.close()
        onset[every] = next(finding.step for finding in monitor.findings if finding.rule.id == "advantage-collapse")
    assert onset[1] is not None
    assert onset[5] is not None
    assert abs(onset[1] - onset[5]) <= 25


def test_accuracy_of_a_reward_model_read_as_a_held_out_score() -> None:
    """Training accuracy is a preference signal; only an evaluation row is held out."""
    mapper = Mapper("reward")
    frame = mapper.frame(
        {"loss": 0.6, "accuracy": 0.99, "margin": 2.0, "min_reward": -1.0, "mean_reward": 0.0, "max_reward": 1.0}, step=1
    )
    assert frame.values["preference.accuracy"] == 0.99
    assert not any(key.startswith("eval.") for key in frame.values)


def test_grpo_loss_fed_to_ratio_tests() -> None:
    """A GRPO loss near zero, of either sign, doubles and flips at every step without meaning anything."""
    random.seed(3)
    monitor = Monitor(console=False, fail_soft=False, run=RunStart("r", trainer="grpo"))
    for step in range(1, 401):
        monitor.log(step, grpo_row(step, loss=random.gauss(0, 1e-3) * (10 if step % 37 == 0 else 1)), time=float(step))
    assert [finding.rule.id for finding in monitor.findings if finding.state == "firing" and "loss" in finding.rule.id] == []


@pytest.mark.parametrize("level", [0.05, 0.3, 2.5])
def test_absolute_entropy_floor(level: float) -> None:
    """A run whose entropy is low, or high, from its beginning is judged by its own baseline."""
    monitor = Monitor(console=False, fail_soft=False, run=RunStart("r", trainer="grpo"))
    for step in range(1, 401):
        monitor.log(step, grpo_row(step, entropy=level * (1 + 0.05 * math.sin(step))), time=float(step))
    assert [finding.rule.id for finding in monitor.findings if finding.state == "firing" and "entropy" in finding.rule.id] == []


def test_module_level_random_state() -> None:
    """Watching a run does not move the random numbers that training draws."""
    random.seed(1)
    np.random.seed(1)
    expected = (random.random(), float(np.random.rand()))
    random.seed(1)
    np.random.seed(1)
    with Monitor(console=False) as monitor:
        for step in range(1, 60):
            monitor.log(step, grpo_row(step))
    assert (random.random(), float(np.random.rand())) == expected


def test_version_constant_that_drifts(tmp_path: Path) -> None:
    """The records, the command line and the package name one version."""
    with Monitor(output_dir=tmp_path, console=False) as monitor:
        monitor.log(1, grpo_row(1))
    said = subprocess.run([sys.executable, "-m", "trainvitals", "--version"], capture_output=True, text=True, check=True).stdout
    assert records(tmp_path)[0]["version"] == __version__
    assert said.strip() == f"trainvitals {__version__}"


def test_several_ranks_speaking(tmp_path: Path) -> None:
    """Every rank records; only rank 0 prints."""
    said = {}
    for rank in (0, 1):
        out = io.StringIO()
        with Monitor(output_dir=tmp_path, console=out, run=RunStart("r", trainer="grpo", rank=rank, world_size=2)) as monitor:
            for step in range(1, 31):
                monitor.log(step, grpo_row(step, **({"grad_norm": math.nan, "loss": 0.0} if step > 20 else {})), time=float(step))
        said[rank] = out.getvalue()
    assert "ERROR" in said[0]
    assert said[1] == ""
    assert firings(records(tmp_path, 0)) == firings(records(tmp_path, 1)) != []


def test_growing_finding_announced_again_and_again(tmp_path: Path) -> None:
    """A fault that lasts, and gets worse, is one line and one opening record."""
    out = io.StringIO()
    with Monitor(output_dir=tmp_path, console=out, run=RunStart("r", trainer="grpo", config={"num_generations": 8})) as monitor:
        for step in range(1, 401):
            dead = {"frac_reward_zero_std": min(1.0, 0.9 + step / 4000), "reward": 0.0, "reward_std": 0.0} if step > 100 else {}
            monitor.log(step, grpo_row(step, **dead), time=float(step))
    found = firings(records(tmp_path))
    assert found.count("advantage-collapse") == 1
    assert len(re.findall(r"WARNING: [^\n]*\(advantage-collapse", out.getvalue())) == 1
    assert len(out.getvalue().splitlines()) < 25


def test_history_scanned_again_at_every_step() -> None:
    """The ten-thousandth step costs what the first ones cost."""
    monitor = Monitor(console=False, run=RunStart("r", trainer="grpo"))

    def cost(first: int) -> float:
        rows = [grpo_row(step) for step in range(first, first + 500)]
        begin = time.perf_counter()
        for step, row in enumerate(rows, first):
            monitor.log(step, row, time=float(step))
        return time.perf_counter() - begin

    cost(1)
    early = min(cost(501), cost(1001))
    for first in range(1501, 9501, 500):
        cost(first)
    late = min(cost(9501), cost(10001))
    assert late < 3 * early


def test_rules_look_away_at_a_legal_jump() -> None:
    """A boundary may be told at any time, before the first step too."""
    with Monitor(console=False, fail_soft=False) as monitor:
        monitor.publish(Boundary(0, "train_begin"))
        monitor.log(1, grpo_row(1))
        monitor.boundary("save_begin", 1)
        monitor.boundary("save_end", 1)
    assert monitor.step == 1
