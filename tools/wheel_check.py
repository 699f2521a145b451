"""Build the wheel and use it as a stranger would: in a clean environment without torch.

Checks that the built-in rules travel in the wheel, that `check` diagnoses a log and answers with the documented exit codes,
and that `demo` says what to install instead of failing with a traceback. Run by `make wheel-check` and CI.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, expect: int = 0, cwd: Path | None = None) -> str:
    """Run a command and return what it printed (stdout, then stderr); exit with a clear line when its code is not `expect`."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != expect:
        print(f"FAILED: {' '.join(map(str, command))}\nexit {done.returncode}, expected {expect}\n{done.stdout}{done.stderr}")
        sys.exit(1)
    return done.stdout + done.stderr


def require(condition: bool, what: str) -> None:
    """Print one line per property; exit when it does not hold."""
    print(f"  {'ok  ' if condition else 'FAIL'} {what}")
    if not condition:
        sys.exit(1)


def write_logs(folder: Path) -> tuple[Path, Path]:
    """A GRPO log that is healthy and one whose gradient turns NaN behind a loss of 0.0 (the transformers NaN filter)."""
    healthy, broken = folder / "healthy.jsonl", folder / "broken.jsonl"
    rows = []
    for step in range(1, 201):
        wave = 0.03 * ((step * 7919) % 13 - 6) / 6
        rows.append({"step": step, "loss": 0.01 + wave / 10, "grad_norm": 0.5 + wave, "learning_rate": 1e-6, "reward": 0.2 + step / 400 + wave,
                     "reward_std": 0.4, "frac_reward_zero_std": 0.2, "entropy": 0.8 + wave, "completions/mean_length": 120 + 100 * wave,
                     "completions/clipped_ratio": 0.02, "clip_ratio/region_mean": 0.01})  # fmt: skip
    healthy.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows[120:]:
        row |= {"loss": 0.0, "grad_norm": float("nan"), "entropy": float("nan")}
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return healthy, broken


def main() -> None:
    """Build, install, use."""
    with tempfile.TemporaryDirectory(prefix="trainvitals-wheel-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
        wheel = next(folder.glob("*.whl"))
        print(f"  built {wheel.name} ({wheel.stat().st_size / 1024:.0f} KiB)")
        venv.create(folder / "env", with_pip=True)
        python, tool = folder / "env/bin/python", folder / "env/bin/trainvitals"
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
        packages = run(python, "-m", "pip", "list", "--format=freeze").lower()
        require("torch" not in packages and "transformers" not in packages, "no torch, no transformers in the environment")
        listed = run(tool, "rules", "list", cwd=folder)
        ours = sorted(path.stem for path in (ROOT / "rules/stable").glob("*.yaml") if not path.stem.endswith(".test"))
        require(all(rule in listed for rule in ours), f"all {len(ours)} stable rules travel in the wheel")
        measured = json.loads((ROOT / "rules/confidence.json").read_text())["rules"]
        asked = "from trainvitals.rulelang.loader import load_rules; print(sum(rule.measured is not None for rule in load_rules()))"
        require(0 < int(run(python, "-c", asked, cwd=folder)) <= len(measured), "what was measured of the rules travels in the wheel")
        healthy, broken = write_logs(folder)
        run(tool, "check", healthy, cwd=folder)
        require(True, "check: a healthy log answers 0")
        words = run(tool, "check", broken, expect=1, cwd=folder)
        require("hidden-nan" in words, "check: a NaN behind a loss of 0.0 answers 1 and is named")
        (folder / "empty.jsonl").write_text("")
        run(tool, "check", folder / "empty.jsonl", expect=2, cwd=folder)
        require(True, "check: an empty log answers 2")
        words = run(tool, "demo", expect=2, cwd=folder)
        require("trainvitals[trl]" in words and "Traceback" not in words, "demo: says what to install")
        words = run(python, "-c", "import trainvitals, trainvitals.cli, sys; print('torch' in sys.modules)", cwd=folder)
        require("False" in words, "importing trainvitals imports no torch")


if __name__ == "__main__":
    main()
