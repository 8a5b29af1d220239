"""Which family's rules a folder follows, read from its own files."""

from pathlib import Path
from typing import Any

from ..errors import ModelError
from .folder import read_optional_json

FAMILIES = {
    "chatglm": ("chatglmtokenizer", "chatglm4tokenizer", "chatglm", "chatglmmodel", "chatglmforconditionalgeneration"),
    "baichuan": ("baichuantokenizer", "baichuan", "baichuanforcausallm"),
    "qwen": ("qwentokenizer", "qwen", "qwenlmheadmodel"),
}
"""Family → the names of tokenizer classes, model types and architectures that mean it, in lower case."""


def family_of(folder: Path, tokenizer_config: dict[str, Any]) -> str:
    """Return "chatglm", "baichuan", "qwen", another family's name as the folder has it, or "" where it has none.

    The tokenizer's class decides, then the model type, then the architecture. Names are compared, never imported.
    """
    config = read_optional_json(folder / "config.json")
    architectures = config.get("architectures")
    clues = (
        tokenizer_config.get("tokenizer_class"),
        config.get("tokenizer_class"),
        config.get("model_type"),
        architectures[0] if isinstance(architectures, list) and architectures else None,
    )
    for clue in clues:
        if isinstance(clue, str) and clue:
            name = clue.lower()
            return next((family for family, names in FAMILIES.items() if name in names), clue)
    return ""


def chatglm_generation(folder: Path, tokenizer_config: dict[str, Any]) -> int:
    """Return 2 or 3 for a ChatGLM with a SentencePiece model, which have the same files.

    The name that the folder was published under tells; without one it is 3, whose ids 2 leaves unused.
    """
    config = read_optional_json(folder / "config.json")
    names = f"{tokenizer_config.get('name_or_path')} {config.get('_name_or_path')}".lower()
    return 2 if "chatglm2" in names and "chatglm3" not in names else 3


def chat_token_ids(folder: Path) -> tuple[int, int] | None:
    """Return user_token_id and assistant_token_id of a Baichuan chat model, None for a base model."""
    path = folder / "generation_config.json"
    config = read_optional_json(path)
    user, assistant = config.get("user_token_id"), config.get("assistant_token_id")
    if user is None and assistant is None:
        return None
    if type(user) is not int or type(assistant) is not int or min(user, assistant) < 0:
        raise ModelError(
            f"{path}: user_token_id and assistant_token_id must be token ids, found {user!r:.40} and {assistant!r:.40}"
        )
    return user, assistant


def is_base_qwen(folder: Path) -> bool:
    """Tell a base model of the first Qwen generation: its generation_config.json says chat_format "raw"."""
    return read_optional_json(folder / "generation_config.json").get("chat_format") == "raw"


def is_first_baichuan(folder: Path) -> bool:
    """Tell the first generation of Baichuan by its vocabulary of 64,000; the second has 125,696."""
    return read_optional_json(folder / "config.json").get("vocab_size") == 64_000
