"""Run the demo for real and save what it printed as docs/demo.svg: `make screenshot`.

The picture is the demo's own output, from one run on the machine that ran this; only the progress bar's redraws are left out.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"WARNING": "bold yellow", "ERROR": "bold red", "INFO": "bold cyan"}


def main() -> int:
    """Record and draw; the demo's exit code when it failed."""
    with tempfile.TemporaryDirectory() as folder:
        tool = Path(sys.executable).with_name("trainvitals")
        command = [str(tool), "demo"]
        env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}
        done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout)
        return done.returncode
    draw(done.stdout, ROOT / "docs" / "demo.svg")
    print("wrote docs/demo.svg")
    return 0


def draw(output: str, path: Path) -> None:
    """Draw the lines as a terminal of 132 columns."""
    console = Console(record=True, width=132, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    for line in tidy(output):
        console.print(styled(line))
    path.write_text(console.export_svg(title="trainvitals demo", unique_id="trainvitals"))


def tidy(output: str) -> list[str]:
    """Lines as a terminal would show them at the end: of each redrawn line the last state, of the progress bar the last."""
    lines = [re.split(r"\r(?!$)", line.rstrip("\r"))[-1].rstrip() for line in output.replace("\r\n", "\n").split("\n")]
    bars = [index for index, line in enumerate(lines) if line.startswith("training:")]
    end = next((index for index, line in enumerate(lines) if line.startswith("---")), 0)
    return [line for index, line in enumerate(lines) if index not in bars[:-1] and (line.strip() or index > end)]


def styled(line: str) -> Text:
    """Colours as on a terminal."""
    text = Text(line)
    found = re.match(r"(\[\w+\]) (WARNING|ERROR|INFO):", line)
    if found:
        text.stylize("dim", found.start(1), found.end(1))
        text.stylize(COLOURS[found[2]], found.start(2), found.end(2))
    elif line.startswith("vitals_"):
        text.stylize("cyan", 0, line.index(":"))
    elif line.startswith(("  ", "---")):
        text.stylize("dim")
    return text


if __name__ == "__main__":
    sys.exit(main())
