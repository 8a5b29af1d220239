"""Log probabilities in the form of chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashinfer_lite.server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from dashinfer_lite.server.answers import Token
    from dashinfer_lite.server.service import Service


def chat_logprobs(service: Service, tokens: Sequence[Token], most: int) -> ChatLogprobs:
    """One entry a token: the one that came, and the `most` likely ones, the likeliest first."""
    content = []
    for token, found in tokens:
        if found is None:
            continue
        # What was measured holds the token itself as well, however unlikely it was.
        likely = sorted(
            (entry for entry in found.items() if entry[1].rank is not None and entry[1].rank <= most),
            key=lambda entry: entry[1].rank or 0,
        )
        content.append(
            TokenLogprob(
                token=found[token].decoded_token or "",
                logprob=found[token].logprob,
                bytes=_bytes(service, token),
                top_logprobs=[
                    TopLogprob(token=entry.decoded_token or "", logprob=entry.logprob, bytes=_bytes(service, each))
                    for each, entry in likely
                ],
            )
        )
    return ChatLogprobs(content=content)


def _bytes(service: Service, token: int) -> list[int] | None:
    data = service.tokenizer.token_bytes(token)
    return None if data is None else list(data)
