"""Chat formats of families without a template: a conversation becomes token ids.

A format writes *segments*: pieces of text, each encoded by itself and free of special tokens, and the ids of special
tokens between them. So a message cannot forge a turn, whatever it says.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError, RequestError
from .family import chat_token_ids, is_base_qwen, is_first_baichuan
from .sandbox_rules import MAX_TEXT
from .tokenizer import Tokenizer

Segments = Iterator[str | int]


@dataclass(frozen=True)
class Turn:
    """A message; `metadata` is what ChatGLM3 and GLM-4 write beside the role, a tool's name for example."""

    role: str
    content: str
    metadata: str = ""


Write = Callable[[Sequence[Turn], bool], Segments]
"""Turns, and whether the model's answer comes next, to segments."""


class ChatFormat:
    """A family's way of writing a conversation, with the ids of one tokenizer."""

    def __init__(self, name: str, write: Write, tokenizer: Tokenizer, always: bool = False) -> None:
        """Take the family's name, its format, and whether it comes before a folder's template."""
        self.name = name
        self.always = always
        self._write = write
        self._tokenizer = tokenizer

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = True) -> str:
        """Return the conversation as text, for people: special tokens by their names, without the frame of a text."""
        name = self._tokenizer.id_to_token
        return "".join(
            [part if isinstance(part, str) else name(part) or "" for part in self._parts(turns, add_generation_prompt)]
        )

    def encode(self, turns: Sequence[Turn], add_generation_prompt: bool = True) -> list[int]:
        """Return the conversation's ids. RequestError for roles or an order that the format has no place for."""
        ids: list[int] = []
        for part in self._parts(turns, add_generation_prompt):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._tokenizer.encode_ordinary(part)
        return self._tokenizer.framed(ids)

    def _parts(self, turns: Sequence[Turn], answer: bool) -> Segments:
        if sum(len(turn.content) + len(turn.metadata) for turn in turns) > MAX_TEXT:
            raise RequestError(f"the conversation is longer than {MAX_TEXT} characters")
        return self._write(turns, answer)


def family_format(folder: Path, tokenizer: Tokenizer) -> ChatFormat | None:
    """Return the chat format of a tokenizer's family; None where it has none, or the model is no chat model."""
    match tokenizer.kind:
        case "tiktoken (Qwen)" if not is_base_qwen(folder):
            return ChatFormat("ChatML", _chatml(tokenizer), tokenizer)
        case "tiktoken (GLM-4)":
            return ChatFormat("GLM-4", _role_tokens("GLM-4", tokenizer), tokenizer)
        case "sentencepiece (ChatGLM3)":
            return ChatFormat("ChatGLM3", _role_tokens("ChatGLM3", tokenizer), tokenizer, always=True)
        case "sentencepiece (ChatGLM2)":
            return ChatFormat("ChatGLM2", _chatglm2, tokenizer, always=True)
        case "sentencepiece (ChatGLM1)":
            return ChatFormat("ChatGLM1", _chatglm1, tokenizer, always=True)
        case "sentencepiece (Baichuan)" if ids := chat_token_ids(folder):
            if max(ids) >= tokenizer.vocab_size:
                raise ModelError(
                    f"{folder / 'generation_config.json'}: the chat tokens {ids} are not in the vocabulary"
                )
            after_answer = tokenizer.eos_token_ids[:1] if is_first_baichuan(folder) else ()
            return ChatFormat("Baichuan", _baichuan(ids, after_answer), tokenizer)
    return None


def _chatml(tokenizer: Tokenizer) -> Write:
    """Qwen: role, line end and content between <|im_start|> and <|im_end|>; a system message stands always first."""
    start, end = _ids(tokenizer, "<|im_start|>", "<|im_end|>")

    def write(turns: Sequence[Turn], answer: bool) -> Segments:
        _check_roles("ChatML", turns, "system", "user", "assistant")
        if turns[0].role != "system":
            turns = [Turn("system", "You are a helpful assistant."), *turns]
        for turn in turns:
            yield from (start, turn.role, "\n", turn.content, end, "\n")
        if answer:
            yield from (start, "assistant", "\n")

    return write


def _role_tokens(name: str, tokenizer: Tokenizer) -> Write:
    """ChatGLM3 and GLM-4: the role's token, a line for metadata, and the content."""
    roles = ("system", "user", "assistant", "observation")
    token = dict(zip(roles, _ids(tokenizer, *(f"<|{role}|>" for role in roles)), strict=True))

    def write(turns: Sequence[Turn], answer: bool) -> Segments:
        _check_roles(name, turns, *roles)
        for turn in turns:
            yield from (token[turn.role], f"{turn.metadata}\n", turn.content)
        if answer:
            yield token["assistant"]

    return write


def _baichuan(ids: tuple[int, int], after_answer: Sequence[int]) -> Write:
    """Baichuan: the system message bare, then user and assistant tokens; the first generation ends its answers."""
    user, assistant = ids

    def write(turns: Sequence[Turn], answer: bool) -> Segments:
        _check_roles("Baichuan", turns, "system", "user", "assistant")
        for index, turn in enumerate(turns):
            if turn.role == "system":
                if index > 0:
                    raise RequestError("messages: Baichuan's chat format has a system message at the beginning only")
                yield turn.content
            elif turn.role == "user":
                yield from (user, turn.content)
            else:
                yield from (assistant, turn.content)
                yield from after_answer
        if answer and turns[-1].role != "assistant":
            yield assistant

    return write


def _chatglm1(turns: Sequence[Turn], answer: bool) -> Segments:
    """ChatGLM-6B: rounds from 0; a question without a history stands alone."""
    rounds = _rounds("ChatGLM1", turns, answer)
    if len(turns) == 1:
        yield turns[0].content
        return
    yield "".join(
        [
            f"[Round {i}]\n问：{q}\n" + (f"答：{a}\n" if a is not None else "答：" * answer)
            for i, (q, a) in enumerate(rounds)
        ]
    )


def _chatglm2(turns: Sequence[Turn], answer: bool) -> Segments:
    """ChatGLM2: rounds from 1, with empty lines."""
    rounds = _rounds("ChatGLM2", turns, answer)
    yield "".join(
        [
            f"[Round {i}]\n\n问：{q}\n\n" + (f"答：{a}\n\n" if a is not None else "答：" * answer)
            for i, (q, a) in enumerate(rounds, 1)
        ]
    )


def _rounds(name: str, turns: Sequence[Turn], answer: bool) -> list[tuple[str, str | None]]:
    """Return questions with their answers, None for one to come; RequestError where they do not alternate."""
    _check_roles(name, turns, "user", "assistant")
    for index, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[index % 2]:
            raise RequestError(f"messages[{index}]: {name}'s rounds need user and assistant in turn, from user on")
    if answer and turns[-1].role != "user":
        raise RequestError(f"messages: {name}'s rounds need a user's message at the end")
    answers = [turn.content for turn in turns[1::2]]
    return list(zip([turn.content for turn in turns[::2]], [*answers, None], strict=False))


def _check_roles(name: str, turns: Sequence[Turn], *roles: str) -> None:
    for index, turn in enumerate(turns):
        if turn.role not in roles:
            raise RequestError(
                f"messages[{index}]: {name}'s chat format has no role {turn.role!r:.40}; it has {', '.join(roles)}"
            )


def _ids(tokenizer: Tokenizer, *names: str) -> list[int]:
    """Return the ids of special tokens; ModelError where the vocabulary lacks one."""
    ids = [tokenizer.token_to_id(name) for name in names]
    for name, token_id in zip(names, ids, strict=True):
        if token_id is None:
            raise ModelError(f"the {tokenizer.kind} vocabulary has no {name}, which its chat format needs")
    return [token_id for token_id in ids if token_id is not None]
