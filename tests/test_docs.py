"""The documentation is true: its examples run, its links lead somewhere, its generated pages are fresh."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "AGENTS.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/decisions").glob("*.md")),
    *sorted((ROOT / "docs/trainers").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what follows the language, text) of the fenced blocks of one language."""
    return [(more, text) for word, more, text in FENCE.findall(page.read_text()) if word == language]


def having(language: str) -> list[Path]:
    """Pages with a block of that language that is meant to run."""
    return [page for page in PAGES if any("no-run" not in more for more, _ in blocks(page, language))]


def name(page: Path) -> str:
    """Short id of a page."""
    return page.stem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a user's: a GRPO log, and the records of a watched run in out/."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import wheel_check
    finally:
        sys.path.pop(0)
    healthy, _ = wheel_check.write_logs(tmp_path)
    healthy.rename(tmp_path / "grpo.jsonl")
    return tmp_path


@pytest.mark.parametrize("page", having("python"), ids=name)
def test_python_examples_run(page: Path, folder: Path) -> None:
    """The Python blocks of a page run one after the other in one process."""
    code = "\n".join(text for more, text in blocks(page, "python") if "no-run" not in more)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", having("bash"), ids=name)
def test_shell_examples_run(page: Path, folder: Path) -> None:
    """The shell blocks of a page run, with the files that the page shows and the log that it speaks of."""
    for language in ("yaml", "bash", "python"):
        for more, text in blocks(page, language):
            if more.startswith("file="):
                (folder / more.removeprefix("file=")).write_text(text)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for more, text in blocks(page, "bash"):
        if more.startswith("file="):
            script = f"bash {more.removeprefix('file=')} grpo.jsonl"
        elif text.startswith("jq ") and shutil.which("jq") is None:
            continue  # the records themselves are tested elsewhere; this checks only the filters
        else:
            script = text
        if "out/vitals" in script:
            watched = "from trainvitals import Monitor\nwith Monitor(output_dir='out', console=False) as m:\n for s in range(1, 40): m.log(s, {'loss': 1.0})"
            subprocess.run([sys.executable, "-c", watched], cwd=folder, check=True)
        done = subprocess.run(["bash", "-euc", script], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page has a target."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        assert "://" in target or (page.parent / target).exists(), f"{target} is missing"


def test_every_page_is_reachable_from_the_index() -> None:
    """docs/index.md lists every page."""
    listed = {(ROOT / "docs" / target).resolve() for target in LINK.findall((ROOT / "docs" / "index.md").read_text())}
    missing = [
        page.name for page in PAGES if page.is_relative_to(ROOT / "docs") and page.stem != "index" and page.resolve() not in listed
    ]
    assert missing == []


def test_generated_pages_are_fresh() -> None:
    """`make docs` would change nothing."""
    done = subprocess.run([sys.executable, ROOT / "tools" / "gen_docs.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_opens_with_what_a_newcomer_needs() -> None:
    """Two sentences, a picture that exists, and the two commands, in this order and early."""
    text = (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "demo.svg").stat().st_size > 5_000
    places = [text.index(part) for part in ("# trainvitals", "docs/demo.svg", "make demo", "make test", "## Attach")]
    assert places == sorted(places)
    assert places[-1] < 1_800


def test_make_targets_in_the_docs_exist() -> None:
    """Every `make X` that a page tells people to type is a target."""
    targets = set(re.findall(r"^([a-z0-9.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for words in re.findall(r"(?:`|\$ )make ([a-z0-9. -]+)", page.read_text()):
            assert set(words.split()) <= targets | {"ARGS"}, f"{page.name}: make {words}"


def test_exit_codes_agree_everywhere() -> None:
    """README and the command reference give the same table, and the program the same numbers."""
    rows = [re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / path).read_text(), re.MULTILINE) for path in ("README.md", "docs/cli.md")]
    readme, reference = (dict(found) for found in rows)
    assert readme.items() <= reference.items()
    assert {"0", "1", "2", "3", "5", "75"} <= readme.keys()
