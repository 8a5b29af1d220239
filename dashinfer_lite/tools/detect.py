"""Which dialect a model's folder speaks, by its chat template and the kind of its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashinfer_lite.tools.dialect import Dialect


def find_dialect(template: str, tokenizer_kind: str = "") -> Dialect | None:
    """The dialect of a template; None where it has no tools, or calls are written in a way that is not known here."""
    from dashinfer_lite.tools.glm import ChatGlm3, Glm4
    from dashinfer_lite.tools.hermes import Hermes
    from dashinfer_lite.tools.llama3 import Llama3
    from dashinfer_lite.tools.mistral import Mistral

    if "[TOOL_CALLS]" in template:
        return Mistral(has_args="[ARGS]" in template)
    if "<tool_call>" in template:
        is_xml = any(mark in template for mark in ("<function=", "<arg_key>"))  # Qwen3-Coder, GLM-4.5
        return None if is_xml else Hermes()
    if "<|python_tag|>" in template or "ipython" in template:
        return Llama3()
    if "tools" in template and ("<|observation|>" in template or "[gMASK]" in template):
        return Glm4()
    if not template and "ChatGLM3" in tokenizer_kind:
        return ChatGlm3()
    return Glm4() if not template and "GLM-4" in tokenizer_kind else None


def thinks(template: str) -> bool:
    """Whether a template's model may write thoughts before its answer."""
    return "<think>" in template or "</think>" in template
