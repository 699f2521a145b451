"""The layout holds: a module has its test, a rule its cases and its page, files stay small, nothing is left to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "trainvitals"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "_data" not in path.parts)
RULES = sorted(path for path in (ROOT / "rules").glob("*/*.yaml") if not path.name.endswith(".test.yaml"))
ELSEWHERE = {
    "__main__": "test_packaging.py", "_version": "test_packaging.py", "_resources": "test_packaging.py",
    "engine_state": "test_engine.py", "followup": "test_engine.py", "reporting": "test_engine.py", "rule_state": "test_engine.py",
    "watch": "test_engine.py", "schedule": "test_engine.py", "rulelang/folding": "rulelang/test_compile.py",
    "rulelang/windows_derived": "rulelang/test_windows.py", "speaker": "test_engine.py", "coverage": "test_engine.py", "testing_cases": "test_testing.py", "testing_series": "test_testing.py",
    "testing_mutants": "test_testing.py", "rulelang/mutate": "test_testing.py",
    "integrations/pair_scores": "suite/test_preference.py", "names/config": "names/test_mapper.py", "names/entry": "names/test_mapper.py", "names/other": "names/test_mapper.py",
    "names/verl": "names/test_mapper.py", "readers/metrics_jsonl": "readers/test_readers.py",
    "rulelang/build": "rulelang/test_loader.py", "rulelang/fields": "rulelang/test_loader.py",
    "rulelang/check_calls": "rulelang/test_check.py", "rulelang/ranges": "rulelang/test_check.py", "rulelang/scope": "rulelang/test_check.py",
    "rulelang/functions": "rulelang/test_check.py", "rulelang/explain": "rulelang/test_compile.py", "rulelang/generate": "rulelang/test_compile.py",
    "rulelang/kleene": "rulelang/test_compile.py", "rulelang/pace": "rulelang/test_windows.py",
    "rulelang/windows_series": "rulelang/test_windows.py", "rulelang/windows_stats": "rulelang/test_windows.py",
    "sinks/recorder": "test_monitor.py", "integrations/tiny": "clinic/conftest.py", "integrations/hooks": "integrations/test_attach_grpo.py", "integrations/families": "integrations/test_parts.py",
    "integrations/sampling": "integrations/test_attach_grpo.py", "integrations/ppo": "suite/test_ppo.py", "integrations/ranks": "suite/test_ranks.py",
    "integrations/rank_exchange": "suite/test_ranks.py", "integrations/async_rollout": "suite/test_async_grpo.py",
    "integrations/accelerate": "suite/test_beyond_trl.py", "integrations/lightning": "suite/test_beyond_trl.py",
    "integrations/bootstrap/sitecustomize": "cli/test_run_command.py",
    "integrations/dropped_rows": "suite/test_dropped_rows.py", "integrations/dataset_rows": "suite/test_dataset_rows.py", "integrations/supervised": "suite/test_supervised.py", "integrations/reward_model": "suite/test_supervised.py",
    "integrations/preference": "suite/test_preference.py", "integrations/questions": "suite/test_questions.py", "integrations/token_ids": "suite/test_token_ids.py", "integrations/doubled_template": "suite/test_doubled_template.py", "integrations/packed_rows": "suite/test_packed_rows.py", "integrations/token_weights": "suite/test_token_weights.py", "integrations/label_shift": "suite/test_label_shift.py", "integrations/answers_scan": "suite/test_answers_scan.py", "integrations/checkpoint": "suite/test_checkpoint.py", "integrations/generation_prompt": "suite/test_generation_prompt.py",
    "integrations/distillation": "suite/test_distillation.py", "integrations/distill_math": "suite/test_distillation.py",
    "integrations/adapters": "suite/test_adapters.py", "integrations/moe": "suite/test_moe.py",
}  # fmt: skip
"""Parts of a larger unit, with the test (below tests/) that drives them through that unit."""


def stem(path: Path) -> str:
    """Path of a module without suffix, relative to the package."""
    return path.relative_to(SOURCE).with_suffix("").as_posix()


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=stem)
def test_every_module_has_a_test(path: Path) -> None:
    """`src/trainvitals/a/b.py` has `tests/a/test_b.py`, or a test beside it imports the module, or ELSEWHERE says who tests it."""
    name = stem(path)
    if name in ELSEWHERE:
        assert (ROOT / "tests" / ELSEWHERE[name]).exists()
        return
    folder = ROOT / "tests" / Path(name).parent
    if list(folder.glob(f"test_{path.stem}.py")):
        return
    module = "trainvitals." + name.replace("/", ".")
    package, _, leaf = module.rpartition(".")
    imports = re.compile(rf"{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{leaf}\b|[\"']{leaf}[\"']")
    assert any(imports.search(test.read_text()) for test in folder.glob("test_*.py")), f"no test in {folder} is about {module}"


def test_every_rule_has_cases_a_page_and_a_place() -> None:
    """One stem finds the rule, its cases and its page; id equals the file's name; codes are unique."""
    assert len([path for path in RULES if path.parent.name == "stable"]) >= 20
    codes = {}
    for path in RULES:
        rule = yaml.safe_load(path.read_text())
        assert rule["id"] == path.stem
        assert path.with_name(f"{path.stem}.test.yaml").exists(), f"{path.stem} has no cases"
        assert (ROOT / "docs" / "rules" / f"{path.stem}.md").exists(), f"{path.stem} has no page: run `make docs`"
        assert codes.setdefault(rule["code"], path.stem) == path.stem, f"{rule['code']} is taken twice"


def test_no_cases_or_page_without_a_rule() -> None:
    """Nothing is left over from a rule that was renamed."""
    ids = {path.stem for path in RULES}
    assert {path.name.removesuffix(".test.yaml") for path in (ROOT / "rules").glob("*/*.test.yaml")} == ids
    assert {path.stem for path in (ROOT / "docs" / "rules").glob("*.md")} - {"index"} == ids


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_a_rule_explains_itself(path: Path) -> None:
    """Every rule says what it means, what to look at first, what else looks like it, and why each threshold is what it is."""
    rule = yaml.safe_load(path.read_text())
    for field in ("explain", "look_first", "false_positives", "references"):
        assert rule["docs"].get(field), f"docs.{field} is empty"
    for name, param in (rule.get("params") or {}).items():
        assert len(param["why"]) > 15, f"{name} has no reason"


@pytest.mark.parametrize("path", MODULES, ids=stem)
def test_modules_stay_small(path: Path) -> None:
    """Files under 450 lines, functions under 70, so that each can be read at one sitting."""
    text = path.read_text()
    limit = 560 if path.name == "events.py" else 450  # the catalogue grows by a line per signal
    assert len(text.splitlines()) < limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{node.name} is too long"


@pytest.mark.parametrize("path", MODULES, ids=stem)
def test_modules_and_public_names_have_docstrings(path: Path) -> None:
    """A public module, class or function says what it is."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_nothing_is_left_to_do() -> None:
    """No placeholder in the source, and no path of somebody's machine."""
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, r"/tmp" + "/envs", "/wo" + "rk/")))
    folders = ("src", "rules", "docs", "tools", "tests")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".yaml"}):
        found = marks.search(path.read_text())
        assert found is None, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"
