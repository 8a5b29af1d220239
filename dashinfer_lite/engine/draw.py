"""Sampling parameters in the form that a device takes: `di_sample` and the arrays it points at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from dashinfer_lite.devices.step import HIDDEN, RAW_LOGPROB, SAMPLE_DTYPE
from dashinfer_lite.engine.guide import Guide

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dashinfer_lite.engine.grammar import Matcher
    from dashinfer_lite.sampling_params import SamplingParams

GREEDY_BELOW: Final = 1e-3  # a temperature under this would only overflow logits on the way to the same token


class Draw:
    """How one sequence's tokens are drawn and its prompt is scored.

    stop_ids      tokens that end the answer
    guide         the grammar that the answer follows, if there is one
    needs_host    the next token's mask or the end depends on tokens that the host must have seen
    """

    def __init__(
        self,
        params: SamplingParams,
        index: int,
        seed: int,
        eos_token_ids: Iterable[int],
        bad_words: Sequence[tuple[int, ...]],
        prompt_len: int,
        max_total: int,
        matcher: Matcher | None = None,
        vocab_size: int = 0,
    ) -> None:
        """Prepare the `index`-th answer for at most `max_total` tokens with the prompt; `bad_words` are token ids.

        `vocab_size` counts where there is a `matcher`: it is the length of the mask.
        """
        self.eos_ids: frozenset[int] = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self.stop_ids = self.eos_ids | frozenset(params.stop_token_ids)
        self.min_tokens = params.min_tokens
        self.reports = params.logprobs is not None
        self.scores_prompt = params.prompt_logprobs is not None and index == 0
        self.n_top = params.logprobs or 0
        self.n_top_prompt = params.prompt_logprobs or 0
        self.reads_history = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
            or params.no_repeat_ngram_size > 0
        )
        self._phrases = [word for word in bad_words if len(word) > 1]
        self.guide = Guide(matcher, vocab_size, self.stop_ids, self.min_tokens) if matcher is not None else None
        self.needs_host = self.reads_history or bool(self._phrases) or bool(params.stop) or self.guide is not None

        singles = {word[0] for word in bad_words if len(word) == 1}
        self._banned = _ids(singles)
        self._banned_early = _ids(singles | self.stop_ids) if self.min_tokens else self._banned
        bias = params.logit_bias or {}
        self._bias = np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)
        self._history = np.zeros(max_total if self.reads_history else 0, np.int32)
        self._known = 0  # filled entries of _history

        self.record = np.zeros(1, SAMPLE_DTYPE)[0]
        self.record["seed"] = seed
        self.record["sample_index"] = index
        self.record["prompt_len"] = prompt_len
        self.record["temperature"] = params.temperature if params.temperature >= GREEDY_BELOW else 0
        for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            self.record[name] = getattr(params, name)
        self.record["top_k"] = max(params.top_k, 0)
        self.record["no_repeat_ngram"] = params.no_repeat_ngram_size
        self.record["history"] = _address(self._history)
        self.record["bias_ids"], self.record["bias_values"] = map(_address, self._bias)
        self.record["n_bias"] = len(bias)
        self.record["n_top"] = self.n_top
        self.record["target"] = -1
        self.record["mask"] = _address(self.guide.mask) if self.guide is not None else 0
        self.record["flags"] = RAW_LOGPROB if self.reports else 0
        self.has_static_bans = not self._phrases and not self.min_tokens
        self.record["banned_ids"], self.record["n_banned"] = _address(self._banned), len(self._banned)

    def history_len(self, tokens: list[int]) -> int:
        """Bring the history up to the known tokens and return its length."""
        count = len(tokens)
        self._history[self._known : count] = tokens[self._known :]
        self._known = count
        return count

    def banned(self, tokens: list[int], drawn: int) -> np.ndarray:
        """The ids that may not come next, after `drawn` tokens of the answer; the caller keeps the array alive."""
        ids = self._banned_early if drawn < self.min_tokens else self._banned
        answer = tokens[len(tokens) - drawn :]
        endings = [word[-1] for word in self._phrases if tuple(answer[1 - len(word) :]) == word[:-1]]
        return np.concatenate([ids, _ids(endings)]) if endings else ids


def score_record(n_top: int) -> np.void:
    """The record of a row that scores a given token instead of drawing one; its target is still to be set."""
    record: np.void = np.zeros(1, SAMPLE_DTYPE)[0]
    record["top_p"] = record["repetition_penalty"] = 1
    record["n_top"] = n_top
    record["slot"] = -1
    record["flags"] = RAW_LOGPROB
    return record


def pool_record() -> np.void:
    """The record of a row whose hidden state is wanted, and no token."""
    record = score_record(0)
    record["target"] = 0  # scored in passing where a tile has rows that draw
    record["flags"] = HIDDEN
    return record


def _ids(ids: Iterable[int]) -> np.ndarray:
    return np.array(sorted(ids), np.int32)


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data) if array.size else 0
