"""Series notation of rule tests: ``0.4x60 0.4..0.02x40 0.4~0.03x60 _x5 nan inf``.

One token per stretch, separated by blanks; ``xN`` repeats it N times (once without it):

======================  ==========================================================
``0.4x60``              60 samples of 0.4
``0.4..0.02x40``        a straight line of 40 samples from 0.4 to 0.02, both ends included
``0.4~0.03x60``         60 samples of 0.4 with normal noise of standard deviation 0.03
``0.4..0.02~0.01x40``   a line with noise
``_x5``                 5 updates without a sample
``nan``, ``inf``, ``-inf``  samples that are not finite
======================  ==========================================================

Noise comes from a generator seeded by the text given as `seed`: the same test gives the same samples everywhere.
"""

from __future__ import annotations

import math
import random
import re
import zlib

MAX_SAMPLES = 100_000
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TOKEN = re.compile(rf"(?:(?P<word>_|nan|-?inf)|(?P<start>{_NUMBER})(?:\.\.(?P<stop>{_NUMBER}))?(?:~(?P<noise>{_NUMBER}))?)(?:x(?P<count>\d+))?")


class SeriesError(ValueError):
    """A token that is not series notation.

    Attributes:
        at: Offset of the token in the text.
        length: Its length.
    """

    def __init__(self, message: str, at: int, length: int) -> None:
        super().__init__(message)
        self.at = at
        self.length = length


def parse_series(text: str, seed: str = "") -> list[float | None]:
    """Samples of a series in notation; None is a missing one.

    Raises:
        SeriesError: If a token is not in the notation, or there are more than 100,000 samples.
    """
    samples: list[float | None] = []
    for index, match in enumerate(re.finditer(r"\S+", text)):
        token, at = match.group(), match.start()
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise SeriesError(f"{token[:40]!r} is no series notation", at, len(token))
        count = int(parts["count"] or 1)
        if count < 1 or len(samples) + count > MAX_SAMPLES:
            raise SeriesError(f"a series has 1 to {MAX_SAMPLES} samples", at, len(token))
        if parts["word"]:
            samples += [None if parts["word"] == "_" else float(parts["word"])] * count
            continue
        start = float(parts["start"])
        stop = float(parts["stop"]) if parts["stop"] else start
        noise = float(parts["noise"]) if parts["noise"] else 0.0
        if not (math.isfinite(start) and math.isfinite(stop) and math.isfinite(noise)) or noise < 0:
            raise SeriesError(f"{token[:40]!r}: numbers must be finite and noise not negative", at, len(token))
        generator = random.Random(zlib.crc32(f"{seed}|{index}".encode()))
        for position in range(count):
            value = start + (stop - start) * (position / (count - 1) if count > 1 else 0.0)
            samples.append(value + generator.gauss(0.0, noise) if noise else value)
    if not samples:
        raise SeriesError("a series needs at least one sample", 0, 1)
    return samples
