"""What is sent: random prompts of a fixed length, or those of a file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dashinfer_lite.cli.bench_serve_http import HttpError
from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    from dashinfer_lite.cli.bench_serve_http import Server

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"

# Random prompts are drawn from the tokens of these words: any model knows them, and none is a special token.
WORDS: Final = (
    "the river runs past a quiet mill where seven people keep bread and light for travellers who come at night "
    "some of them walk from far away with stories about mountains ships gardens numbers music rain and old machines "
    "others only ask how to reach the next town before morning and which road is dry after so many days of snow"
)


class Job(NamedTuple):
    """One request: where it goes, and its body without what concerns streaming."""

    path: str
    body: dict[str, Any]


async def random_jobs(
    server: Server, count: int, length: int, fields: dict[str, Any], as_chat: bool, seed: int
) -> list[Job]:
    """Prompts of `length` tokens, no two alike, so that no cache knows them.

    Exact where the server has /tokenize and prompts may be token ids. As messages of a chat, and elsewhere, they are
    as many words, which is about as many tokens; the server's own count is what is reported.
    """
    draw = random.Random(seed)
    words = WORDS.split()
    ids = [] if as_chat else await _token_ids(server)
    if ids:
        return [Job(COMPLETE, {**fields, "prompt": draw.choices(ids, k=length)}) for _ in range(count)]
    return [_job(" ".join(draw.choices(words, k=length)), fields, as_chat) for _ in range(count)]


async def _token_ids(server: Server) -> list[int]:
    """Ids of common words' tokens; none where the server does not tell."""
    try:
        found = await server.ask("POST", "/tokenize", {"prompt": WORDS, "add_special_tokens": False})
        return [int(token) for token in found["tokens"]]
    except (HttpError, LookupError, TypeError, ValueError):
        return []


def file_jobs(path: Path, count: int | None, fields: dict[str, Any], as_chat: bool) -> list[Job]:
    """The prompts of a file, again from its beginning where `count` is more; RequestError where it has none."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"{path}: holds no prompt")
    if path.suffix == ".jsonl":
        found = [_described(line, f"{path}:{number}", fields, as_chat) for number, line in enumerate(lines, 1)]
    else:
        found = [_job(line, fields, as_chat) for line in lines]
    return [found[i % len(found)] for i in range(len(found) if count is None else count)]


def _described(line: str, place: str, fields: dict[str, Any], as_chat: bool) -> Job:
    """A job of a JSON object, whose further fields (max_tokens, …) go into the request."""
    try:
        more = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{place}: this is no JSON: {error}") from None
    if not isinstance(more, dict) or ("prompt" in more) == ("messages" in more):
        raise RequestError(f"{place}: expected an object with either prompt or messages")
    prompt = more.pop("prompt", None)
    return Job(CHAT, {**fields, **more}) if prompt is None else _job(prompt, {**fields, **more}, as_chat)


def _job(prompt: Any, fields: dict[str, Any], as_chat: bool) -> Job:
    if as_chat:
        return Job(CHAT, {**fields, "messages": [{"role": "user", "content": prompt}]})
    return Job(COMPLETE, {**fields, "prompt": prompt})
