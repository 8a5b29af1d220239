"""Careful reading of the small files of a model folder."""

import json
from pathlib import Path
from typing import Any

from ..errors import ModelError

MAX_CONFIG_BYTES = 64 << 20
"""Largest accepted JSON or template file; real ones stay under 10 MiB, mostly because of `added_tokens_decoder`."""

MAX_TOKENIZER_BYTES = 512 << 20
"""Largest accepted tokenizer file; the largest known ones have about 35 MiB."""

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens of tokenizer_config.json, which chat templates see as variables."""


def read_bytes(path: Path, limit: int = MAX_CONFIG_BYTES) -> bytes:
    """Return a file's bytes; ModelError where it is missing, unreadable, no plain file, or larger than `limit`."""
    try:
        if not path.is_file():
            raise ModelError(f"{path}: not a file; the model folder is incomplete")
        size = path.stat().st_size
        if size > limit:
            raise ModelError(f"{path}: {size} bytes; at most {limit} are accepted for this kind of file")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text; ModelError where it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not UTF-8 text: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; ModelError where it is broken or holds something else than an object."""
    try:
        value = json.loads(read_text(path))
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, or an empty one where the file does not exist."""
    return read_json(path) if path.exists() else {}


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, completed with the named tokens of an older special_tokens_map.json."""
    config = read_optional_json(folder / "tokenizer_config.json")
    for name, value in read_optional_json(folder / "special_tokens_map.json").items():
        config.setdefault(name, value)
    return config


def special_tokens(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return name → text of the named special tokens that a tokenizer config sets, e.g. {"bos_token": "<s>"}."""
    found = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if value is None:
            continue
        if not isinstance(value, str):
            raise ModelError(f"{folder / 'tokenizer_config.json'}: {name} must be a string, found {value!r:.80}")
        found[name] = value
    return found


def flag(config: dict[str, Any], name: str, folder: Path) -> bool | None:
    """Return an optional true/false entry of a tokenizer config; ModelError where it is something else."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{folder / 'tokenizer_config.json'}: {name} must be true or false, found {value!r:.80}")
    return value


def framing(wanted: bool, token_id: int | None, option: str, folder: Path) -> list[int]:
    """Return what an add_bos_token or add_eos_token option adds; ModelError where there is no such token."""
    if wanted and token_id is None:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: {option} is set but the token is not in the vocabulary")
    return [token_id] if wanted and token_id is not None else []


def end_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids that end a text: generation_config.json's, else config.json's, else none."""
    for name in ("generation_config.json", "config.json"):
        value = read_optional_json(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ModelError(f"{folder / name}: eos_token_id must be an id or a list of ids, found {value!r:.80}")
        return tuple(ids)
    return ()
