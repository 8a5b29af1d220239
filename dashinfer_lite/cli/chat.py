"""Talk with a model: answers stream, and the conversation goes on until Ctrl-D.

Ctrl-C ends the answer, not the program. Without --model the embedded demo model answers: a toy that knows a few hundred
facts, simple sums and fox stories.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dashinfer_lite.cli.figures import figures
from dashinfer_lite.cli.options import add_model_options, add_sampling_options, load, sampling_params
from dashinfer_lite.cli.terminal import Style, is_terminal, tolerate_encoding
from dashinfer_lite.errors import DashInferError

if TYPE_CHECKING:
    import argparse

    from dashinfer_lite.cli.options import Loaded
    from dashinfer_lite.outputs import RequestOutput
    from dashinfer_lite.sampling_params import SamplingParams

HELP = "talk with a model; without --model, with the embedded demo"

COMMANDS = """\
/help           this list
/clear          forget the conversation
/system TEXT    begin anew with a system message; without a text: without one
/retry          answer the last message again
/stats          the figures of the last answer and of the prefix cache
/quit           leave (also Ctrl-D); Ctrl-C ends an answer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `chat` takes."""
    parser.add_argument("--once", metavar="TEXT", help="answer this one message and leave")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=1024)


def run(args: argparse.Namespace) -> int:
    """Answer once, or until the user leaves."""
    tolerate_encoding()
    params = sampling_params(args)
    loaded = load(args)
    with loaded.llm:
        chat = Chat(loaded, params, args.system)
        if args.once is not None:
            return 0 if chat.ask(args.once) else 130
        chat.converse(is_demo=args.model is None)
    return 0


class Chat:
    """A conversation on the terminal."""

    def __init__(self, loaded: Loaded, params: SamplingParams, system: str | None) -> None:
        self._loaded = loaded
        self._params = params
        self._style = Style(sys.stdout)
        self._last: RequestOutput | None = None
        self._messages: list[dict[str, str]] = []
        self._begin(system)

    def converse(self, is_demo: bool) -> None:
        """Take lines until the end of the input."""
        is_live = is_terminal(sys.stdin)
        if is_live:
            import readline  # noqa: F401 - its import gives input() history and line editing

            name = (
                "the embedded demo model, a toy; --model FOLDER takes a real one" if is_demo else self._loaded.llm.name
            )
            print(self._style.dim(f"{name}\n/help lists the commands, Ctrl-D leaves"))
        while (line := self._read("> " if is_live else "")) is not None:
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                elif line:
                    self.ask(line)
            except KeyboardInterrupt:
                print()
            except DashInferError as error:
                print(self._style.bad(f"{error}"))

    def ask(self, text: str) -> bool:
        """Send a message and stream the answer; False where Ctrl-C ended it. What has been said stays remembered."""
        self._messages.append({"role": "user", "content": text})
        is_whole = True
        try:
            request = self._loaded.llm.submit(messages=self._messages, params=self._params)
            try:
                for piece in request:
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                is_whole = False
            finally:
                request.cancel()  # whatever ended the loop; without effect on an answer that is whole
            self._last = output = request.result()
        except BaseException:
            self._messages.pop()
            raise
        self._messages.append({"role": "assistant", "content": output.text})
        print(f"{'' if is_whole else ' …'}\n{self._style.dim(figures(self._loaded, output))}", flush=True)
        return is_whole

    def _read(self, prompt: str) -> str | None:
        """The next line, None at the end; Ctrl-C empties it."""
        while True:
            try:
                return input(self._style.bold(prompt) if prompt else "").strip()
            except KeyboardInterrupt:
                print()
            except EOFError:
                if prompt:
                    print()
                return None

    def _command(self, line: str) -> bool:
        """Do what a line with a slash says; False: leave."""
        name, _, rest = line[1:].partition(" ")
        match name:
            case "help":
                print(COMMANDS, end="")
            case "clear":
                self._begin(self._system)
                print(self._style.dim("the conversation is forgotten"))
            case "system":
                self._begin(rest.strip() or None)
                print(self._style.dim("a new conversation begins"))
            case "retry":
                self._retry()
            case "stats":
                print(self._stats())
            case "quit" | "exit":
                return False
            case _:
                print(f"there is no command /{name}; /help lists them")
        return True

    def _begin(self, system: str | None) -> None:
        self._system = system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def _retry(self) -> None:
        if len(self._messages) < 2 or self._messages[-1]["role"] != "assistant":
            print("there is no answer yet")
            return
        self._messages.pop()
        self.ask(self._messages.pop()["content"])

    def _stats(self) -> str:
        if self._last is None:
            return "no answer yet"
        usage = self._last.usage
        stats = self._loaded.llm.stats()
        return (
            f"{figures(self._loaded, self._last)}\n"
            f"last answer: {usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached, "
            f"{usage.completion_tokens} generated\n" + "\n".join(f"{name}: {value}" for name, value in stats.items())
        )
