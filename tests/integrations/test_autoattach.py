"""The training process's side of ``trainvitals run``, in this process; tests/cli/test_run_training.py has the whole of it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from trl import SFTTrainer

from trainvitals.cli.run import BOOTSTRAP, read_reports
from trainvitals.integrations import tiny
from trainvitals.integrations.autoattach import Report, before_training, monitor_options
from trainvitals.integrations.transformers import VitalsCallback
from trainvitals.integrations.trl import attach

OPTIONS = {"output_dir": None, "rules": [], "overrides": [], "enable": [], "console": True, "stop_on": None}
RULE = """
id: loss-is-a-number
code: NUM999
version: 1.0.0
title: The loss is a number
category: numerics
severity: error
when: optim.loss_raw > 0
message: "Loss is {optim.loss_raw:.2f}."
docs: {explain: For a test., look_first: here, false_positives: [always], references: [none]}
"""


class Mine(SFTTrainer):
    """A trainer with a ``train`` of its own, which the bootstrap wraps; wrapping TRL's would reach other tests."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, or not at all."""
        if getattr(self, "broken", False):
            raise ValueError("no data")
        return super().train(*args, **kwargs)


def bootstrap() -> Any:
    """The bootstrap as a module, without what it does when Python starts."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", BOOTSTRAP / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what the command would have put in the environment; returns a reader of the reports."""
    (tmp_path / "told").mkdir()

    def options(**changes: Any) -> Any:
        monkeypatch.setenv("TRAINVITALS_RUN", json.dumps({**OPTIONS, **changes}))
        monkeypatch.setenv("TRAINVITALS_RUN_FOLDER", str(tmp_path / "told"))
        return lambda: read_reports(tmp_path / "told")

    return options


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny trainer of a class that the bootstrap has wrapped."""
    monkeypatch.setattr(Mine, "train", Mine.train)  # what the wrap replaces comes back
    module = bootstrap()
    module._wrap_one(Mine, "train")
    made = tiny.sft(str(tmp_path / "out"), max_steps=4)
    made.remove_callback(transformers.PrinterCallback)
    made.__class__ = Mine
    return made


def vitals(trainer: Any) -> list[VitalsCallback]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, VitalsCallback)]


def test_a_trainer_is_attached_when_it_trains(tmp_path, told, trainer, capsys):
    reports = told(output_dir=str(tmp_path / "elsewhere"))
    assert vitals(trainer) == []
    trainer.train()
    (callback,) = vitals(trainer)
    assert callback.hooks is not None
    (report,) = reports()
    records = tmp_path / "elsewhere" / "vitals" / "rank0.jsonl"
    assert (report["trainer"], report["ended"], report["records"]) == ("Mine", "completed", str(records))
    assert '"optim.loss_raw"' in records.read_text()  # which only a hook on the trainer gives
    assert capsys.readouterr().err.count("--- trainvitals") == 1
    trainer.train()
    assert len(vitals(trainer)) == 1
    assert [report["ended"] for report in reports()] == ["completed", "completed"]


def test_a_script_that_attaches_itself_keeps_its_own(tmp_path, told, trainer, capsys):
    reports = told(output_dir=str(tmp_path / "elsewhere"), console=False)
    mine = attach(trainer)
    trainer.train()
    assert vitals(trainer) == [mine]
    assert not (tmp_path / "elsewhere").exists()
    assert [report["ended"] for report in reports()] == ["completed"]
    assert capsys.readouterr().err.count("--- trainvitals") == 1


def test_a_callback_without_hooks_is_left_as_the_user_wanted_it(told, trainer):
    told()
    callback = VitalsCallback(console=False)
    trainer.add_callback(callback)
    trainer.train()
    assert vitals(trainer) == [callback]
    assert callback.hooks is None


def test_a_training_that_fails_prints_its_end_block(told, trainer, capsys, monkeypatch):
    reports = told()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert [report["ended"] for report in reports()] == ["failed"]
    said = capsys.readouterr().err
    assert "\nvitals_verdict: " in said
    assert re.search(r"\nvitals_ended: failed after update 0: RuntimeError in fail \(test_autoattach\.py:\d+\)\n", said)


def test_a_training_that_fails_before_it_begins_says_nothing(told, trainer, capsys):
    reports = told()
    trainer.broken = True
    with pytest.raises(ValueError, match="no data"):
        trainer.train()
    assert reports() == []
    assert "[trainvitals]" not in capsys.readouterr().err


def test_a_finding_asks_the_command_to_stop(tmp_path, told, trainer):
    (tmp_path / "loss-is-a-number.yaml").write_text(RULE)
    reports = told(rules=[str(tmp_path / "loss-is-a-number.yaml")], stop_on="error", console=False)
    trainer.train()
    assert reports()[0]["stop"] == "loss-is-a-number, step 1"
    told(rules=[str(tmp_path / "loss-is-a-number.yaml")], console=False)
    trainer.train()
    assert reports()[1]["stop"] == "loss-is-a-number, step 1"  # this trainer keeps the options of its first training


def test_without_a_wish_to_stop_nothing_is_asked(tmp_path, told, trainer):
    (tmp_path / "loss-is-a-number.yaml").write_text(RULE)
    reports = told(rules=[str(tmp_path / "loss-is-a-number.yaml")], console=False)
    trainer.train()
    assert reports()[0]["stop"] is None


def test_rules_of_the_user_come_beside_the_built_in_ones(tmp_path):
    from trainvitals.cli.common import builtin_rule_paths

    (tmp_path / "loss-is-a-number.yaml").write_text(RULE)
    paths = [*map(str, builtin_rule_paths([])), str(tmp_path / "loss-is-a-number.yaml")]
    rules = monitor_options({**OPTIONS, "rules": paths})["rules"]
    assert rules.by_id["loss-is-a-number"].source == str(tmp_path / "loss-is-a-number.yaml")
    assert rules.by_id["nonfinite-loss"].source == "builtin"
    assert monitor_options({**OPTIONS, "enable": ["experimental"]}) == {"enable": ["experimental"]}


def test_a_folder_that_is_gone_is_no_fault(told, trainer, tmp_path, capsys):
    reports = told(console=False)
    (tmp_path / "told").rmdir()
    trainer.train()
    assert reports() == []
    assert capsys.readouterr().err == ""


def test_a_report_that_fails_is_one_line(told, trainer, capsys, monkeypatch):
    told(console=False)
    monkeypatch.setattr(Report, "follow", lambda self, monitor: 1 / 0)
    trainer.train()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[trainvitals]")]
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]
    assert trainer.state.global_step == 4


def test_what_is_no_trainer_is_left_alone(told):
    told()
    assert before_training(object()) is None
