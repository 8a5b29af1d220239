"""A Hugging Face model folder: which model it is, its configuration, where its weights are."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.config_values import CONFIG_FILE, MAX_SIZE
from dashinfer_lite.weights.files import read_json_object, shown
from dashinfer_lite.weights.quantized import QuantizedReader, open_quantized
from dashinfer_lite.weights.reader import SafetensorsReader, WeightReader, open_weights

GENERATION_FILE: Final = "generation_config.json"
MAX_CONFIG_BYTES: Final = 16 * 2**20

# Where older tools put what now stands under quantization_config, and the method that such a file means.
QUANTIZATION_FILES: Final = {"quantize_config.json": "gptq", "quant_config.json": "awq"}

# For files without "architectures".
ARCHITECTURE_OF_MODEL_TYPE: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen": "QWenLMHeadModel",
    "chatglm": "ChatGLMModel",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
DTYPE_NAMES: Final = {
    "bfloat16": "bf16",
    "float16": "f16",
    "half": "f16",
    "float32": "f32",
    "float": "f32",
}


class ModelFolder:
    """The checked JSON files of a model folder; weights are opened by `open_weights`.

    path            the folder
    config          config.json as it stands
    generation      generation_config.json as it stands, {} without one
    quantization    how the weights are quantized: quantization_config as it stands, or None
    architecture    the model class, such as "LlamaForCausalLM"
    dtype           "bf16", "f16" or "f32" as declared, None where the file does not say (then see stored_dtype)
    eos_token_ids   the ids that end a text; generation_config.json counts before config.json
    bos_token_id    the id that begins a text, or None

    Raises ModelError for a folder or file that is missing, unreadable or nonsensical.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _checked_folder(path)
        self.config: dict[str, Any] = read_json_object(self.path / CONFIG_FILE, MAX_CONFIG_BYTES)
        self.generation: dict[str, Any] = {}
        if os.path.lexists(self.path / GENERATION_FILE):
            self.generation = read_json_object(self.path / GENERATION_FILE, MAX_CONFIG_BYTES)
        self.quantization, self._quantization_file = self._quantization()
        self.architecture: str = self._architecture()
        self.dtype: str | None = self._declared_dtype()
        self.eos_token_ids: tuple[int, ...] = self._token_ids("eos_token_id")
        self.bos_token_id: int | None = next(iter(self._token_ids("bos_token_id")), None)

    def open_weights(self) -> SafetensorsReader | QuantizedReader:
        """Opens the tensors, quantized ones behind a reader that knows their format; the caller closes them."""
        stored = open_weights(self.path)
        if self.quantization is None:
            return stored
        try:
            return open_quantized(stored, self.quantization, str(self._quantization_file))
        except BaseException:
            stored.close()
            raise

    def stored_dtype(self, weights: WeightReader) -> str:
        """Returns the declared dtype, else the one most bytes of the floating-point tensors have."""
        if self.dtype is not None:
            return self.dtype
        if isinstance(weights, QuantizedReader):
            weights = weights.stored
        nbytes: Counter[str] = Counter()
        for info in map(weights.info, weights.names()):
            if info.dtype in ("bf16", "f16", "f32", "f64"):
                nbytes["f32" if info.dtype == "f64" else info.dtype] += info.nbytes
        if not nbytes:
            raise ModelError(f"{self.path}: neither {CONFIG_FILE} nor any tensor says the model's torch_dtype")
        return nbytes.most_common(1)[0][0]

    def _quantization(self) -> tuple[dict[str, Any] | None, Path]:
        """The quantization's description and the file that it stands in."""
        path = self.path / CONFIG_FILE
        found = self.config.get("quantization_config")
        if found is not None:
            if not isinstance(found, dict):
                raise self._bad("quantization_config", found, "an object")
            return found, path
        for name, method in QUANTIZATION_FILES.items():
            path = self.path / name
            if os.path.lexists(path):
                return {"quant_method": method, **read_json_object(path, MAX_CONFIG_BYTES)}, path
        return None, path

    def _architecture(self) -> str:
        listed = self.config.get("architectures")
        if listed:
            if not isinstance(listed, list) or not isinstance(listed[0], str):
                raise self._bad("architectures", listed, "a list of class names")
            return listed[0]
        model_type = self.config.get("model_type")
        if not isinstance(model_type, str) or model_type not in ARCHITECTURE_OF_MODEL_TYPE:
            known = ", ".join(ARCHITECTURE_OF_MODEL_TYPE)
            raise self._bad("model_type", model_type, f"architectures, or one of the model types {known}")
        return ARCHITECTURE_OF_MODEL_TYPE[model_type]

    def _declared_dtype(self) -> str | None:
        for key in ("dtype", "torch_dtype"):
            value = self.config.get(key)
            if value is None or value == "auto":
                continue
            name = value.removeprefix("torch.") if isinstance(value, str) else None
            if name not in DTYPE_NAMES:
                raise self._bad(key, value, "one of " + ", ".join(DTYPE_NAMES))
            return DTYPE_NAMES[name]
        return None

    def _token_ids(self, key: str) -> tuple[int, ...]:
        for file, values in ((GENERATION_FILE, self.generation), (CONFIG_FILE, self.config)):
            value = values.get(key)
            if value is None:
                continue
            ids = value if isinstance(value, list) else [value]
            if any(type(token) is not int or not 0 <= token <= MAX_SIZE for token in ids):
                raise self._bad(key, value, "a token id or a list of them", file)
            return tuple(dict.fromkeys(ids))
        return ()

    def _bad(self, key: str, value: object, expected: str, file: str = CONFIG_FILE) -> ModelError:
        return ModelError(f"{self.path / file}: {key} is {shown(value)}, expected {expected}")


def _checked_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    try:
        entries = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        raise ModelError(f"{folder}: no such folder; models are read from disk, so download it first") from None
    except NotADirectoryError:
        raise ModelError(f"{folder}: is a file; give the folder that holds {CONFIG_FILE} and the weights") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: is not a folder that can be read: {error}") from None
    if CONFIG_FILE not in entries:
        raise ModelError(f"{folder}: holds no {CONFIG_FILE}; give the folder of a model in the Hugging Face format")
    return folder
