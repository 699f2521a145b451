"""`trainvitals check`: exit codes, formats, selection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run, rows, write

from trainvitals.cli.check import decide
from trainvitals.cli.report import render
from trainvitals.findings import RECORD

assert decide
assert render


def test_a_sick_run_is_1_and_says_what_to_do(run: Run, sick: Path) -> None:
    done = run("check", sick)
    assert done.code == 1
    assert "ERROR: " in done.out
    assert "Advantage signal has collapsed. Consider revisiting your reward function. (advantage-collapse, step " in done.out
    assert "verdict: collapsed since step " in done.out
    assert "rules evaluated" in done.out.splitlines()[-1]
    assert done.err == ""


def test_a_healthy_run_is_0_and_says_so(run: Run, healthy: Path) -> None:
    done = run("check", healthy)
    assert done.code == 0
    last = done.out.splitlines()[-1]
    assert last.startswith("All ")
    assert "rules passed, " in last
    assert "not evaluated" in last


@pytest.mark.parametrize(("level", "code"), [("info", 1), ("warning", 1), ("error", 0), ("never", 0)])
def test_fail_on(run: Run, sick: Path, level: str, code: int) -> None:
    assert run("check", sick, "--select", "advantage-collapse", "--fail-on", level).code == code


def test_too_little_data_is_3_with_the_reason(run: Run, tmp_path: Path) -> None:
    done = run("check", write(tmp_path / "short.jsonl", rows(3)))
    assert done.code == 3
    assert "could not tell" in done.out.lower()


def test_unknown_metrics_only_is_3_and_names_them(run: Run, tmp_path: Path) -> None:
    done = run("check", write(tmp_path / "odd.jsonl", [{"step": n, "foo": 1.0, "bar": 2.0} for n in range(1, 300)]))
    assert done.code == 3
    assert "no known metric" in done.out
    assert "bar, foo" in done.out


def test_required_signals_and_rules(run: Run, healthy: Path) -> None:
    assert run("check", healthy, "--required", "policy.kl_ref", "--required", "advantage-collapse").code == 0
    done = run("check", healthy, "--required", "eval.score,policy.kl_ref")
    assert done.code == 3
    assert "required and not there: eval.score" in done.out
    done = run("check", healthy, "--required", "eval.scor")
    assert done.code == 2
    assert "did you mean 'eval.score'?" in done.err


def test_jsonl_is_records(run: Run, sick: Path) -> None:
    done = run("check", sick, "-f", "jsonl")
    kinds = []
    for line in done.out.splitlines():
        record = json.loads(line)
        RECORD.validate_python(record)
        kinds.append(record["kind"])
    assert set(kinds) == {"finding", "verdict", "coverage"}
    assert done.code == 1


def test_json_is_one_document(run: Run, sick: Path, healthy: Path) -> None:
    document = json.loads(run("check", sick, healthy, "--format", "json").out)
    assert document["exit_code"] == 1
    assert [entry["exit_code"] for entry in document["runs"]] == [1, 0]
    assert document["runs"][0]["verdict"]["state"] == "collapsed"
    assert document["runs"][0]["run"]["trainer"] == "grpo"
    assert document["runs"][1]["findings"] == []


def test_github_annotations(run: Run, sick: Path) -> None:
    lines = run("check", sick, "-f", "github").out.splitlines()
    assert lines
    assert all(line.startswith(("::error title=", "::warning title=", "::notice title=")) for line in lines)


def test_several_formats_to_files(run: Run, sick: Path, tmp_path: Path) -> None:
    done = run("check", sick, "-f", "github", "-f", f"json={tmp_path}/out.json")
    assert done.out.startswith("::")
    assert json.loads((tmp_path / "out.json").read_text())["exit_code"] == 1
    assert run("check", sick, "-f", "json", "-o", tmp_path / "again.json").out == ""
    assert (tmp_path / "again.json").read_text() == (tmp_path / "out.json").read_text()
    assert run("check", sick, "-f", "json", "-f", "text").code == 2
    assert run("check", sick, "-o", tmp_path / "no" / "folder.txt").code == 2


def test_same_input_same_bytes(run: Run, sick: Path) -> None:
    for name in ("text", "json", "jsonl", "github"):
        assert run("check", sick, "-f", name).out == run("check", sick, "-f", name).out


def test_selection_by_id_code_and_start_of_code(run: Run, sick: Path) -> None:
    def found(*words: str) -> set[str]:
        lines = run("check", sick, "-f", "jsonl", *words).out.splitlines()
        return {
            record["rule"]["code"]
            for record in map(json.loads, lines)
            if record["kind"] == "finding" and record["state"] == "firing"
        }

    everything = found()
    assert "RWD001" in everything
    assert found("--select", "RWD001") == {"RWD001"}
    assert all(code.startswith("RWD") for code in found("--select", "RWD"))
    assert "RWD001" not in found("--ignore", "advantage-collapse")
    assert found("--select", "RWD001", "--ignore", "RWD") == {"RWD001"}
    done = run("check", sick, "--select", "advantage-colapse")
    assert done.code == 2
    assert "did you mean 'advantage-collapse'?" in done.err


def test_severity_hides_and_does_not_change_the_answer(run: Run, sick: Path) -> None:
    done = run("check", sick, "--severity", "error")
    assert done.code == 1
    assert "WARNING" not in done.out


def test_verbose_lists_what_was_not_evaluated(run: Run, healthy: Path) -> None:
    assert "not evaluated: vram-underused (" in run("check", healthy, "-v").out


def test_a_name_of_your_own_can_be_mapped(run: Run, tmp_path: Path) -> None:
    lines = [{("my_reward" if key == "reward" else key): value for key, value in line.items()} for line in rows()]
    path = write(tmp_path / "own.jsonl", lines)
    assert run("check", path, "--select", "reward-collapse").code == 3
    assert run("check", path, "--select", "reward-collapse", "--map", "my_reward=reward.mean").code == 1
    done = run("check", path, "--map", "my_reward=reward.meen")
    assert done.code == 2
    assert "did you mean 'reward.mean'?" in done.err
    assert run("check", path, "--map", "my_reward").code == 2


def test_configuration_from_the_command_line_reaches_the_advice(run: Run, sick: Path) -> None:
    out = run("check", sick, "-f", "jsonl", "--set", "temperature=0.3", "--select", "RWD001").out
    finding = next(record for record in map(json.loads, out.splitlines()) if record["kind"] == "finding")
    action = next(action for action in finding["actions"] if action["parameter"] == "temperature")
    assert (action["from"], action["to"]) == (0.3, 1.0)


def test_the_worst_of_several_logs_counts(run: Run, sick: Path, healthy: Path, tmp_path: Path) -> None:
    assert run("check", healthy, sick).code == 1
    done = run("check", healthy, tmp_path / "nothing.jsonl")
    assert done.code == 2
    assert "nothing.jsonl: no such file" in done.err
    assert "All " in done.out


def test_extra_rules_and_overrides(run: Run, healthy: Path, tmp_path: Path) -> None:
    rule = tmp_path / "too-slow.yaml"
    rule.write_text(
        "id: too-slow\ncode: OPT990\nversion: 1.0.0\ntitle: The rate is small\ncategory: config\nseverity: error\napplies_to: {trainers: any}\n"
        "params:\n  low: {default: 0.00001, unit: rate, range: [0, 1], why: a test}\n"
        'when: optim.learning_rate < low\nmessage: "Rate {optim.learning_rate:num}."\n'
        "docs: {explain: A test., look_first: Nothing., false_positives: [none known], references: [a test]}\n"
    )
    done = run("check", healthy, "--rules", rule)
    assert (done.code, done.err) == (1, "")
    assert "(too-slow, step " in done.out
    assert int(done.out.splitlines()[-1].split(" info. ")[1].split()[0]) > 5  # the built-in rules are still there
    assert run("check", healthy, "--rules", tmp_path / "no.yaml").code == 2
