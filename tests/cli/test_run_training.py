"""``trainvitals run`` on real training: scripts, TRL's own command, launchers, signals, a run that is stopped on purpose."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'trl'")

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.trl
slow = pytest.mark.slow
SHARED = """
use_cpu: true
bf16: false
gradient_checkpointing: false
report_to: none
save_strategy: "no"
logging_steps: 1
max_steps: 3
per_device_train_batch_size: 4
model_name_or_path: tiny-model
datasets:
  - path: json
    data_files: data.jsonl
"""


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start a command under ``trainvitals run`` in `tmp_path`; what it says goes to the files ``out`` and ``err``."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    children: list[subprocess.Popen[str]] = []

    def call(*command: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "trainvitals", "run", *options, "--", *map(str, command)]
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            children.append(subprocess.Popen(words, cwd=tmp_path, env=env, stdout=out, stderr=err, text=True))
        return children[-1]

    yield call
    for child in children:
        if child.poll() is None:
            child.terminate()  # which is passed on: a SIGKILL would leave the training behind
            child.wait(60)


def script(folder: Path, body: str, kind: str = "sft", **settings: Any) -> Path:
    """A training script: a tiny trainer, then `body`."""
    path = folder / "train_tiny.py"
    text = f"""
        import sys
        import torch; torch.set_num_threads(1)
        import transformers
        from trainvitals.integrations import tiny
        if __name__ == "__main__":
            trainer = tiny.{kind}("out-run", **{settings!r})
            trainer.remove_callback(transformers.PrinterCallback)
    """
    path.write_text(textwrap.dedent(text) + textwrap.indent(textwrap.dedent(body), "    "))
    return path


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Records of a run folder."""
    return [json.loads(line) for line in (folder / "vitals" / f"rank{rank}.jsonl").read_text().splitlines()]


def signals(rows: list[dict[str, Any]]) -> set[str]:
    """Names of the signals in records."""
    return {name for row in rows if row.get("event") == "frame" for name in row["values"]}


def blocks(folder: Path) -> int:
    """How many end blocks were printed."""
    return (folder / "err").read_text().count("--- trainvitals")


def own_lines(folder: Path) -> list[str]:
    """Lines that are about trainvitals itself."""
    return [line for line in (folder / "err").read_text().splitlines() if line.startswith("[trainvitals]")]


def wait_for(path: Path, size: int) -> None:
    """Until a file has grown."""
    end = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size > size):
        assert time.monotonic() < end, f"{path} did not grow"
        time.sleep(0.1)


def test_a_script_is_attached_without_a_change(tmp_path: Path, start: Any) -> None:
    path = script(tmp_path, "trainer.train(); print(sys.argv[1:]); sys.exit(3)", "grpo", max_steps=4, per_device_train_batch_size=8)
    assert start(sys.executable, path, "--lr", "1", options=("--output", "rec")).wait(300) == 3
    rows = records(tmp_path / "rec")
    assert (rows[0]["trainer"], rows[0]["framework"], rows[-1]["kind"], rows[-1]["status"]) == (
        "grpo",
        "trl",
        "run_end",
        "completed",
    )
    assert {"optim.loss_raw", "reward.group_std_mean", "policy.ratio_mean", "reward.mean"} <= signals(rows)
    assert (tmp_path / "out").read_text().endswith("['--lr', '1']\n")
    assert (blocks(tmp_path), own_lines(tmp_path)) == (1, [])


@slow
def test_a_script_that_attaches_itself_is_not_attached_twice(tmp_path: Path, start: Any) -> None:
    path = script(tmp_path, "from trainvitals import attach; attach(trainer); trainer.train()", max_steps=3)
    assert start(sys.executable, path, options=("--output", "rec")).wait(300) == 0
    assert records(tmp_path / "out-run")[-1]["status"] == "completed"
    assert not (tmp_path / "rec").exists()
    assert (blocks(tmp_path), own_lines(tmp_path)) == (1, [])


@slow
def test_torchrun_attaches_every_rank(tmp_path: Path, start: Any) -> None:
    path = script(tmp_path, "trainer.train()", "grpo", max_steps=3, per_device_train_batch_size=8)
    assert start(BIN / "torchrun", "--nproc_per_node", "2", path).wait(300) == 0
    for rank in (0, 1):
        rows = records(tmp_path / "out-run", rank)
        assert (rows[0]["rank"], rows[0]["world_size"], rows[-1]["status"]) == (rank, 2, "completed")
        assert "reward.group_std_mean" in signals(rows)
    assert (blocks(tmp_path), own_lines(tmp_path)) == (1, [])


@slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_the_trl_command_is_attached(tmp_path: Path, start: Any, kind: str) -> None:
    from trainvitals.integrations import tiny

    vocabulary = tiny.tokenizer()
    tiny.model(vocabulary).save_pretrained(tmp_path / "tiny-model")
    vocabulary.save_pretrained(tmp_path / "tiny-model")
    rows = tiny.dialogues() if kind == "sft" else tiny.prompts()
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = (
        "max_length: 64\n"
        if kind == "sft"
        else "reward_funcs: [think_format_reward]\nnum_generations: 4\nmax_completion_length: 8\n"
    )
    (tmp_path / "x.yaml").write_text(f"{SHARED}output_dir: out-run\n{more}")
    assert start(BIN / "trl", kind, "--config", "x.yaml").wait(300) == 0
    seen = records(tmp_path / "out-run")
    assert (seen[0]["trainer"], seen[-1]["status"]) == (kind, "completed")
    assert "optim.loss_raw" in signals(seen)
    assert (blocks(tmp_path), own_lines(tmp_path)) == (1, [])


@slow
def test_accelerate_launch_of_a_module_with_data_workers(tmp_path: Path, start: Any) -> None:
    script(tmp_path, "trainer.train()", max_steps=3, dataloader_num_workers=1)
    assert start(BIN / "accelerate", "launch", "--cpu", "--num_processes", "1", "-m", "train_tiny").wait(300) == 0
    assert records(tmp_path / "out-run")[-1]["status"] == "completed"
    assert (blocks(tmp_path), own_lines(tmp_path)) == (1, [])


@slow
@pytest.mark.parametrize(("number", "code", "status"), [(signal.SIGTERM, 143, "killed"), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_ends_the_training_with_its_last_words(
    tmp_path: Path, start: Any, number: signal.Signals, code: int, status: str
) -> None:
    child = start(sys.executable, script(tmp_path, "trainer.train()", max_steps=100_000))
    wait_for(tmp_path / "out-run" / "vitals" / "rank0.jsonl", 20_000)
    child.send_signal(number)
    assert child.wait(60) == code
    last = records(tmp_path / "out-run")[-1]
    assert (last["kind"], last["status"]) == ("run_end", status)
    assert (blocks(tmp_path), own_lines(tmp_path)) == (1, [])


@slow
def test_a_training_that_is_cut_off_says_where_its_records_are(tmp_path: Path, start: Any) -> None:
    body = """
        import os
        class Die(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step > 5:
                    os._exit(9)
        trainer.add_callback(Die())
        trainer.train()
    """
    assert start(sys.executable, script(tmp_path, body, max_steps=100)).wait(300) == 9
    (line,) = own_lines(tmp_path)
    assert line.endswith(f"trainvitals check {tmp_path / 'out-run' / 'vitals' / 'rank0.jsonl'}")


@slow
@pytest.mark.parametrize(("saving", "code"), [("steps", 75), ("no", 1)])
def test_a_run_is_stopped_on_an_error(tmp_path: Path, start: Any, saving: str, code: int) -> None:
    """The weights turn into NaN; in a shell script, which does not pass SIGTERM on to what it runs."""
    body = """
        class Poison(transformers.TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 30:
                    for weight in trainer.model.parameters():
                        weight.data.fill_(float("nan"))
        trainer.add_callback(Poison())
        trainer.train()
    """
    path = script(tmp_path, body, max_steps=100_000, save_strategy=saving, save_steps=10, save_total_limit=20)
    (tmp_path / "train.sh").write_text(f"echo start\n{sys.executable} {path}\necho end\n")
    child = start("bash", "train.sh", options=("--stop-on", "error"))
    assert child.wait(300) == code
    (line,) = own_lines(tmp_path)
    assert re.match(r"\[trainvitals\] stopped the command: (hidden-nan|nonfinite-loss), step 3\d\.", line)
    assert ("Restart from " in line) is (code == 75)
    last = records(tmp_path / "out-run")[-1]
    assert (last["kind"], last["status"]) == ("run_end", "killed")
    assert last["step"] < 100_000
    assert blocks(tmp_path) == 1
