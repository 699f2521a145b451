"""The schema files are what the models say, and they mean what they should."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from trainvitals import schemas
from trainvitals._resources import rules_folder, schemas_folder
from trainvitals.findings import ActionRecord, CoverageRecord, RuleCoverage, RunEndRecord, SignalRecord

ROOT = Path(__file__).resolve().parents[1]


def test_no_drift(capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main(["--check"]) == 0, capsys.readouterr().err


def test_drift_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(schemas, "schemas_folder", lambda: tmp_path)
    assert schemas.main(["--check"]) == 1
    assert "record.schema.json differs" in capsys.readouterr().err
    assert schemas.main(["--write"]) == 0
    assert schemas.main(["--check"]) == 0
    (tmp_path / "event.schema.json").write_text("{}")
    assert schemas.drift(tmp_path) == ["event"]


@pytest.mark.parametrize("name", sorted(schemas.SCHEMAS))
def test_each_is_a_valid_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((schemas_folder() / f"{name}.schema.json").read_text()))


def test_records_of_every_kind_fit() -> None:
    schema = jsonschema.Draft202012Validator(schemas.record_schema())
    for record in (
        SignalRecord(step=1, values={"optim.loss": 1.0}),
        ActionRecord.model_validate({"parameter": "learning_rate", "from": 1e-6, "to": 5e-7}),
        CoverageRecord(rules=[RuleCoverage(id="x", status="blind")]),
        RunEndRecord(status="completed"),
    ):
        schema.validate(json.loads(record.model_dump_json(by_alias=True)))


def test_what_is_wrong_does_not_fit() -> None:
    schema = jsonschema.Draft202012Validator(schemas.record_schema())
    good = json.loads(RunEndRecord(status="completed").model_dump_json(by_alias=True))
    for change in ({"kind": "nope"}, {"status": "great"}, {"seq": -1}, {"schema": "trainvitals/2.0"}):
        assert not schema.is_valid({**good, **change}), change


def test_events_carry_unit_and_range() -> None:
    definition = schemas.event_schema()["$defs"]["PolicyEvent"]["properties"]["clip_fraction"]
    assert (definition["unit"], definition["low"], definition["high"]) == ("fraction", 0, 1)


def test_every_rule_file_fits_its_schema() -> None:
    schema = jsonschema.Draft202012Validator(schemas.rule_schema())
    files = [path for path in rules_folder().glob("*/*.yaml") if not path.stem.endswith(".test")]
    assert files
    for path in files:
        errors = [error.message for error in schema.iter_errors(yaml.safe_load(path.read_text()))]
        assert not errors, f"{path.name}: {errors[:3]}"
