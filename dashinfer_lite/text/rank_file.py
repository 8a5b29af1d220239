"""Rank files: the vocabularies of tiktoken, a line of "base64 rank" for each token."""

import binascii
import io
from pathlib import Path

from ..errors import ModelError

MAX_RANK_FILE_BYTES = 64 << 20
"""Largest accepted rank file; the largest known ones have under 4 MiB."""

MAX_LINE_BYTES = 8192
"""Longest accepted line; the longest token of the known files has 128 bytes."""

BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


def looks_like_ranks(data: bytes) -> bool:
    """Tell a rank file from a SentencePiece protobuf, which begins with 0x0A."""
    return data[:1] != b"" and data[0] in BASE64


def read_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    """Return token → rank of a rank file; the ranks are 0 … n-1, and every single byte has one.

    ModelError, with the file and the line, for anything else. Lines may come in any order.
    """
    ranks: dict[bytes, int] = {}
    lines: dict[int, int] = {}
    for number, line in enumerate(io.BytesIO(data.rstrip()), start=1):
        where = f"{path}: line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise ModelError(f"{where}: longer than {MAX_LINE_BYTES} bytes; this is no rank file, or a broken one")
        token, rank = _entry(line, where)
        if token in ranks:
            raise ModelError(f"{where}: the token {token!r:.60} comes a second time, after line {lines[ranks[token]]}")
        if rank in lines:
            raise ModelError(f"{where}: rank {rank} is taken already, by line {lines[rank]}")
        ranks[token] = rank
        lines[rank] = number
    if not ranks:
        raise ModelError(f"{path}: the vocabulary is empty")
    _check_whole(path, ranks, lines)
    return ranks


def _entry(line: bytes, where: str) -> tuple[bytes, int]:
    """Return the token and the rank of one line."""
    fields = line.split()
    if len(fields) != 2:
        raise ModelError(f'{where}: expected "base64 rank", found {line.rstrip()!r:.60}')
    code, digits = fields
    try:
        token = binascii.a2b_base64(code, strict_mode=True)
    except binascii.Error as error:
        raise ModelError(f"{where}: {code!r:.60} is not base64: {error}") from None
    if not token:
        raise ModelError(f"{where}: a token must not be empty")
    if not digits.isdigit() or len(digits) > 9:
        raise ModelError(f"{where}: {digits!r:.60} is not a rank")
    return token, int(digits)


def _check_whole(path: Path, ranks: dict[bytes, int], lines: dict[int, int]) -> None:
    """Refuse a file that lacks a rank or a byte: it was cut, or lines of it were lost."""
    largest = max(lines)
    if largest != len(ranks) - 1:
        gap = next(rank for rank in range(largest) if rank not in lines)
        raise ModelError(f"{path}: line {lines[largest]} has rank {largest}, but rank {gap} is missing")
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise ModelError(
                f"{path}: after line {len(ranks)}: the byte 0x{byte:02X} is missing; is the file cut short?"
            )
