"""Runs one mode of a model: the text, the items, and the speed of decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.cli.eval_judge import is_right
from dashinfer_lite.cli.eval_text import TextScore, score_text, windows_of
from dashinfer_lite.cli.figures import tokens_per_second
from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import RequestError
from dashinfer_lite.loading import kv_block_bytes, load_model
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.text import Conversations
from dashinfer_lite.text_codec import TextCodec

if TYPE_CHECKING:
    from dashinfer_lite.cli.eval_data import Item
    from dashinfer_lite.cli.eval_mode import Mode
    from dashinfer_lite.loading import LoadedModel, Options

    Progress = Callable[[str, int, int], object]

SPEED_PROMPT: Final = 32
SPEED_TOKENS: Final = 64
SPEED_RUNS: Final = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What every mode does: score the first `tokens` of a text in windows, and answer items."""

    text: str
    tokens: int
    window: int
    items: Sequence[Item]
    story_names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Run:
    """What a mode gave.

    windows            the tokens of the text
    text               what it says about them
    answers            by item, in order
    right              whether each is right
    tokens_per_s       of one sequence, after its first token: the best of some runs
    weight_bytes       packed weights in memory
    kv_token_bytes     KV cache of one token
    """

    name: str
    model: str
    device: str
    windows: list[list[int]]
    vocab_size: int
    text: TextScore
    answers: list[str]
    right: list[bool]
    tokens_per_s: float | None
    weight_bytes: int
    kv_token_bytes: int


def run_mode(
    path: str | None, mode: Mode, options: Options, work: Work, reference: Run | None, progress: Progress
) -> Run:
    """Load the model as the mode says and do the work; `progress` is called with what is done, done and total.

    Without a `reference` this run becomes one. RequestError where the text's tokens are not the reference's.
    """
    given: dict[str, Any] = {
        name: value for name in ("dtype", "quant", "head", "kv_cache") if (value := getattr(mode, name)) is not None
    }
    options = replace(options, **given, progress=lambda done, total: progress("loading", done, total))
    with closing(load_model(path, options)) as model:
        if model.tokenizer is None:
            raise RequestError(f"{model.folder.path}: has no tokenizer; an evaluation needs one")
        tokens = model.tokenizer.encode(work.text, add_special_tokens=False)[: work.tokens]
        windows = windows_of(tokens, min(work.window, model.max_context))
        if not windows:
            raise RequestError("the text has less than two tokens")
        if reference is not None and (windows, model.program.vocab_size) != (reference.windows, reference.vocab_size):
            raise RequestError("the model and its reference do not have the same tokenizer, vocabulary and context")
        text = score_text(
            model.executable,
            model.program,
            windows,
            None if reference is None else reference.text,
            progress=lambda done, total: progress("text", done, total),
        )
        engine = Engine(
            model.executable,
            model.program,
            TextCodec(model.tokenizer),
            eos_token_ids=model.tokenizer.eos_token_ids,
            max_context=model.max_context,
            max_queue=len(work.items) + 1,
        )
        try:
            engine.start()
            answers = _answer(engine, model, work.items, progress)
            rate = _speed(engine, tokens[:SPEED_PROMPT], progress)
            weight_bytes = model.executable.stats()["weight_bytes"]
        finally:
            engine.stop()
        info = model.device.info
        return Run(
            name=mode.name,
            model=model.folder.path.resolve().name,
            device=f"{info.name} {info.tier}, {info.threads} threads",
            windows=windows,
            vocab_size=model.program.vocab_size,
            text=text,
            answers=answers,
            right=[is_right(item, answer, work.story_names) for item, answer in zip(work.items, answers, strict=True)],
            tokens_per_s=rate,
            weight_bytes=weight_bytes,
            kv_token_bytes=kv_block_bytes(model.config, info, model.program.kv.dtype) // model.program.kv.block_tokens,
        )


def _answer(engine: Engine, model: LoadedModel, items: Sequence[Item], progress: Progress) -> list[str]:
    """Greedy answers; all items are in the engine together."""
    assert model.tokenizer is not None
    conversations = Conversations.load(model.folder.path, model.tokenizer)
    requests = []
    for item in items:
        if "prompt" in item:
            ids = model.tokenizer.encode(item["prompt"])
        else:
            _, ids = conversations.prompt(item["messages"], tools=item.get("tools"))
        requests.append(engine.submit(ids, SamplingParams(temperature=0.0, max_tokens=item["max_tokens"])))
    answers = []
    for done, request in enumerate(requests):
        progress("items", done, len(items))
        answers.append(request.result().text)
    return answers


def _speed(engine: Engine, prompt: Sequence[int], progress: Progress) -> float | None:
    rates = []
    for run in range(SPEED_RUNS):
        progress("speed", run, SPEED_RUNS)
        most = min(SPEED_TOKENS, engine.max_context - len(prompt))
        if most < 2:
            return None
        params = SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True)
        rate = tokens_per_second(engine.submit(prompt, params).result())
        if rate is not None:
            rates.append(rate)
    return max(rates, default=None)
