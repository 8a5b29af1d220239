"""Writes a model folder whose matrices are integers: our own format, version 1.

`config.json` is the source's with `quantization_config`: quant_method "dashinfer", version, the policy, and bits, group
and shape of every such matrix. In place of "<module>.weight" [N,K] the safetensors hold

    <module>.weight.codes    U8 [N, K], or [N, ceil(K/2)] for 4 bits: byte j = code[2j] | code[2j+1] << 4
    <module>.weight.scales   F32, F16 or BF16 [N, G], G = 1 or ceil(K / group)
    <module>.weight.zeros    U8 [N, G]

with value = (code - zero) * scale. All other tensors, tokenizer and configuration files are the source's, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.weights.config_values import CONFIG_FILE
from dashinfer_lite.weights.files import shown
from dashinfer_lite.weights.packed import METHOD, VERSION
from dashinfer_lite.weights.reader import INDEX_FILE, SINGLE_FILE, to_float32
from dashinfer_lite.weights.safetensors import DTYPES, Array

if TYPE_CHECKING:
    from dashinfer_lite.weights.folder import ModelFolder
    from dashinfer_lite.weights.grid import Codes, Grid
    from dashinfer_lite.weights.reader import WeightReader

SHARD_BYTES: Final = 4 << 30
CHUNK_BYTES: Final = 2 << 20  # of source rows in memory at a time
COPIED_SUFFIXES: Final = (".json", ".jinja", ".model", ".tiktoken", ".txt")
COPIED_PREFIXES: Final = ("LICENSE", "LICENCE", "NOTICE", "README")
COPIED_FOLDERS: Final = ("additional_chat_templates",)

STORED_NAMES: Final = {ours: theirs for theirs, (ours, _) in DTYPES.items()}
ITEM_BYTES: Final = {ours: np.dtype(storage).itemsize for ours, storage in DTYPES.values()}

Quantize = Callable[[Array, "Grid"], "Codes"]


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written: bytes of all tensors before and after, and how many matrices are integers now."""

    source_bytes: int
    target_bytes: int
    matrices: int
    files: tuple[str, ...]


def save_quantized(
    folder: ModelFolder,
    weights: WeightReader,
    target: str | os.PathLike[str],
    grids: Mapping[str, Grid],
    description: Mapping[str, Any],
    quantize: Quantize,
    *,
    force: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Saved:
    """Quantize the matrices of the modules in `grids` and write the folder `target`.

    `description` is the policy as plain values, `quantize` turns fp32 rows into codes. Memory stays at one chunk of
    rows. config.json comes last, so a folder whose writing was cut short is not taken for a model; after an error
    what was written is removed. RequestError for a target that is not an empty folder (unless `force`, which replaces a
    model there) or is the source; ModelError for a matrix that is missing or holds no finite numbers.
    """
    items = _plan(folder, weights, grids)
    shards = _shards(items)
    out = Path(target)
    created = _prepare(out, folder.path, force)
    written: list[Path] = []
    total = sum(item.source_bytes for item in items)
    done = 0
    try:
        for shard in shards:
            written.append(out / shard.name)
            with (out / shard.name).open("xb") as file:
                file.write(shard.header)
                for item in shard.items:
                    for nbytes in item.write(file, weights, quantize, folder.path):
                        done += nbytes
                        progress(done, total)
        if len(shards) > 1:
            written.append(out / INDEX_FILE)
            written[-1].write_text(_index(shards), encoding="utf-8")
        for path in _others(folder.path):
            written.append(out / path.relative_to(folder.path))
            _copy(path, written[-1])
        written.append(out / CONFIG_FILE)
        written[-1].write_text(_config(folder, items, description), encoding="utf-8")
    except BaseException:
        _remove(written, out if created else None)
        raise
    return Saved(
        source_bytes=total,
        target_bytes=sum(entry.nbytes for item in items for entry in item.entries),
        matrices=len(grids),
        files=tuple(path.name for path in written),
    )


@dataclass(slots=True)
class _Entry:
    """A tensor of the target; `offset` is where its bytes begin in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(slots=True)
class _Item:
    """A tensor of the source and what becomes of it: itself, or codes, scales and zeros."""

    source: str
    source_shape: tuple[int, ...]
    source_dtype: str
    source_bytes: int
    entries: list[_Entry]
    module: str = ""
    grid: Grid | None = None

    def write(self, file: IO[bytes], weights: WeightReader, quantize: Quantize, where: Path) -> Iterator[int]:
        """Write at the entries' offsets in chunks of rows; yield the source bytes of each chunk."""
        if not self.source_shape:
            _put(file, self.entries[0].offset, weights.read(self.source))
            yield self.source_bytes
            return
        rows = self.source_shape[0]
        row_bytes = self.source_bytes // rows if rows else 0
        step = max(1, CHUNK_BYTES // max(row_bytes, 1))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            chunk = weights.read_rows(self.source, start, stop)
            parts = [chunk] if self.grid is None else self._quantized(chunk, quantize, start, where)
            for entry, part in zip(self.entries, parts, strict=True):
                _put(file, entry.offset + start * (entry.nbytes // rows), part)
            yield (stop - start) * row_bytes

    def _quantized(self, chunk: Array, quantize: Quantize, start: int, where: Path) -> list[Array]:
        assert self.grid is not None
        try:
            codes, scales, zeros = quantize(to_float32(chunk, self.source_dtype), self.grid)
        except ValueError as error:
            raise ModelError(
                f"{where}: tensor {shown(self.source)}, rows from {start}: {error}; it cannot be quantized"
            ) from None
        return [
            pack_nibbles(codes) if self.grid.bits == 4 else codes,
            _as_stored(scales, self.grid.scale_dtype),
            zeros.astype(np.uint8),
        ]


@dataclass(slots=True)
class _Shard:
    name: str
    items: list[_Item]
    header: bytes = field(default=b"")


def pack_nibbles(codes: Array) -> Array:
    """codes[rows, K] below 16 → bytes [rows, ceil(K/2)]; the last high nibble of an odd K is 0."""
    packed = codes[:, 0::2].copy()
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return packed


def _plan(folder: ModelFolder, weights: WeightReader, grids: Mapping[str, Grid]) -> list[_Item]:
    """What becomes of each tensor, in the order in which the source is read fastest."""
    modules = {f"{module}.weight": module for module in grids}
    names = weights.names()
    if missing := sorted(modules.keys() - set(names)):
        raise ModelError(f"{folder.path}: lacks tensor {shown(missing[0])}; the weights do not belong to {CONFIG_FILE}")
    items = []
    for name in names:
        info = weights.info(name)
        item = _Item(name, info.shape, info.dtype, info.nbytes, [_Entry(name, info.dtype, info.shape)])
        if name in modules:
            _check_matrix(folder.path, name, info.dtype, info.shape)
            item.module, item.grid = modules[name], grids[modules[name]]
            rows, columns = info.shape
            groups = item.grid.groups(columns)
            item.entries = [
                _Entry(f"{name}.codes", "u8", (rows, columns if item.grid.bits == 8 else -(-columns // 2))),
                _Entry(f"{name}.scales", item.grid.scale_dtype, (rows, groups)),
                _Entry(f"{name}.zeros", "u8", (rows, groups)),
            ]
        items.append(item)
    return items


def _check_matrix(where: Path, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or not all(shape) or dtype not in ("bf16", "f16", "f32", "f64"):
        raise ModelError(
            f"{where}: tensor {shown(name)} is {dtype}{list(shape)}; expected a matrix of bf16, f16 or f32 to quantize"
        )


def _shards(items: Sequence[_Item]) -> list[_Shard]:
    """Files of about SHARD_BYTES, with the offsets of what they hold."""
    groups: list[list[_Item]] = [[]]
    filled = 0
    for item in items:
        nbytes = sum(entry.nbytes for entry in item.entries)
        if groups[-1] and filled + nbytes > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += nbytes
    count = len(groups)
    names = [SINGLE_FILE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    shards = [_Shard(name, group) for name, group in zip(names, groups, strict=True)]
    for shard in shards:
        _lay_out(shard)
    return shards


def _lay_out(shard: _Shard) -> None:
    """Place the entries one behind the other, the widest types first, so that each is aligned; build the header."""
    entries = [entry for item in shard.items for entry in item.entries]
    header: dict[str, Any] = {"__metadata__": {"format": METHOD, "version": str(VERSION)}}
    at = 0
    for entry in sorted(entries, key=lambda entry: -ITEM_BYTES[entry.dtype]):
        entry.offset = at
        header[entry.name] = {
            "dtype": STORED_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    shard.header = len(text).to_bytes(8, "little") + text
    for entry in entries:
        entry.offset += len(shard.header)


def _put(file: IO[bytes], offset: int, array: Array) -> None:
    file.seek(offset)
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _as_stored(scales: Array, dtype: str) -> Array:
    """fp32 scales, which are values of the type already, as the type's elements."""
    if dtype == "bf16":
        return (np.ascontiguousarray(scales, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return scales.astype(np.float16 if dtype == "f16" else np.float32)


def _prepare(out: Path, source: Path, force: bool) -> bool:
    """Make room in the target; True where the folder was created. What `force` replaces is unlinked, never written."""
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        pass
    else:
        return True
    if not out.is_dir():
        raise RequestError(f"{out}: is not a folder; give the name of a new one")
    if out.samefile(source):
        raise RequestError(f"{out}: is the model itself; give the name of a new folder")
    present = sorted(entry.name for entry in out.iterdir())
    if present and not force:
        raise RequestError(f"{out}: is not empty (it holds {shown(present[0])}); give a new folder, or --force")
    for name in present:
        if name == CONFIG_FILE or name.endswith((".safetensors", ".safetensors.index.json")):
            (out / name).unlink()
    return False


def _others(source: Path) -> Iterator[Path]:
    """Tokenizer, templates, configuration and licence; nothing executable, no weights."""
    folders = [source, *(source / name for name in COPIED_FOLDERS if (source / name).is_dir())]
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        is_wanted = path.suffix in COPIED_SUFFIXES or path.name.startswith(COPIED_PREFIXES)
        is_weights = path.name == CONFIG_FILE or path.name.endswith((".index.json", ".safetensors"))
        if is_wanted and not is_weights and not path.name.startswith(".") and path.is_file():
            yield path


def _copy(path: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    shutil.copyfile(path, place)


def _index(shards: Sequence[_Shard]) -> str:
    entries = {entry.name: shard.name for shard in shards for item in shard.items for entry in item.entries}
    size = sum(entry.nbytes for shard in shards for item in shard.items for entry in item.entries)
    return json.dumps({"metadata": {"total_size": size}, "weight_map": entries}, indent=1) + "\n"


def _config(folder: ModelFolder, items: Sequence[_Item], description: Mapping[str, Any]) -> str:
    modules = {
        item.module: {"bits": item.grid.bits, "group": item.grid.group, "shape": list(item.source_shape)}
        for item in items
        if item.grid is not None
    }
    quantization = {"quant_method": METHOD, "version": VERSION, **description, "modules": modules}
    return json.dumps(folder.config | {"quantization_config": quantization}, indent=1, ensure_ascii=False) + "\n"


def _remove(written: Sequence[Path], folder: Path | None) -> None:
    for path in written:
        path.unlink(missing_ok=True)
    if folder is not None:
        for name in COPIED_FOLDERS:
            if (folder / name).is_dir():
                (folder / name).rmdir()
        folder.rmdir()
