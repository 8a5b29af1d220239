"""The public face: a model that generates text."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

from dashinfer_lite.engine import Engine, Request
from dashinfer_lite.engine.pooling import normalized
from dashinfer_lite.errors import CancelledError, DashInferError, ModelError, RequestError
from dashinfer_lite.grammar.compiler import GrammarCompiler
from dashinfer_lite.loading import (
    DTYPES,
    KV_DTYPES,
    Options,
    demo_model_folder,
    kv_dtype_for,
    load_model,
    parse_size,
)
from dashinfer_lite.outputs import EmbeddingOutput
from dashinfer_lite.prompts import (
    Messages,
    Params,
    Prompt,
    is_single_conversation,
    is_single_prompt,
    listed_prompts,
    params_for_each,
)
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.text import Conversations, Tokenizer
from dashinfer_lite.text_codec import TextCodec
from dashinfer_lite.tool_use import plan_tools

if TYPE_CHECKING:
    from dashinfer_lite.devices import DeviceInfo
    from dashinfer_lite.engine.pooling import Kind as Pooling
    from dashinfer_lite.graph.quant import QuantPolicy
    from dashinfer_lite.outputs import RequestOutput
    from dashinfer_lite.tools import ToolPlan

__all__ = ["DTYPES", "LLM", "demo_model_folder", "kv_dtype_for"]


class LLM:
    """A model, loaded from a folder in the Hugging Face format.

    Any thread may use it; requests that overlap are computed together. Close it, or use it in a `with` block: that
    ends what is still going on and gives all memory back.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        kv_cache: str = "auto",
        kv_memory: str | int = "2GiB",
        threads: int | None = None,
        max_context: int | None = None,
        max_batch: int | None = None,
        *,
        max_queue: int = 1024,
        prefix_cache: bool = True,
        host_kv_memory: str | int = 0,
        progress: Callable[[int, int], object] | None = None,
        isa: str | None = None,
        passes: Iterable[str] | None = None,
        quant: str | QuantPolicy | None = None,
        head: str | None = None,
    ) -> None:
        """Load a model; without a path, the embedded demo model.

        device         "cpu", "reference", or another of `dashinfer_lite.devices()`
        dtype          of the weights: "auto" (as stored), "fp32", "fp16" or "bf16"
        quant          how matrices are multiplied: "a16w8" (or "int8"), "a16w4" (or "int4"), "a8w8", each with "-g32"
                       to "-g512" for groups; "none": in floating point; None: as they are stored, and in fp32 with
                       dtype="fp32". A QuantPolicy says more, layer by layer
        head           of the LM head: "int8", or "bf16" for as it is stored; None: "int8" where there is a `quant`
        kv_cache       type of the KV cache: "auto", "fp32", "bf16", "int8" or "uint4"; on GPUs also "fp16"
        kv_memory      the KV cache's largest size; memory is used when it is first needed
        threads        threads to compute with; None: the physical cores that the process may use
        max_context    most tokens of prompt and answer; None: the model's, or what kv_memory holds
        max_batch      most sequences that are computed together; None: 64
        max_queue      most requests that wait; further ones get a CapacityError
        prefix_cache   whether prompts share what they begin with
        host_kv_memory  host memory for cached prefixes that kv_memory has no room for, from where they return; taken at
                       once. 0: none. For devices with a memory of their own
        progress       called with (bytes done, bytes in all) while loading; where it returns False, loading ends with
                       CancelledError
        isa            a lower CPU tier: "amx", "avx512", "avx2" or "scalar"
        passes         names of the graph passes to run; None: all

        ModelError, DeviceError, CapacityError and RequestError say what is wrong and what to do.
        """
        if not prefix_cache and parse_size("host_kv_memory", host_kv_memory, least=0):
            raise RequestError("host_kv_memory keeps cached prefixes; leave it out, or leave prefix_cache on")
        options = Options(
            device, dtype, kv_cache, kv_memory, threads, max_context, max_batch, isa, passes, progress, quant, head,
            host_kv_memory,
        )  # fmt: skip
        model = load_model(path, options)
        tokenizer = model.tokenizer
        self._grammars = GrammarCompiler(tokenizer, model.program.vocab_size) if tokenizer is not None else None
        try:
            self._engine = Engine(
                model.executable,
                model.program,
                TextCodec(tokenizer) if tokenizer is not None else None,
                self._grammars,
                eos_token_ids=tokenizer.eos_token_ids if tokenizer is not None else model.folder.eos_token_ids,
                max_context=model.max_context,
                max_queue=max_queue,
                prefix_cache=prefix_cache,
                on_stop=model.close,
            )
            self._engine.start()
        except BaseException:
            model.close()
            raise
        self._model = model
        self._chat: Conversations | None = None
        # An object that nobody holds any more ends its engine; the interpreter's exit waits for nothing.
        weakref.finalize(self, Engine.stop, self._engine, wait=False).atexit = False

    def generate(self, prompts: Prompt | Sequence[Prompt], params: Params = None) -> list[RequestOutput]:
        """Generate for a prompt or a list of prompts, each a text or a list of token ids; one output each, in order.

        `params` are for all prompts, or one a prompt. RequestError for a prompt that cannot be served, and then none
        is. What fails later is raised for a single prompt; in a list it is that output's `error`.
        """
        listed = listed_prompts(prompts)
        own_params = params_for_each(params, len(listed))
        return self._run([self._prompt(prompt) for prompt in listed], own_params, is_single_prompt(prompts))

    @overload
    def chat(self, messages: Messages, params: Params = None, **template: Any) -> RequestOutput: ...
    @overload
    def chat(self, messages: Sequence[Messages], params: Params = None, **template: Any) -> list[RequestOutput]: ...
    def chat(
        self, messages: Messages | Sequence[Messages], params: Params = None, **template: Any
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation, a list of {"role": …, "content": …}; a list of conversations gives a list of outputs.

        Further arguments, such as `tools`, are handed to the model's chat template. Errors are as in `generate`.
        """
        is_single = is_single_conversation(messages)
        listed: Sequence[Any] = [messages] if is_single else messages
        own_params = params_for_each(params, len(listed))
        outputs = self._run([self.chat_prompt(item, **template) for item in listed], own_params, is_single)
        return outputs[0] if is_single else outputs

    def submit(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Messages | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        **template: Any,
    ) -> Request:
        """Queue a prompt or a conversation and return its handle at once.

        Lower `priority` goes first. Prompts share cached prefixes only with those of the same `cache_salt`. Further
        arguments are handed to the chat template. CapacityError where the queue is full. A grammar that is new is
        compiled before this returns; `prepare` does that apart.
        """
        if (prompt is None) == (messages is None):
            raise RequestError("submit takes either a prompt or messages")
        text, ids = self._prompt(prompt) if prompt is not None else self.chat_prompt(messages or (), **template)
        return self._engine.submit(ids, params, prompt=text, priority=priority, cache_salt=cache_salt, owner=self)

    def prepare(self, params: SamplingParams | None) -> None:
        """Compile what `params.guided` asks for, so that `submit` need not wait for it; RequestError as there."""
        if params is not None and params.guided is not None and self._grammars is not None:
            self._grammars.compile(params.guided)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "last", normalize: bool = True
    ) -> list[EmbeddingOutput]:
        """The vectors of a prompt or a list of prompts, one each, in order.

        pooling      "last": the state of the last token, which has seen the whole text; "mean": the mean of all tokens
        normalize    scale to length 1, so that a dot product is the cosine

        The states are those that the LM head multiplies. Errors are as in `generate`, except that one is always raised.
        """
        requests: list[Request] = []
        try:
            for prompt in listed_prompts(prompts):
                requests.append(self.submit_embedding(prompt, pooling, block=True))
            for request in requests:
                request.result()
            return [embedding_output(request, normalize) for request in requests]
        finally:
            for request in requests:
                request.cancel()

    def submit_embedding(
        self, prompt: Prompt, pooling: Pooling = "last", *, priority: int = 0, block: bool = False
    ) -> Request:
        """Queue a prompt whose vector is wanted; the handle has it as `embedding` when it is done.

        `block` waits while the queue is full, instead of CapacityError.
        """
        text, ids = self._prompt(prompt)
        return self._engine.submit(ids, prompt=text, priority=priority, pooling=pooling, block=block, owner=self)

    def render_chat(self, messages: Messages, **template: Any) -> str:
        """The text that the model's chat template, or its family's chat format, makes of a conversation."""
        return self._conversations().render(messages, **template)

    def chat_prompt(self, messages: Messages, **template: Any) -> tuple[str, list[int]]:
        """A conversation as `chat` gives it to the model: its text and its token ids."""
        return self._conversations().prompt(messages, **template)

    def plan_tools(
        self,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        **template: Any,
    ) -> ToolPlan:
        """How a conversation uses tools, given as in the OpenAI API: see ToolPlan.

        A plan without tools still takes thoughts and answer apart. Further arguments are those for the chat template.
        RequestError says what is wrong, also where the model has no format of calls that is supported.
        """
        return plan_tools(self._conversations(), self.tokenizer, tools, tool_choice, parallel_tool_calls, template)

    def close(self) -> None:
        """Cancel what is still going on and give all memory back. Closing twice is fine."""
        self._engine.stop()

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelError where its folder has none."""
        if self._model.tokenizer is None:
            raise ModelError(
                f"{self._model.folder.path}: has no tokenizer; give prompts as token ids, or add its files"
            )
        return self._model.tokenizer

    @property
    def name(self) -> str:
        """The name of the model's folder."""
        return self._model.folder.path.resolve().name

    @property
    def embedding_size(self) -> int:
        """How many numbers a vector of `embed` has."""
        return self._model.program.hidden_size

    @property
    def generation_defaults(self) -> dict[str, float]:
        """The sampling parameters that the model's folder recommends in its generation_config.json, if they are valid.

        Nothing but a server applies them: SamplingParams mean what they say.
        """
        return recommended_sampling(self._model.folder.generation)

    @property
    def device_info(self) -> DeviceInfo:
        return self._model.device.info

    @property
    def info(self) -> dict[str, Any]:
        """What is loaded, on what, and how: plain values."""
        model, device, kv = self._model, self._model.device.info, self._model.program.kv
        names = {dtype: name for name, dtype in (DTYPES | KV_DTYPES).items()}
        return {
            "model": str(model.folder.path),
            "architecture": model.folder.architecture,
            "dtype": names[model.dtype],
            "quant": str(model.quant),
            "head": model.head,
            "kv_cache": names[kv.dtype],
            "device": device.name,
            "tier": device.tier,
            "tier_detail": device.detail,
            "threads": device.threads,
            "max_context": self._engine.max_context,
            "max_batch": model.program.limits.max_seqs,
            "kv_tokens": kv.blocks * kv.block_tokens,
            "host_kv_tokens": kv.host_blocks * kv.block_tokens,
            "load_s": model.load_s,
            **{key: value for key, value in self.stats().items() if key.endswith("_bytes")},
        }

    def stats(self) -> dict[str, int]:
        """The device's and the engine's counters; DashInferError once it is closed."""
        self._engine.check_usable()
        return {**self._model.executable.stats(), **self._engine.metrics()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.name} on {self.device_info.name} {self.device_info.tier}>"

    def _prompt(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        """A prompt's text, if it has one, and its token ids."""
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        return None, prompt

    def _conversations(self) -> Conversations:
        if self._chat is None:
            self._chat = Conversations.load(self._model.folder.path, self._model.tokenizer)
        return self._chat

    def _run(
        self,
        prompts: Sequence[tuple[str | None, Sequence[int]]],
        params: Sequence[SamplingParams | None],
        is_single: bool,
    ) -> list[RequestOutput]:
        """Run requests to their ends; all are cancelled where one is refused, or the caller is interrupted."""
        requests: list[Request] = []
        try:
            for (text, ids), own in zip(prompts, params, strict=True):
                requests.append(self._engine.submit(ids, own, prompt=text, block=True, owner=self))
            return [request.result() if is_single else _settled(request) for request in requests]
        except RequestError as error:
            if is_single or len(requests) == len(prompts):
                raise
            raise RequestError(f"prompt {len(requests)}: {error}") from None
        finally:
            for request in requests:
                request.cancel()


def embedding_output(request: Request, normalize: bool) -> EmbeddingOutput:
    """The vector of a request that is done, as it is or with length 1."""
    vector = request.embedding
    if vector is None:
        raise CancelledError("the request was cancelled before its vector was there")
    return EmbeddingOutput(
        request.id,
        request.prompt,
        list(request.prompt_token_ids),
        normalized(vector) if normalize else vector,
        request.usage,
    )


def recommended_sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """Sampling parameters from a generation_config.json; `do_sample: false` is a temperature of 0."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")
    found: dict[str, Any] = {}
    for name in names:
        value: Any = generation.get(name)
        try:
            SamplingParams(**{name: value})
        except RequestError:
            continue
        found[name] = value
    if generation.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name in names[4:]} | {"temperature": 0.0}
    return found


def _settled(request: Request) -> RequestOutput:
    """A request's output once it is done, even where it failed."""
    try:
        return request.result()
    except DashInferError:
        if not request.is_done:
            raise
        return request.output()
