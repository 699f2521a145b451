"""The other commands: explain, signals, rules, schema, demo, doctor, and the frame around them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from conftest import Run, rows, write

import trainvitals.cli.common
import trainvitals.cli.demo
import trainvitals.cli.doctor
import trainvitals.cli.explain
import trainvitals.cli.rules
import trainvitals.cli.schema
import trainvitals.cli.signals
from trainvitals.cli import COMMANDS
from trainvitals.rulelang.confidence import Measured
from trainvitals.rulelang.loader import load_rules

ROOT = Path(__file__).resolve().parents[2]


def test_no_arguments_print_short_help(run: Run) -> None:
    done = run()
    assert done.code == 0
    assert "trainvitals check PATH" in done.out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_help(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert done.code == 0
    assert "usage: trainvitals" in done.out


def test_an_unknown_command_names_the_nearest(run: Run) -> None:
    done = run("chek", "x")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'check'?" in done.err


def test_wrong_options_are_usage_errors(run: Run) -> None:
    assert run("check").code == 2
    assert run("check", "x", "--nope").code == 2
    assert run("--nope").code == 2
    assert run("explain", "RWD001", "--at", "5").code == 2


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("trainvitals 0")


def test_explain_is_a_page(run: Run) -> None:
    for name in ("advantage-collapse", "RWD001", "rwd001"):
        done = run("explain", name)
        assert done.code == 0
        assert "The reward spread inside prompt groups has collapsed" in done.out
    for part in (
        "fires when",
        "near_zero = ",
        "reads",
        "reward.group_std_mean (reward)",
        "what to do",
        "when it is wrong",
        "references",
    ):
        assert part in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 100


def test_explain_shows_how_often_the_rule_was_right() -> None:
    rule = load_rules().by_id["hidden-nan"]
    seen = Measured("x", 40, 6000, 1, 2, 0, 10, 9, 30, 10, 0.95, 0.764, 0.991, "a test")
    text = "\n".join(trainvitals.cli.explain.page(replace(rule, measured=seen, confidence=seen.confidence)))
    for part in (
        "fired in 1 of 40 [0% to 13%]; 0.33 [0.04 to 1.20] firings",
        "its fault: fired in 9 of 10 [60% to 98%]",
        "other faults: fired in 10 of 30, as a symptom",
        "the run was sick: 19 of 20 [76% to 99%]",
        "measured on: a test",
    ):
        assert part in text
    assert "never measured in this form" in "\n".join(trainvitals.cli.explain.page(replace(rule, measured=None)))


def test_explain_shows_the_values_of_a_step(run: Run, sick: Path) -> None:
    out = run("explain", "reward-collapse", "--run", sick, "--at", 50).out
    assert "at step 50" in out
    assert "reward.mean: 0.602 (step 50)" in out
    assert "firing" not in out.split("at step 50")[1]
    assert ": firing: " in run("explain", "reward-collapse", "--run", sick).out


def test_explain_names_the_nearest_rule(run: Run) -> None:
    done = run("explain", "reward-colapse")
    assert done.code == 2
    assert "did you mean 'reward-collapse'?" in done.err


def test_signals_of_a_log(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [{**row, "mystery": 1.0} for row in rows(50)])
    done = run("signals", path)
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if line.startswith("policy.kl_ref "))
    assert line.split(maxsplit=5) == ["policy.kl_ref", "kl", "50", "1", "50", "nats per token; k3 estimate to the reference; only with beta != 0"]
    assert "unknown names: mystery" in done.out
    assert "memory.vram_used_fraction <- the callback" in done.out
    assert "sampler.logp_difference_mean <- sampling/sampling_logp_difference/mean" in done.out
    document = json.loads(run("signals", path, "-f", "json").out)
    found = next(row for row in document["signals"] if row["signal"] == "policy.kl_ref")
    assert (found["raw"], found["points"], found["first_step"], found["last_step"]) == ("kl", 50, 1, 50)
    assert (found["unit"], found["per"], found["sign"]) == ("nats", "token", 1)
    assert document["unknown"] == ["mystery"]


def test_signals_says_how_a_number_was_turned_and_scaled(run: Run, tmp_path: Path) -> None:
    orpo = [{"step": n, "loss": 1.0, "log_odds_ratio": -0.6, "nll_loss": 1.0, "logps/chosen": -1.5, "rewards/accuracies": 0.5} for n in range(1, 9)]
    found = {row["raw"]: row for row in json.loads(run("signals", write(tmp_path / "orpo.jsonl", orpo), "-f", "json").out)["signals"]}
    assert (found["log_odds_ratio"]["signal"], found["log_odds_ratio"]["read_as"], found["log_odds_ratio"]["sign"]) == ("preference.odds_loss", "minus loss", -1)
    assert (found["logps/chosen"]["signal"], found["logps/chosen"]["per"]) == ("preference.logp_token_chosen", "token")
    old = [{"step": n, "reward": 0.5, "reward_std": 0.1, "rewards/a/mean": 0.5, "rewards/a/std": 0.4} for n in range(1, 9)]
    found = {row["raw"]: row for row in json.loads(run("signals", write(tmp_path / "old.jsonl", old), "-f", "json").out)["signals"]}
    assert found["reward_std"]["signal"] == "reward.group_std_mean"
    verl = [{"step": n, "actor/pg_loss": 0.1, "critic/score/mean": 0.5, "perf/max_memory_allocated_gb": 2.0} for n in range(1, 9)]
    found = {row["raw"]: row for row in json.loads(run("signals", write(tmp_path / "verl.jsonl", verl), "-f", "json").out)["signals"]}
    assert (found["perf/max_memory_allocated_gb"]["unit"], found["perf/max_memory_allocated_gb"]["scale"]) == ("GiB", 1024**3)


def test_signals_of_a_log_that_nobody_knows_is_3(run: Run, tmp_path: Path) -> None:
    assert run("signals", write(tmp_path / "odd.jsonl", [{"step": n, "foo": 1.0} for n in range(9)])).code == 3


def test_the_catalogue(run: Run) -> None:
    done = run("signals")
    assert done.code == 0
    assert "policy.kl_ref " in done.out
    assert all(json.loads(line)["unit"] for line in run("signals", "-f", "json").out.splitlines())


def test_rules_list(run: Run) -> None:
    assert any(line.startswith("RWD001  advantage-collapse ") for line in run("rules", "list").out.splitlines())
    assert {json.loads(line)["status"] for line in run("rules", "list", "-f", "json").out.splitlines()} == {"stable"}


def test_rules_check(run: Run, tmp_path: Path) -> None:
    done = run("rules", "check")
    assert (done.code, done.err) == (0, "")
    assert "rules, no " in done.out
    assert run("rules", "check", tmp_path / "no").code == 2
    assert run("rules", "check", tmp_path).code == 2


def test_rules_test_counts_and_fails(run: Run, tmp_path: Path) -> None:
    stable = ROOT / "rules" / "stable"
    done = run("rules", "test", stable / "reward-collapse.yaml")
    assert done.code == 0
    assert " cases passed, 0 failed" in done.out
    for name in ("nonfinite-loss.yaml", "nonfinite-loss.test.yaml"):
        (tmp_path / name).write_text((stable / name).read_text())
    cases = (tmp_path / "nonfinite-loss.test.yaml").read_text().replace("never: firing", "always: firing")
    assert "always: firing" in cases
    (tmp_path / "nonfinite-loss.test.yaml").write_text(cases)
    done = run("rules", "test", tmp_path)
    assert done.code == 1
    assert "FAIL nonfinite-loss: " in done.out


def test_rules_mutate_counts(run: Run) -> None:
    done = run("rules", "mutate", ROOT / "rules" / "stable" / "nonfinite-loss.yaml")
    assert done.code in (0, 1)
    assert " mutants: " in done.out
    assert " killed" in done.out


@pytest.mark.parametrize("name", ["record", "event", "rule", "rule-test"])
def test_schema_prints_a_valid_schema(run: Run, name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(run("schema", name).out))


def test_demo_without_torch_names_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("trainvitals.integrations.")]:
        monkeypatch.delitem(sys.modules, name)
    done = run("demo")
    assert done.code == 2
    assert "pip install 'trainvitals[trl]'" in done.err


def test_doctor_looks_at_everything(run: Run, tmp_path: Path) -> None:
    done = run("doctor", "--dir", tmp_path)
    for word in ("Python", "torch", "transformers", "nvidia-ml-py", "logging_nan_inf_filter", "rules load", "can write"):
        assert word in done.out
    assert all(line.split()[0] in ("ok", "note", "bad") for line in done.out.splitlines())
    (tmp_path / "file").write_text("")
    bad = run("doctor", "--dir", tmp_path / "file")
    assert bad.code == 1
    assert "cannot write" in bad.out


def test_doctor_warns_of_the_pynvml_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainvitals.cli.doctor.version_of
    monkeypatch.setattr(trainvitals.cli.doctor, "version_of", lambda name: "13.0.1" if name == "pynvml" else real(name))
    assert any(mark == "bad" and "pip uninstall pynvml" in text for mark, text in trainvitals.cli.doctor.looks("."))


def test_a_bug_of_ours_is_5_and_short(run: Run, monkeypatch: pytest.MonkeyPatch, sick: Path) -> None:
    monkeypatch.setattr(trainvitals.cli.common, "load_ruleset", lambda options: 1 / 0)
    monkeypatch.delenv("TRAINVITALS_DEBUG", raising=False)
    done = run("check", sick)
    assert done.code == 5
    assert "internal error: ZeroDivisionError" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("TRAINVITALS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("check", sick)


def test_ctrl_c_is_130(run: Run, monkeypatch: pytest.MonkeyPatch, sick: Path) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainvitals.cli.common, "load_ruleset", interrupted)
    assert run("check", sick).code == 130


def test_a_reader_that_goes_away_is_no_traceback(sick: Path) -> None:
    command = f"{sys.executable} -m trainvitals signals -f json | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
    json.loads(done.stdout)


def test_data_and_words_keep_apart(sick: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainvitals", "check", str(sick), "-f", "jsonl"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert all(json.loads(line) for line in done.stdout.splitlines())
    done = subprocess.run(
        [sys.executable, "-m", "trainvitals", "check", str(tmp_path / "no")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "help: " in done.stderr
