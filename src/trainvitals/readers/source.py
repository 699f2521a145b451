"""Where text comes from: a file, gzip, xz, or standard input; and how bad input is told to a person."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from pathlib import Path

_MAX_UNPACKED = 4 * 1024**3  # a bomb of gzip or xz must not fill memory; real logs are far smaller
_XZ = b"\xfd7zXZ\x00"
_CONTROL = re.compile(r"[\x00\x01-\x06\x0e-\x1a\x1c-\x1f]")


class InputError(Exception):
    """A log that cannot be read.

    Attributes:
        message: What is wrong, in one sentence.
        path: File or folder, ``-`` for standard input.
        line: 1-based line, where one is to blame.
        hint: What to do about it; may be empty.
    """

    def __init__(self, message: str, path: str = "", line: int | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.line = line
        self.hint = hint

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} ({self.hint})" if self.hint else text


def read_text(path: str) -> str:
    """Whole text of `path` (``-`` = standard input), unpacked when gzip or xz.

    Raises:
        InputError: Missing, unreadable, empty, damaged or not text.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("no such file or folder", path, hint="check the path; a run folder or one log file is expected") from None
    except PermissionError:
        raise InputError("permission denied", path, hint="make the file readable for this user") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be read: {reason}", path) from None
    return decode(data, path)


def decode(data: bytes, path: str) -> str:
    """Bytes of a log as text.

    Raises:
        InputError: Empty, a damaged gzip or xz, or not text.
    """
    if data[:2] == b"\x1f\x8b":
        data = _unpack(data, path)
    elif data[:6] == _XZ:
        data = _unpack_xz(data, path)
    if not data.strip():
        raise InputError("the file is empty", path, hint="nothing was logged yet, or the wrong file")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"  # -sig: with or without a mark
    text = data.decode(encoding, errors="replace")
    sample = text[:65536]
    junk = len(_CONTROL.findall(sample)) + sample.count("�")
    if "\x00" in sample or junk * 50 > len(sample):
        raise InputError("binary data, no log", path, hint="expected JSONL, trainer_state.json or console text; tfevents and .wandb are not read")
    return text


def _unpack(data: bytes, path: str) -> bytes:
    """Unpacked gzip; a torn end keeps what came before it."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, _MAX_UNPACKED)
        rest = unpacker.unused_data
        if rest[:2] == b"\x1f\x8b":  # appended members
            text += gzip.decompress(rest)
    except (zlib.error, OSError, EOFError) as error:
        raise InputError(f"damaged gzip file: {error}", path) from None
    if unpacker.unconsumed_tail:
        raise InputError(f"unpacks to more than {_MAX_UNPACKED >> 30} GiB", path)
    return text


def _unpack_xz(data: bytes, path: str) -> bytes:
    """Unpacked xz, appended streams included; a torn end keeps what came before it."""
    try:
        import lzma
    except ImportError:  # a Python that was built without it
        raise InputError("this Python cannot unpack xz", path, hint="unpack it first: xz -d") from None
    parts: list[bytes] = []
    left = _MAX_UNPACKED
    while data[:6] == _XZ:
        unpacker = lzma.LZMADecompressor()
        try:
            parts.append(unpacker.decompress(data, left))
        except lzma.LZMAError as error:
            raise InputError(f"damaged xz file: {error}", path) from None
        left -= len(parts[-1])
        if not unpacker.eof and not unpacker.needs_input:
            raise InputError(f"unpacks to more than {_MAX_UNPACKED >> 30} GiB", path)
        data = unpacker.unused_data.lstrip(b"\x00")  # padding between streams
    return b"".join(parts)
