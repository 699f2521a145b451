"""JSON Schemas, generated from the models: ``python -m trainvitals.schemas --write`` and ``--check``.

``record`` describes one line of a record stream, ``event`` the typed events with units and ranges, ``rule`` a rule file and
``rule-test`` the cases beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainvitals._resources import schemas_folder

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def record_schema() -> dict[str, Any]:
    """Schema of one record, of any kind."""
    from trainvitals.findings import RECORD

    # Readers must take files of later minor versions, which only add fields: additional properties stay allowed there,
    # while the writer is held to the models (`extra="forbid"`).
    return {"$schema": DIALECT, "title": "trainvitals record", **RECORD.json_schema(by_alias=True, mode="serialization")}


def event_schema() -> dict[str, Any]:
    """Schema of the typed events: one definition per family."""
    from pydantic.json_schema import models_json_schema

    from trainvitals.events import FAMILIES

    names, schema = models_json_schema([(model, "validation") for model in FAMILIES], title="trainvitals events")
    properties = {model.family: names[model, "validation"] for model in FAMILIES}
    return {"$schema": DIALECT, "type": "object", "properties": properties, "additionalProperties": False, **schema}


def rule_schema() -> dict[str, Any]:
    """Schema of a rule file."""
    from trainvitals.rulelang.schema import rule_schema as made

    return made()


def rule_test_schema() -> dict[str, Any]:
    """Schema of a rule's test file."""
    from trainvitals.rulelang.schema import rule_test_schema as made

    return made()


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "record": record_schema,
    "event": event_schema,
    "rule": rule_schema,
    "rule-test": rule_test_schema,
}


def render(name: str) -> str:
    """The schema file of `name`, as it lies in ``schemas/``."""
    return json.dumps(SCHEMAS[name](), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def drift(where: Path) -> list[str]:
    """Names of the schemas whose file differs from what the models give."""
    different = []
    for name in SCHEMAS:
        path = where / f"{name}.schema.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != render(name):
            different.append(name)
    return different


def main(argv: list[str] | None = None) -> int:
    """Write or check the files; 1 when they have drifted."""
    parser = argparse.ArgumentParser(prog="python -m trainvitals.schemas", description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true", help="write the files")
    group.add_argument("--check", action="store_true", help="exit 1 if a file differs from the models")
    options = parser.parse_args(argv)
    where = schemas_folder()
    if options.write:
        where.mkdir(exist_ok=True)
        for name in SCHEMAS:
            (where / f"{name}.schema.json").write_text(render(name), encoding="utf-8")
        return 0
    different = drift(where)
    for name in different:
        print(f"schemas/{name}.schema.json differs from the models; run: python -m trainvitals.schemas --write", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
