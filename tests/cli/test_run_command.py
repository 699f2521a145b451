"""``trainvitals run``: the child cannot tell that it is watched, except that its training is."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from trainvitals.cli.run import isolated

TRAINVITALS = [sys.executable, "-m", "trainvitals"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
COUNTER = """
import os, signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: got.append(number))
open(sys.argv[1], "w").close()
end = time.monotonic() + 20
while not got and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.3)
print(*(signal.Signals(number).name for number in got))
sys.exit(9)
"""


def vitals_run(
    *command: object, options: list[str] | None = None, cwd: Path, env: dict[str, str] | None = None, stdin: str = ""
) -> Any:
    """Run a command under ``trainvitals run`` in a process of its own."""
    words = [*TRAINVITALS, "run", *(options or []), "--", *map(str, command)]
    return subprocess.run(
        words, cwd=cwd, env={**ENV, **(env or {})}, input=stdin, capture_output=True, text=True, check=False, timeout=300
    )


def python(folder: Path, code: str, lib: Path | None = None) -> list[str]:
    """A script with this code, and the command that runs it; packages in `lib` come before installed ones."""
    path = folder / "train.py"
    path.write_text(("" if lib is None else f"import sys; sys.path.insert(0, {str(lib)!r})\n") + textwrap.dedent(code))
    return [sys.executable, str(path)]


def wait_for(path: Path, size: int = 0, seconds: float = 120) -> None:
    """Until a file is there and larger than `size`."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def records(path: Path) -> list[dict[str, Any]]:
    """Records of a run folder."""
    return [json.loads(line) for line in (path / "vitals" / "rank0.jsonl").read_text().splitlines()]


# ---- the child is left alone --------------------------------------------------------------------------------------------


def test_arguments_streams_and_status_are_the_childs(tmp_path: Path) -> None:
    command = python(tmp_path, "import sys; print(sys.argv[1:], sys.stdin.read()); print('word', file=sys.stderr); sys.exit(7)")
    done = vitals_run(*command, "--lr", "1", "--", "--output", "x", cwd=tmp_path, stdin="hello")
    assert done.stdout == "['--lr', '1', '--', '--output', 'x'] hello\n"
    assert done.returncode == 7
    assert done.stderr.splitlines()[0] == "word"
    assert done.stderr.splitlines()[1:] == [
        "[trainvitals] no known trainer has trained: nothing was recorded. A loop of your own can use trainvitals.Monitor."
    ]


def test_the_double_dash_may_be_left_out(tmp_path: Path) -> None:
    done = subprocess.run([*TRAINVITALS, "run", "echo", "--rules", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "--rules x\n")


def test_a_child_that_a_signal_ended_is_128_plus_n(tmp_path: Path) -> None:
    assert vitals_run(*python(tmp_path, "import os; os.kill(os.getpid(), 9)"), cwd=tmp_path).returncode == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_child_once(tmp_path: Path, number: signal.Signals) -> None:
    words = [*TRAINVITALS, "run", "--", *python(tmp_path, COUNTER), str(tmp_path / "ready")]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for(tmp_path / "ready")
    child.send_signal(number)
    out, _ = child.communicate(timeout=30)
    assert (out, child.returncode) == (f"{number.name}\n", 9)


def test_ctrl_c_on_a_terminal_reaches_the_child_once(tmp_path: Path) -> None:
    """The terminal gives it to both of us: passed on as well, it would interrupt the child's own clean-up."""
    words = [*TRAINVITALS, "run", "--", *python(tmp_path, COUNTER), str(tmp_path / "ready")]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    wait_for(tmp_path / "ready")
    os.write(terminal, b"\x03")
    said = b""
    while select.select([terminal], [], [], 10)[0]:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert said.count(b"SIGINT") == 1


def test_a_sitecustomize_of_the_users_own_still_runs(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("import builtins; builtins.mine = __file__")
    code = "import sys, sitecustomize; print(mine == sitecustomize.__file__, [p for p in sys.path if 'bootstrap' in p])"
    done = vitals_run(*python(tmp_path, code), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "mine")})
    assert done.stdout == "True []\n"
    assert "no known trainer" in done.stderr


def test_a_broken_sitecustomize_breaks_no_more_than_without_us(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("1 / 0")
    done = vitals_run(*python(tmp_path, "print('on')"), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "mine")})
    assert (done.stdout, done.returncode) == ("on\n", 0)
    assert "no known trainer" in done.stderr  # and we could look in all the same


# ---- what goes wrong is told --------------------------------------------------------------------------------------------


def test_nothing_starts_when_the_command_line_is_wrong(run: Run, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    (tmp_path / "bad.yaml").write_text("id: no-rule\n")
    for options in (["--rules", tmp_path / "bad.yaml"], ["--overrides", tmp_path / "no"], ["--enable", "no-such-rule"]):
        done = run("run", *options, "--", "touch", mark)
        assert done.code == 2
        assert done.err.startswith("trainvitals: error: ")
    assert run("run").code == 2
    assert run("run", "--", tmp_path / "no-such-program").code == 2
    (tmp_path / "plain").write_text("")
    assert "is it executable?" in run("run", "--", tmp_path / "plain").err
    assert not mark.exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("python -I train.py", True), ("/usr/bin/python3.11 -uS train.py", True), ("python -X dev -E -m trl", True), ("python -Im trl", True),
        ("python train.py -I", False), ("python -m trl -S", False), ("python -c x -I", False), ("python -uc I -I", False), ("python", False),
        ("python -W error -u train.py", False), ("python -WIgnore train.py", False), ("bash -I", False), ("python - -I", False),
    ],
)  # fmt: skip
def test_a_python_that_shuts_us_out_is_recognised(words: str, answer: bool) -> None:
    assert isolated(words.split()) is answer


def test_an_isolated_python_is_told_before_it_starts(tmp_path: Path) -> None:
    command = python(tmp_path, "import sys; print('on', file=sys.stderr)")
    done = vitals_run(command[0], "-I", *command[1:], cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["[trainvitals] cannot attach", "on"]


def test_a_command_without_python_is_told(tmp_path: Path) -> None:
    done = vitals_run("true", cwd=tmp_path)
    assert done.stderr == "[trainvitals] no Python process of this command could be looked into: nothing was recorded.\n"


# ---- the bootstrap, with a stand-in for transformers and for our own side -----------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A package ``transformers`` with a `Trainer`, for what needs no training."""
    (tmp_path / "lib" / "transformers").mkdir(parents=True)
    (tmp_path / "lib" / "transformers" / "__init__.py").write_text("")
    (tmp_path / "lib" / "transformers" / "trainer.py").write_text(
        "class Trainer:\n    def train(self, steps=1):\n        '''Trains.'''\n        print('trained', steps)\n        return steps\n"
    )
    return tmp_path / "lib"


def with_our_side(lib: Path, body: str) -> None:
    """A package ``trainvitals`` in the child whose ``autoattach`` is this."""
    (lib / "trainvitals" / "integrations").mkdir(parents=True)
    (lib / "trainvitals" / "__init__.py").write_text("")
    (lib / "trainvitals" / "integrations" / "__init__.py").write_text("")
    (lib / "trainvitals" / "integrations" / "autoattach.py").write_text(f"def before_training(trainer):\n    {body}\n")


SUBCLASSES = """
    import inspect
    from transformers.trainer import Trainer
    class Loop(Trainer):
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            print("made", cls.__name__)
        def train(self, steps=1):
            return super().train(steps) + 1
    class Mine(Loop):
        def train(self, *args, **kwargs):
            return super().train(*args, **kwargs)
    class Own(Trainer):
        def train(self, steps=1):
            return "own loop"
    print(Own().train())
    trainer = Mine()
    print(trainer.train(3), trainer.train(steps=4), Loop().train())
    print(Trainer.train.__doc__, str(inspect.signature(Trainer.train)), "def train(self, steps=1)" in inspect.getsource(Trainer.train))
"""


def test_every_trainer_is_seen_once_whatever_class_trains(tmp_path: Path, stand_in: Path) -> None:
    with_our_side(stand_in, "print('attach', type(trainer).__name__)")
    done = vitals_run(*python(tmp_path, SUBCLASSES, stand_in), cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "made Mine", "attach Own", "own loop", "attach Mine", "trained 3", "trained 4", "attach Loop", "trained 1", "4 5 2", "Trains. (self, steps=1) True"
    ]  # fmt: skip
    assert done.returncode == 0


def test_a_training_that_fails_is_told_to_our_side(tmp_path: Path, stand_in: Path) -> None:
    with_our_side(stand_in, "return lambda error: print('failed with', repr(error))")
    code = "from transformers.trainer import Trainer; t = Trainer(); t.train(2); t = Trainer(); t.train(2, 3)"
    done = vitals_run(*python(tmp_path, code, stand_in), cwd=tmp_path)
    assert done.stdout.startswith("trained 2\nfailed with TypeError(")
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", "not attached: ZeroDivisionError"),
        ("import no_such_module", "not attached: ModuleNotFoundError: No module named"),
        ("", "not attached: "),
    ],
)
def test_a_fault_of_ours_is_one_line_and_the_training_goes_on(tmp_path: Path, stand_in: Path, body: str, words: str) -> None:
    with_our_side(stand_in, body or "(")
    code = "from transformers.trainer import Trainer; t = Trainer(); t.train(2); t.train(3)"
    done = vitals_run(*python(tmp_path, code, stand_in), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "trained 2\ntrained 3\n")
    assert [words in line for line in done.stderr.splitlines()] == [True]


def test_importing_a_trainer_without_training_imports_nothing_of_ours(tmp_path: Path, stand_in: Path) -> None:
    """Subprocesses and data workers import transformers and train nothing."""
    code = """
        import subprocess, sys
        import transformers.trainer
        print([name for name in sys.modules if name.startswith(("trainvitals", "torch"))])
        if len(sys.argv) == 1:
            subprocess.run([sys.executable, __file__, "again"], check=True)
    """
    done = vitals_run(*python(tmp_path, code, stand_in), cwd=tmp_path)
    assert sorted(done.stdout.split()) == ["[]", "[]"]
    assert done.stderr.count("[trainvitals]") == 1


def test_the_command_itself_imports_no_trainer_and_no_pydantic() -> None:
    code = (
        "import sys; from trainvitals.cli import main; main(['run', '--', 'true'])\n"
        "print([m for m in ('torch', 'transformers', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
