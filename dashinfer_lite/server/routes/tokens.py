"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET, to_builtins

from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.protocol.tokens import DetokenizeRequest, Text, TokenizeRequest, Tokens
from dashinfer_lite.server.text import check_variables, encode, encode_chat

if TYPE_CHECKING:
    from dashinfer_lite.llm import LLM
    from dashinfer_lite.server.service import Service


async def tokenize(service: Service, body: TokenizeRequest) -> Tokens:
    """The token ids of a text or of a conversation."""
    service.check_model(body.model)
    llm = service.llm
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        ids = await service.prepare(encode, llm, body.prompt, body.add_special_tokens is not False, "prompt")
    else:
        ids = await service.prepare(_encode_chat, llm, body)
    spelled = [llm.tokenizer.id_to_token(token) for token in ids] if body.return_token_strs else UNSET
    return Tokens(count=len(ids), max_model_len=llm.engine.max_context, tokens=ids, token_strs=spelled)


async def detokenize(service: Service, body: DetokenizeRequest) -> Text:
    """The text of token ids."""
    service.check_model(body.model)
    return Text(prompt=await service.prepare(_decode, service, body.tokens))


def _encode_chat(llm: LLM, body: TokenizeRequest) -> list[int]:
    variables = body.chat_template_kwargs or {}
    check_variables(variables)
    tools = [to_builtins(tool) for tool in body.tools] if body.tools else None
    _, ids = encode_chat(llm, body.messages or (), body.add_generation_prompt is not False, tools=tools, **variables)
    return ids


def _decode(service: Service, tokens: list[int]) -> str:
    return service.tokenizer.decode(tokens, skip_special_tokens=False)
