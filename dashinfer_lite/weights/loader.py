"""Streams a model's tensors into a program's weights.

First everything is checked by name, shape and type, so that one message lists all that is wrong. Then each weight is
filled in chunks of rows: the source rows that a chunk needs are read, and the device packs them. Memory stays at about
one chunk a thread beyond what the device keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dashinfer_lite.errors import CancelledError, DeviceError, ModelError
from dashinfer_lite.weights.grid import Codes, dequantize
from dashinfer_lite.weights.quantized import QuantizedReader
from dashinfer_lite.weights.reader import to_float32

if TYPE_CHECKING:
    from dashinfer_lite.devices.base import Executable
    from dashinfer_lite.graph.program import DType, Part, Program, WeightSpec
    from dashinfer_lite.weights.reader import WeightReader

CHUNK_BYTES: Final = 4 << 20  # smaller ones cost Python time, larger ones fall out of the cache before they are packed
IN_FLIGHT_BYTES: Final = 64 << 20  # over all threads
ROW_STEP: Final = 32
MAX_LISTED: Final = 12

# Tables and masks that older checkpoints keep beside their weights; they are computed here.
BUFFERS: Final = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")

# A stored type → how its rows are handed to the device.
MATRIX_DTYPES: Final[dict[str, DType]] = {"bf16": "bf16", "f16": "f16", "f32": "f32", "f64": "f32"}

logger = logging.getLogger(__name__)


def load_weights(
    program: Program,
    reader: WeightReader,
    executable: Executable,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 1,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Fills every weight of the program.

    `progress(done, total)` is called with source bytes, `cancelled()` is asked between chunks; both by the calling
    thread. Up to `threads` threads read and pack. Raises ModelError that lists every missing tensor, wrong shape and
    unusable type; CancelledError when told so. Tensors that nothing reads are named in a warning of this module's
    logger.
    """
    check_weights(program, reader)
    chunk_bytes = min(CHUNK_BYTES, IN_FLIGHT_BYTES // max(threads, 1))
    chunks = list(_chunks(program, reader, executable.info.col_align, chunk_bytes))
    total, done = sum(chunk.nbytes for chunk in chunks), 0

    def finished(chunk: _Chunk) -> None:
        nonlocal done
        done += chunk.nbytes
        if progress is not None:
            progress(done, total)

    def stop_if_cancelled() -> None:
        if cancelled is not None and cancelled():
            raise CancelledError("loading was cancelled")

    if threads <= 1:
        for chunk in chunks:
            stop_if_cancelled()
            chunk.load(program, reader, executable)
            finished(chunk)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="dashinfer-load") as pool:
        running: dict[Future[None], _Chunk] = {}
        try:
            for chunk in chunks:
                stop_if_cancelled()
                running[pool.submit(chunk.load, program, reader, executable)] = chunk
                if len(running) > threads:
                    _collect(running, finished)
            while running:
                stop_if_cancelled()
                _collect(running, finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def check_weights(program: Program, reader: WeightReader) -> None:
    """Compares what the program needs with what there is, without reading a tensor; see `load_weights`."""
    names = set(reader.names())
    expected = _expected_shapes(program)
    problems = []
    for name, shape in expected.items():
        if name not in names:
            problems.append(f"{name} {_shape(shape)} is missing")
            continue
        info = reader.info(name)
        if info.dtype not in MATRIX_DTYPES:
            problems.append(f"{name} is stored as {info.dtype}; expected bf16, f16 or f32")
        if info.shape != shape:
            problems.append(f"{name} has shape {_shape(info.shape)}, expected {_shape(shape)}")
    if problems:
        more = f"\n  and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED])
        raise ModelError(
            f"the weights do not fit the configuration ({len(problems)} of {len(expected)} tensors):{listed}{more}"
        )
    tied = program.notes.get("tied")
    spare = [name for name in sorted(names - set(expected)) if not name.endswith(BUFFERS)]
    unused = [name for name in spare if tied is None or not name.startswith(f"{tied}.")]
    if unused:
        more = f" and {len(unused) - MAX_LISTED} more" if len(unused) > MAX_LISTED else ""
        logger.warning("unused tensors (%d): %s%s", len(unused), ", ".join(unused[:MAX_LISTED]), more)


def _expected_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Tensor → shape. A fused tensor has as many rows as its last part reaches."""
    rows: dict[str, int] = {}
    columns: dict[str, tuple[int, ...]] = {}
    for spec in program.weights:
        for at, part in enumerate(spec.parts):
            stop = part.stop
            if stop is None:
                stop = part.start + int(spec.row_index[spec.part_index == at].max()) + 1
            rows[part.name] = max(rows.get(part.name, 0), stop)
            columns[part.name] = () if spec.kind == "vector" else (spec.k,)
    return {name: (count, *columns[name]) for name, count in rows.items()}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Padded rows [row0, row1) of a weight; `nbytes` of source data."""

    weight: int
    row0: int
    row1: int
    nbytes: int

    def load(self, program: Program, reader: WeightReader, executable: Executable) -> None:
        spec = program.weights[self.weight]
        if spec.kind == "vector":
            executable.write_vector(self.weight, _vector(spec, reader))
            return
        part_index = spec.part_index[self.row0 : self.row1]
        row_index = spec.row_index[self.row0 : self.row1].copy()
        numbers = np.full(len(part_index), -1, np.int32)
        wanted: list[tuple[Part, int, int]] = []
        for at in np.unique(part_index[part_index >= 0]):
            mine = part_index == at
            first, last = int(row_index[mine].min()), int(row_index[mine].max())
            numbers[mine] = len(wanted)
            row_index[mine] -= first
            part = spec.parts[at]
            wanted.append((part, part.start + first, part.start + last + 1))
        if isinstance(reader, QuantizedReader) and is_stored(spec, reader):
            codes = [_codes(spec, part, reader, start, stop) for part, start, stop in wanted]
            executable.write_codes(self.weight, self.row0, codes, numbers, row_index)
            return
        sources, dtype = _sources(spec, reader, wanted)
        try:
            executable.write_rows(self.weight, self.row0, sources, dtype, numbers, row_index)
        except DeviceError as error:
            raise _unquantizable(spec, reader, [part.name for part, _, _ in wanted], sources, dtype) or error from None


def _chunks(program: Program, reader: WeightReader, col_align: int, chunk_bytes: int) -> Iterator[_Chunk]:
    step = np.lcm(ROW_STEP, col_align)
    for at, spec in enumerate(program.weights):
        if spec.kind == "vector":
            yield _Chunk(at, 0, spec.n, 4 * spec.n)
            continue
        row_bytes = max(
            (reader.info(part.name).nbytes // reader.info(part.name).shape[0] for part in spec.parts), default=1
        )
        # Codes are read and packed as bytes, though their tensor is shown as the fp32 numbers that they stand for.
        read_bytes = row_bytes // 4 if isinstance(reader, QuantizedReader) and is_stored(spec, reader) else row_bytes
        rows = max(int(chunk_bytes // max(read_bytes, 1) // step * step), int(step))
        for row0 in range(0, spec.n, rows):
            row1 = min(row0 + rows, spec.n)
            yield _Chunk(at, row0, row1, int((spec.part_index[row0:row1] >= 0).sum()) * row_bytes)


def _unquantizable(
    spec: WeightSpec, reader: WeightReader, names: list[str], sources: list[np.ndarray], dtype: DType
) -> ModelError | None:
    """What is wrong with rows that a device cannot quantize; None for weights that it should not."""
    if not spec.quant_group:
        return None
    wrong = [name for name, rows in zip(names, sources, strict=True) if not np.isfinite(to_float32(rows, dtype)).all()]
    what = "not finite" if wrong else f"too large for scales in {spec.scale_dtype}"
    name = (wrong or names)[0]
    return ModelError(f"{reader.info(name).file}: tensor {name} holds values that are {what}; it cannot be quantized")


def is_stored(spec: WeightSpec, reader: QuantizedReader) -> bool:
    """Whether the codes of a quantized weight are in the folder."""
    return bool(spec.quant_group) and all(_module(part) in reader.grids for part in spec.parts)


def _module(part: Part) -> str:
    return part.name.removesuffix(".weight")


def _sources(
    spec: WeightSpec, reader: WeightReader, wanted: list[tuple[Part, int, int]]
) -> tuple[list[np.ndarray], DType]:
    """Rows [start, stop) of each tensor as raw elements, all of one type."""
    found = [_rows(part, reader, start, stop) for part, start, stop in wanted]
    types = {dtype for _, dtype in found}
    if len(types) == 1 and not spec.offset and not spec.normalize:
        return [rows for rows, _ in found], types.pop()
    return [_adjusted(spec, to_float32(rows, dtype)) for rows, dtype in found], "f32"


def _codes(spec: WeightSpec, part: Part, reader: QuantizedReader, start: int, stop: int) -> Codes:
    """Rows of a tensor on its grid; a row of another length is one on a grid of another scale."""
    codes = reader.read_codes(_module(part), start, stop)
    if not spec.normalize:
        return codes
    return codes._replace(scales=codes.scales / _lengths(dequantize(codes, reader.grids[_module(part)])))


def _rows(part: Part, reader: WeightReader, start: int, stop: int) -> tuple[np.ndarray, DType]:
    """Rows of a tensor as a 2-D array of raw elements, and their type."""
    stored = reader.info(part.name).dtype
    rows = reader.read_rows(part.name, start, stop)
    if MATRIX_DTYPES[stored] != stored:
        rows = to_float32(rows, stored)
    return rows, MATRIX_DTYPES[stored]


def _adjusted(spec: WeightSpec, rows: np.ndarray) -> np.ndarray:
    if spec.offset:
        rows = rows + np.float32(spec.offset)
    if spec.normalize:
        rows = rows / _lengths(rows)
    return rows


def _lengths(rows: np.ndarray) -> np.ndarray:
    """The Euclidean length of each row [n, 1], in fp32; that of zeros is almost nothing, to divide by."""
    lengths: np.ndarray = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return lengths


def _vector(spec: WeightSpec, reader: WeightReader) -> np.ndarray:
    """A vector's fp32 values in padded order."""
    if spec.value is not None:
        return spec.value
    values = np.zeros(spec.n, np.float32)
    for at, part in enumerate(spec.parts):
        wanted = spec.part_index == at
        source = to_float32(reader.read(part.name), reader.info(part.name).dtype)
        values[wanted] = source[part.start + spec.row_index[wanted]] + np.float32(spec.offset)
    return values


def _collect(running: dict[Future[None], _Chunk], finished: Callable[[_Chunk], None]) -> None:
    """Waits for at least one chunk; a chunk's error is raised here."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        chunk = running.pop(future)
        future.result()
        finished(chunk)


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
