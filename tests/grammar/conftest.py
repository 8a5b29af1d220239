"""Compilers of grammars for small vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashinfer_lite.grammar.compiler import GrammarCompiler
from dashinfer_lite.loading import demo_model_folder
from dashinfer_lite.text import Tokenizer, load_tokenizer

pytest.importorskip("llguidance", reason="guided output needs llguidance")

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizers"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_model_folder())


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    """A compiler whose deadline only a hang reaches."""
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, deadline_s=200)
