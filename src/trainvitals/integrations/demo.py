"""``trainvitals demo``: one real GRPO training of under a minute on one CPU core, with two faults that people really have.

1. The learning rate is far too high for several updates per batch: importance ratios leave the clip range.
2. From the middle of the run the parser of the reward function matches nothing any more: every reward is 0, no prompt group
   has a spread, and there is no advantage left to learn from.

Nothing is simulated: TRL's `GRPOTrainer` trains a small model on the task of `trainvitals.integrations.tiny`.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

FAULTS = ("lr", "parser")
_HEALTHY_RATE, _FAULTY_RATE = 2e-4, 1e-3
_UPDATES = 8
"""Updates per batch of the fault, and between two log rows. Eight at five times the rate leave the clip range before the parser breaks, and the policy is not all copies by then:
both lines came in each of twelve seeds. With four at fifty times the rate they came in three of six, and which those are depends on the processor's rounding."""
_STEPS = 160
_FAULT_TEXT = {
    "lr": f"a learning rate 5 times too high, with {_UPDATES} updates per batch",
    "parser": "a reward parser that matches nothing from step {step} on",
}
_NEXT_RULE = {"parser": "advantage-collapse", "lr": "clip-ratio-high"}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, show what trainvitals says, tell what to type next.

    Returns:
        0 when the run went through, 2 when torch or trl are not installed or an argument is wrong.
    """
    options = _parse(argv)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # two threads are slower than one for a model this small
    started = time.perf_counter()
    print("Loading torch and trl ...", file=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer, callback = _build(options)
    except ImportError as error:
        print(f"error: the demo trains for real and needs {error.name}: pip install 'trainvitals[trl]'", file=sys.stderr)
        return 2
    faults = [] if options.healthy else options.faults
    planted = "; ".join(_FAULT_TEXT[name].format(step=options.steps // 2) for name in faults) or "none"
    print(
        f"GRPO on a tiny model, {options.steps} steps on the CPU. Task: write vowels. Planted faults: {planted}.", file=sys.stderr
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    _farewell(callback, faults, time.perf_counter() - started)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trainvitals demo", description="Train a tiny model for real, with planted faults.")
    parser.add_argument("--healthy", action="store_true", help="plant no fault: the run improves and nothing is reported")
    parser.add_argument("--steps", type=int, default=_STEPS, help="optimizer steps, at least 20 (default: %(default)s)")
    parser.add_argument("--output", default="trainvitals-demo", help="folder for records (default: %(default)s)")
    parser.add_argument("--faults", default="lr,parser", help="which faults to plant, of: lr, parser (default: %(default)s)")
    options = parser.parse_args(argv)
    options.faults = [name.strip() for name in options.faults.split(",") if name.strip()]
    wrong = [name for name in options.faults if name not in FAULTS]
    if wrong:
        parser.error(f"unknown fault {wrong[0]!r}: choose from {', '.join(FAULTS)}")
    if options.steps < 20:
        parser.error("--steps: expected at least 20, rules need a few windows of data")
    return options


def _build(options: argparse.Namespace) -> tuple[Any, Any]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # where it is installed, it tells of a kernel that nobody asked for
    import torch
    import transformers

    from trainvitals.integrations import tiny
    from trainvitals.integrations.trl import attach

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    faults = [] if options.healthy else options.faults
    trainer = tiny.grpo(
        options.output,
        reward=reward_with_parser(options.steps // 2 if "parser" in faults else None),
        max_steps=options.steps,
        learning_rate=_FAULTY_RATE if "lr" in faults else _HEALTHY_RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        num_iterations=_UPDATES if "lr" in faults else 1,
        logging_steps=_UPDATES,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_progress_bar(options.steps))
    return trainer, attach(trainer)


def reward_with_parser(breaks_at: int | None) -> Any:
    """The vowel reward behind a parser, as reward functions usually are; from step `breaks_at` on it matches nothing.

    The mistake is an everyday one: the pattern was changed to expect answer tags that no prompt asks for.
    """
    from trainvitals.integrations.tiny import text_of, vowels

    plain, tagged = re.compile(r"(.*)", re.DOTALL), re.compile(r"<answer>(.*)</answer>", re.DOTALL)

    def vowel_share(
        completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any
    ) -> list[float]:
        broken = breaks_at is not None and trainer_state is not None and trainer_state.global_step >= breaks_at
        matches = [(tagged if broken else plain).search(text_of(completion)) for completion in completions]
        answers = ["" if match is None else match.group(1) for match in matches]
        return vowels(answers, completion_ids)

    return vowel_share


def _progress_bar(steps: int) -> Any:
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """One line: steps done and the mean reward as TRL logs it."""

        bar: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(total=steps, desc="training", file=sys.stderr, mininterval=0.5, ncols=80)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "reward" in logs:
                self.bar.set_postfix_str(f"reward {logs['reward']:.2f}", refresh=False)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Progress()


def _farewell(callback: Any, faults: Sequence[str], seconds: float) -> None:
    output = callback.trainer.args.output_dir
    records = os.path.join(output, "vitals", "rank0.jsonl")
    rule = _NEXT_RULE["parser" if "parser" in faults else faults[0]] if faults else "advantage-collapse"
    report = _write_report(output)
    print(
        f"\nThat took {seconds:.0f} s.\n"
        f"  records: {records}\n"
        f"  report:  {report}\n"
        "Try next:\n"
        f"  trainvitals check {output}\n"
        f"  trainvitals explain {rule}\n"
        f"  jq -r 'select(.kind==\"finding\") | [.step, .rule.id, .state, .message] | @tsv' {records}",
        file=sys.stderr,
    )


def _write_report(output: str) -> str:
    """The run as ``trainvitals check`` tells it, written beside the records; in a process of its own, as a user would."""
    path = os.path.join(output, "vitals", "report.txt")
    command = [sys.executable, "-m", "trainvitals", "check", output, "--verbose", "--format", f"text={path}", "--fail-on", "never"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return path if done.returncode == 0 else f"could not be written: {done.stderr.strip()[:200]}"


if __name__ == "__main__":
    sys.exit(main())
