"""Untrusted files: opened only when regular, read by position, JSON parsed strictly."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

from dashinfer_lite.errors import ModelError

MAX_JSON_DEPTH = 32
MAX_SHOWN = 80


class RegularFile:
    """One open regular file, read by position.

    Reads are `preadv` into the caller's buffer, from any number of threads. Files are never mapped: a file that is cut
    short under a mapping kills the process with SIGBUS, under a read it is a ModelError.
    The descriptor closes with the last reference, so that one thread can let go of the file while another still reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            status = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: {_reason(error)}") from None
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ModelError(f"{path}: is not a regular file")
        self.size = status.st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills a flat byte buffer from the file, starting at byte `offset`."""
        while len(buffer):
            try:
                count = os.preadv(self._fd, [buffer], offset)
            except OSError as error:
                raise ModelError(f"{self.path}: {_reason(error)}") from None
            if count == 0:
                raise ModelError(
                    f"{self.path}: ends at byte {offset}, {len(buffer)} bytes early; "
                    "it was cut short after it was opened, copy or download it again"
                )
            buffer = buffer[count:]
            offset += count

    def read(self, offset: int, count: int) -> bytearray:
        """Returns `count` bytes starting at byte `offset`."""
        data = bytearray(count)
        self.read_into(memoryview(data), offset)
        return data

    def close(self) -> None:
        """Closes the descriptor now; only for an owner that knows of no other reader."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def read_json_object(path: Path, max_bytes: int, *, unique_keys: bool = False) -> dict[str, Any]:
    """Reads a JSON file that must hold an object and be no larger than `max_bytes`."""
    with RegularFile(path) as file:
        if file.size > max_bytes:
            raise ModelError(f"{path}: has {file.size} bytes, expected at most {max_bytes}; this is not such a file")
        data = file.read(0, file.size)
    return parse_json_object(data, str(path), unique_keys=unique_keys)


def parse_json_object(data: bytes | bytearray, where: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """Parses untrusted JSON that must be an object.

    Refused: invalid UTF-8, NaN and Infinity, numbers that neither int64, uint64 nor a finite double holds, nesting
    deeper than 32, strings that are not valid Unicode and, where asked, keys that occur twice in one object (otherwise
    the last one counts, as in every common JSON reader).
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite_float,
            object_pairs_hook=_unique_keys if unique_keys else None,
        )
        _check_nesting_and_text(value)
    except RecursionError:
        raise ModelError(f"{where}: is JSON nested deeper than {MAX_JSON_DEPTH} levels") from None
    except ValueError as error:
        raise ModelError(f"{where}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{where}: holds {shown(value)}, expected a JSON object")
    return value


def shown(value: object) -> str:
    """Returns a value as it may stand in an error message: printable and not long."""
    text = json.dumps(value, default=repr) if not isinstance(value, (str, bytes)) else ascii(value[: MAX_SHOWN + 1])
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "does not exist"
        case PermissionError():
            return "may not be read by this user"
        case OSError(errno=errno.ELOOP):
            return "is a loop of symbolic links"
        case OSError(strerror=str(text)):
            return f"cannot be read: {text}"
        case _:
            return f"cannot be opened: {error}"


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    # The length first: converting a million digits takes quadratic time.
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"the number {shown(text)} does not fit 64 bits")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)} does not fit a double")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the name {shown(key)} occurs twice")
            seen.add(key)
    return result


def _check_nesting_and_text(root: object) -> None:
    level = [root]
    for _ in range(MAX_JSON_DEPTH + 1):
        children: list[object] = []
        for value in level:
            if isinstance(value, dict):
                children.extend(value.keys())
                children.extend(value.values())
            elif isinstance(value, list):
                children.extend(value)
            elif isinstance(value, str):
                # JSON can escape half a surrogate pair; no file name, message or terminal could carry it.
                value.encode("utf-8")
        if not children:
            return
        level = children
    raise RecursionError
