"""The options that commands share: which model, on what, and how tokens are drawn."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashinfer_lite.llm import LLM
    from dashinfer_lite.sampling_params import SamplingParams


Arguments = argparse._ActionsContainer  # a parser, or a group of one


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready, and the seconds that took."""

    llm: LLM
    load_s: float


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the model folder and everything that LLM() takes."""
    group = parser.add_argument_group("model")
    add_model_option(group)
    add_type_options(group)
    add_run_options(group)
    add_host_memory_option(group)


def add_run_options(group: Arguments) -> None:
    """Add where and with how much memory a model runs."""
    group.add_argument("--device", default="cpu", help="what computes: cpu, or another one that `info` lists")
    group.add_argument("--kv-memory", default="2GiB", metavar="SIZE", help="memory for the KV cache (default: 2GiB)")
    add_threads_option(group)
    group.add_argument(
        "--max-context", type=int, metavar="N", help="tokens of prompt and answer (default: the model's)"
    )
    group.add_argument("--max-batch", type=int, metavar="N", help="most sequences computed together (default: 64)")


def add_host_memory_option(group: Arguments) -> None:
    """Add --host-kv-memory."""
    group.add_argument(
        "--host-kv-memory",
        default="0",
        metavar="SIZE",
        help="host memory for cached prefixes that leave the device (default: 0; not for the CPU)",
    )


def add_model_option(group: Arguments) -> None:
    """Add --model."""
    group.add_argument("--model", metavar="FOLDER", help="a Hugging Face model folder (default: the embedded demo)")


def add_type_options(group: Arguments) -> None:
    """Add --dtype, --quant, --head and --kv-cache."""
    weights, cache = ("auto", "fp32", "fp16", "bf16"), ("auto", "fp32", "fp16", "bf16", "int8", "uint4")
    group.add_argument("--dtype", default="auto", choices=weights, help="type of the weights (default: as stored)")
    add_quant_options(group)
    group.add_argument(
        "--kv-cache", default="auto", choices=cache, help="type of the KV cache (default: as the weights)"
    )


def add_quant_options(group: Arguments) -> None:
    """Add --quant and --head."""
    group.add_argument(
        "--quant",
        metavar="MODE",
        help="quantize the weights: a16w8 (= int8), a16w4 (= int4), a8w8, each also by groups, such as a16w4-g128",
    )
    group.add_argument("--head", choices=("int8", "bf16"), help="the LM head (default: int8 with --quant, else bf16)")


def add_threads_option(group: Arguments) -> None:
    """Add --threads."""
    group.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: the physical cores)")


def load(args: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Loaded:
    """Load the model with a progress bar on a terminal; CancelledError once it must not `go_on`."""
    from dashinfer_lite import LLM

    names = ["device", "dtype", "quant", "head", "kv_cache", "kv_memory", "host_kv_memory"]
    names += ["threads", "max_context", "max_batch"]
    begin = time.perf_counter()
    with ProgressBar("loading") as progress:

        def report(done: int, total: int) -> bool:
            progress(done, total)
            return go_on()

        llm = LLM(args.model, **{name: getattr(args, name) for name in names}, progress=report)
    return Loaded(llm, time.perf_counter() - begin)


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Add one option for each sampling parameter; what is not given stays the model's or SamplingParams' default."""
    group = parser.add_argument_group("sampling", "see SamplingParams for the meaning and the order of these")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help=f"default: {max_tokens}")
    for name, kind, metavar, text in _VALUES:
        group.add_argument(_flag(name), type=kind, metavar=metavar, help=text)
    for flag, name, kind, metavar, text in _LISTS:
        group.add_argument(
            flag, dest=name, action="append", type=kind, metavar=metavar, help=f"{text}; may be repeated"
        )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's end of text")
    group.add_argument("--include-stop", action="store_true", help="keep the stop text in the answer")
    group.add_argument("--keep-special-tokens", action="store_true", help="show special tokens in the answer")


def sampling_params(args: argparse.Namespace, **more: Any) -> SamplingParams:
    """The parameters that were given, and `more`; RequestError names the one that is wrong."""
    from dashinfer_lite import SamplingParams

    given = {name: value for name, *_ in _VALUES if (value := getattr(args, name)) is not None}
    given |= {name: value for _, name, *_ in _LISTS if (value := getattr(args, name)) is not None}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    return SamplingParams(
        max_tokens=args.max_tokens,
        ignore_eos=args.ignore_eos,
        include_stop_str_in_output=args.include_stop,
        skip_special_tokens=not args.keep_special_tokens,
        **({"temperature": 0.0} | given | more),
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ID=B, such as 42=-100") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


_VALUES: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
    ("temperature", float, "T", "0: the most likely token always; 1: as the model says (default: 0)"),
    ("top_k", int, "K", "draw among the K most likely tokens"),
    ("top_p", float, "P", "draw among the fewest tokens that have the probability P together"),
    ("min_p", float, "P", "draw among tokens at least P times as likely as the best"),
    ("repetition_penalty", float, "R", "above 1: tokens that occurred become less likely"),
    ("presence_penalty", float, "R", "taken from the logit of every token that the answer holds"),
    ("frequency_penalty", float, "R", "the same for each time that it holds it"),
    ("no_repeat_ngram_size", int, "N", "no run of N tokens occurs twice"),
    ("min_tokens", int, "N", "at least so many tokens"),
    ("seed", int, "N", "the same seed gives the same answer"),
)
_LISTS: tuple[tuple[str, str, Callable[[str], Any], str, str], ...] = (
    ("--stop", "stop", str, "TEXT", "end before this text"),
    ("--stop-token-id", "stop_token_ids", int, "ID", "end after this token"),
    ("--bad-word", "bad_words", str, "TEXT", "never say this"),
    ("--logit-bias", "logit_bias", _bias, "ID=B", "add B to a token's logit"),
)
