"""The prompts of the golden models: each text becomes the ids that the reference was given."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from dashinfer_lite.text import load_tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.json"))


@pytest.mark.parametrize("model", MODELS)
def test_golden_prompts(model: str) -> None:
    tokenizer = load_tokenizer(GOLDEN / model)
    prompts = json.loads((GOLDEN / model / "golden.json").read_text(encoding="utf-8"))["prompts"]
    expected = load_file(GOLDEN / model / "golden.safetensors")
    texts = {name: prompt["text"] for name, prompt in prompts.items() if prompt["text"] is not None}
    assert texts
    for name, text in texts.items():
        assert tokenizer.encode(text) == expected[f"{name}.input_ids"].tolist(), text
