"""A console log, pasted or captured: rows of transformers 4 (numbers) and 5 (quoted text, 4 digits) and of verl, among other text.

transformers prints no step beside its rows. Where the progress bar (``12/300 [``) is in the text it gives the step; else the
closing summary gives the number of steps; else the order does. All of these are inferred, and the notes say so.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from trainvitals.names import Mapper, is_summary, number
from trainvitals.readers.metrics_jsonl import run_id
from trainvitals.readers.rows import Log, Recording, Row, as_step, build, is_eval
from trainvitals.readers.source import InputError

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_DICT = re.compile(r"\{\s*['\"][^{}]{1,20000}\}")
_PAIR = re.compile(r"""(['"])([^'"]{1,200})\1\s*:\s*(?:(['"])([^'"]{0,200})\3|([-+.\w]{1,60})(?:\(([-+.\w]{1,60})[^)]{0,40}\))?)""")
_BAR = re.compile(r"(?<![\d/.])(\d{1,12})/(\d{1,12})\s*\[")
_VERL = re.compile(r"(?:^|[\s:])step:\s?(\d{1,12}) - (\S[^\n]*)")
_VERL_PAIR = re.compile(r"([\w/@().+-]{1,200}):\s?([-+.\w()]{1,80})(?: - |\s*$)")
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):", re.MULTILINE)
_TORN = re.compile(r"\{'[^{}]*\Z")


def read(text: str, path: str, mapper: Mapper) -> Recording:
    """Read the rows of one console log.

    Raises:
        InputError: No row of metrics is in the text.
    """
    # The start of each line keeps its place in the text: rows are told apart by offsets.
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    log = Log(path, [], run_id(path))
    offsets: list[int] = []
    for match in _DICT.finditer(text):
        metrics = _metrics(match.group(), mapper)
        if metrics:
            log.rows.append(Row(metrics, line=text.count("\n", 0, match.start()) + 1 if len(log.rows) < 100 else None))
            offsets.append(match.start())
    if not log.rows:
        _verl(text, log)
    if not log.rows:
        raise InputError("no row of metrics in the text", path, hint="looked for {'loss': ...} rows of transformers and 'step:1 - ...' rows of verl")
    if _TORN.search(text):
        log.notes.append("torn last row left out")
    if offsets:
        _infer_steps(text, log, offsets)
    crash = max((match.start() for match in _TRACEBACK.finditer(text)), default=-1)
    if crash > (offsets[-1] if offsets else -1):
        log.status = "failed"
        log.detail = text[crash:].rstrip().rpartition("\n")[2][:200]
    return build(log, mapper, format="console")


def _metrics(text: str, mapper: Mapper) -> dict[str, object]:
    """The pairs of one printed dict; empty when it is no row of metrics. Nothing is evaluated."""
    pairs: dict[str, object] = {}
    for match in _PAIR.finditer(text):
        quoted, bare, inner = match.group(4), match.group(5), match.group(6)
        value = quoted if quoted is not None else inner or bare  # np.float64(0.5)
        if value == "None":
            pairs[match.group(2)] = None
        elif number(value) is not None:
            pairs[match.group(2)] = value
    if not pairs or text.count(":") > 3 * len(pairs) + 2:
        return {}
    return pairs if is_summary(pairs) or any(mapper.resolve(name) is not None for name in pairs) or len(pairs) > 1 else {}


def _verl(text: str, log: Log) -> None:
    for match in _VERL.finditer(text):
        pairs: dict[str, object] = {pair[1]: pair[2].removeprefix("np.float64(").rstrip(")") for pair in _VERL_PAIR.finditer(match.group(2))}
        metrics = {name: value for name, value in pairs.items() if number(value) is not None}
        if metrics:
            log.rows.append(Row(metrics, step=as_step(match.group(1))))


def _infer_steps(text: str, log: Log, offsets: Sequence[int]) -> None:
    train = [place for place, row in enumerate(log.rows) if not is_eval(row) and not is_summary(row.metrics)]
    steps, source = _from_bar(text, [offsets[place] for place in train], log)
    if not steps:
        steps, source = _from_summary(log, len(train))
    if not steps:
        return  # the common code counts rows and says so
    known = dict(zip(train, steps, strict=True))
    last = 0
    for place, row in enumerate(log.rows):
        last = row.step = known.get(place, last)
    log.notes.append(f"rows of this log have no step: inferred from {source}")


def _from_bar(text: str, starts: Sequence[int], log: Log) -> tuple[list[int], str]:
    """Steps from the progress bar: tqdm draws it anew right after a row, so the next bar is exact and the one before may lag."""
    bars = [(match.start(), int(match.group(1)), int(match.group(2))) for match in _BAR.finditer(text)]
    if not bars or not starts:
        return [], ""
    # Evaluation, download and map bars have other totals: the training bar is the one nearest to most rows.
    places = [bar[0] for bar in bars]
    near = Counter(bars[at][2] for start in starts for at in (bisect_left(places, start) - 1, bisect_left(places, start)) if 0 <= at < len(bars))
    total = max(near, key=lambda size: (near[size], size))
    bars = [bar for bar in bars if bar[2] == total]
    places = [bar[0] for bar in bars]
    after: list[int] = []
    before: list[int] = []
    for index, start in enumerate(starts):
        at = bisect_left(places, start)
        until = starts[index + 1] if index + 1 < len(starts) else len(text)
        earlier = bars[at - 1][1] if at else 0
        before.append(earlier)
        after.append(bars[at][1] if at < len(bars) and places[at] < until else earlier)
    chosen = max((after, before), key=lambda steps: _regularity(steps))
    if len(set(chosen)) < len(chosen) or chosen != sorted(chosen):
        return [], ""
    log.total_steps = total
    return chosen, f"the progress bar (of {total})"


def _regularity(steps: Sequence[int]) -> float:
    """Share of steps that lie on a multiple of the most frequent distance: logging happens at multiples of logging_steps."""
    gaps = Counter(b - a for a, b in pairwise(steps) if b > a)
    every = gaps.most_common(1)[0][0] if gaps else 0
    return sum(step > 0 and step % every == 0 for step in steps) / len(steps) if every else 0.0


def _from_summary(log: Log, rows: int) -> tuple[list[int], str]:
    """Steps from runtime times steps per second of the closing summary, if that gives a whole logging interval."""
    for row in reversed(log.rows):
        runtime, rate = (number(row.metrics.get(name, "")) for name in ("train_runtime", "train_steps_per_second"))
        if runtime and rate and rows and 0 < runtime * rate < 1e12:
            every = round(runtime * rate / rows)
            if every >= 1 and abs(runtime * rate / (rows * every) - 1) < 0.1:
                return [every * (index + 1) for index in range(rows)], "the closing summary and the order"
    return [], ""
