"""The tensors of a model folder, whichever files they lie in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import read_json_object, shown
from dashinfer_lite.weights.safetensors import STORAGE, Array, SafetensorsFile, TensorInfo

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 100_000_000

# Buffers that some exports store although they follow from the configuration. "h.0.c_attn.bias" is a weight.
IGNORED_SUFFIXES: Final = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
UNREADABLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")


class WeightReader(Protocol):
    """What the loader asks of a model's weights; the seam for every weight format.

    A quantized or packed format (GPTQ, AWQ, FP8) wraps the reader of the stored tensors and offers the names and types
    its consumers ask for; a wrapper that strips name prefixes has the same shape. Methods may be called from any
    thread, and raise ModelError for what the folder lacks.
    """

    def names(self) -> tuple[str, ...]:
        """Returns the names of all tensors, in the order in which they are read fastest."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Returns a tensor's type, shape and place without reading it."""
        ...

    def read(self, name: str) -> Array:
        """Returns a whole tensor; bf16 as uint16 and 8-bit floats as uint8: their bits."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Returns x[start:stop] of a tensor x[rows, ...], reading only these bytes."""
        ...

    def close(self) -> None:
        """Lets go of the files."""
        ...


def open_weights(folder: str | os.PathLike[str]) -> SafetensorsReader:
    """Opens a folder's safetensors: model.safetensors, or the shards of its index, or all that lie there.

    Without an index, files named model*.safetensors are taken, and where there is none, all *.safetensors.
    A shard is named by a plain file name, so that no index leads out of the folder. Symbolic links are followed when
    they end at a regular file: download caches are made of them, and whoever may place one may place the file as well.
    """
    folder = Path(folder)
    try:
        present = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: is not a folder that can be read: {error}") from None
    if SINGLE_FILE in present:
        return SafetensorsReader(folder, [SINGLE_FILE])
    if INDEX_FILE in present:
        weight_map = _weight_map(folder / INDEX_FILE)
        for shard in sorted(set(weight_map.values())):
            if shard not in present:
                raise ModelError(f"{folder}: lacks {shard}, which {INDEX_FILE} names; download it")
        return SafetensorsReader(folder, sorted(set(weight_map.values())), weight_map)
    return SafetensorsReader(folder, _unindexed_files(folder, present))


class SafetensorsReader:
    """A WeightReader over one or several .safetensors files.

    With a weight map, it alone says which file a tensor comes from, and a name it lacks is not visible.
    """

    def __init__(self, folder: Path, files: list[str], weight_map: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._home: dict[str, SafetensorsFile] = {}
        self._files: list[SafetensorsFile] = []
        try:
            for name in files:
                file = SafetensorsFile(folder / name)
                self._files.append(file)
                self._adopt(file, weight_map)
            for name, shard in (weight_map or {}).items():
                if name not in self._home and not _is_ignored(name):
                    raise ModelError(f"{folder / shard}: lacks tensor {shown(name)}, which {INDEX_FILE} places there")
        except BaseException:
            self.close()
            raise

    def names(self) -> tuple[str, ...]:
        return tuple(self._home)

    def info(self, name: str) -> TensorInfo:
        return self._file(name).tensors[name]

    def read(self, name: str) -> Array:
        return self._file(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        return self._file(name).read_rows(name, start, stop)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _adopt(self, file: SafetensorsFile, weight_map: Mapping[str, str] | None) -> None:
        for name in file.tensors:
            if _is_ignored(name) or (weight_map is not None and weight_map.get(name) != file.path.name):
                continue
            if name in self._home:
                raise ModelError(
                    f"{self.folder}: tensor {shown(name)} lies in both {self._home[name].path.name} and "
                    f"{file.path.name}; remove one of these files, or add {INDEX_FILE}"
                )
            self._home[name] = file

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._home[name]
        except KeyError:
            raise ModelError(
                f"{self.folder}: lacks tensor {shown(name)} ({len(self._home)} tensors in {len(self._files)} files); "
                "the weights do not belong to this config.json or are incomplete"
            ) from None


def to_float32(array: Array, dtype: str) -> Array:
    """Returns stored values as fp32: exactly for f32, f16, bf16 and the 8-bit floats, rounded for f64.

    `dtype` is TensorInfo.dtype. f32 comes back as it is, not copied. Raises ModelError for integers.
    f8_e4m3 is the OCP type without infinities: bias 7, S.1111.111 is NaN (OCP 8-bit Floating Point Specification).
    """
    if array.dtype != np.dtype(STORAGE[dtype]):
        raise ValueError(f"an array of {array.dtype} does not hold {dtype}")
    match dtype:
        case "f32":
            return array
        case "f16":
            return array.astype(np.float32)
        case "f64":
            with np.errstate(over="ignore"):
                return array.astype(np.float32)
        case "bf16":
            bits = array.astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        case "f8_e5m2":
            half = array.astype(np.uint16)
            half <<= 8
            return half.view(np.float16).astype(np.float32)
        case "f8_e4m3":
            return _f8_e4m3_values()[array.reshape(-1)].reshape(array.shape)
        case _:
            raise ModelError(f"{dtype} weights are not floating-point numbers; this weight format is not supported")


def _f8_e4m3_values() -> Array:
    bits = np.arange(128)
    exponent, mantissa = bits >> 3, bits & 7
    subnormal = exponent == 0
    values = np.ldexp(np.where(subnormal, mantissa, 8 + mantissa), np.where(subnormal, 1, exponent) - 10)
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


def _is_ignored(name: str) -> bool:
    return name.endswith(IGNORED_SUFFIXES)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index, MAX_INDEX_BYTES, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map from tensor names to files; download it again")
    for shard in set(map(_shard_name, weight_map.values())):
        if not shard.endswith(".safetensors") or "/" in shard or "\\" in shard or "\0" in shard:
            raise ModelError(
                f"{index}: names the file {shown(shard)}; expected the plain name of a .safetensors file in this folder"
            )
    return weight_map


def _shard_name(value: object) -> str:
    return value if isinstance(value, str) else repr(type(value))


def _unindexed_files(folder: Path, present: list[str]) -> list[str]:
    files = [name for name in present if name.endswith(".safetensors") and not name.startswith(".")]
    files = [name for name in files if name.startswith("model")] or files
    if not files:
        unreadable = [name for name in present if name.endswith(UNREADABLE_SUFFIXES)]
        found = f", only {shown(', '.join(unreadable))}; convert it to safetensors" if unreadable else ""
        raise ModelError(f"{folder}: holds no .safetensors weights{found} (pickled weights are never opened)")
    for name in files:
        if part := re.fullmatch(r"(.*-)(\d{1,9})-of-(\d{1,9})(\.safetensors)", name):
            count = sum(other.startswith(part[1]) and other.endswith(f"-of-{part[3]}{part[4]}") for other in files)
            if count != int(part[3]):
                raise ModelError(f"{folder}: holds {count} of the {int(part[3])} files {part[1]}*; download the others")
    return files
