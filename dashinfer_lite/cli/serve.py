"""Serve a model over HTTP, with OpenAI's API and a chat page. Needs the extra `server`.

The server listens on the loopback interface unless --host says otherwise, and is ready when it says so. The first
Ctrl-C or SIGTERM lets running answers finish and takes in no new ones, the second one drops them.
"""

from __future__ import annotations

import logging
import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from dashinfer_lite.cli.options import Loaded, add_host_memory_option, add_run_options, add_type_options, load
from dashinfer_lite.cli.terminal import Style, seconds, size
from dashinfer_lite.errors import DashInferError, RequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from dashinfer_lite.llm import LLM
    from dashinfer_lite.server.settings import Settings

HELP = "serve a model over HTTP, with OpenAI's API and a chat page"

KEY_VARIABLE = "DASHINFER_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `serve` takes."""
    parser.add_argument(
        "model", nargs="?", metavar="FOLDER", help="a Hugging Face model folder (default: the embedded demo)"
    )
    group = parser.add_argument_group("where and for whom")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free (default: 8000)")
    group.add_argument("--name", help="the model's name for clients (default: the folder's)")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help=f"ask for this key; may be repeated (or set {KEY_VARIABLE})"
    )
    group.add_argument("--api-key-file", metavar="FILE", help="a file with one key a line")
    group.add_argument("--insecure", action="store_true", help="listen on other interfaces without a key")
    group.add_argument(
        "--allow-host", action="append", metavar="NAME", help="a further name that the Host header may have"
    )
    group.add_argument(
        "--allow-origin", action="append", metavar="URL", help="let web pages of this origin call (default: none)"
    )
    group = parser.add_argument_group("limits")
    group.add_argument("--max-waiting", type=int, metavar="N", help="requests that wait (default: 4 x max-batch)")
    group.add_argument(
        "--max-waiting-tokens", type=int, metavar="N", help="their prompt tokens (default: 4 x the KV cache's)"
    )
    group.add_argument("--max-wait", type=float, default=60.0, metavar="S", help="seconds to wait (default: 60)")
    group.add_argument("--max-n", type=int, default=16, metavar="N", help="answers a request (default: 16)")
    group.add_argument("--max-body", default="8MiB", metavar="SIZE", help="of a request (default: 8MiB)")
    group.add_argument("--drain", type=int, default=30, metavar="S", help="seconds to finish in (default: 30)")
    group = parser.add_argument_group("model")
    add_type_options(group)
    add_run_options(group)
    add_host_memory_option(group)
    group.add_argument(
        "--plain-defaults", action="store_true", help="ignore the sampling defaults that the folder recommends"
    )
    group = parser.add_argument_group("what it tells")
    group.add_argument("--metrics-prefix", default="dashinfer", metavar="NAME", help="at /metrics (default: dashinfer)")
    group.add_argument("--access-log", action="store_true", help="a line for each request; never its content")
    group.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    settings = _settings(args)
    if args.drain < 1:
        raise RequestError(f"--drain is {args.drain}; it must be at least 1")
    try:
        from dashinfer_lite.server.app import create_app
        from dashinfer_lite.server.serve import listen, serve
    except ModuleNotFoundError as error:
        raise DashInferError(f'serve needs {error.name}: pip install "dashinfer-lite[server]"') from None
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    if args.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    name = Path(args.model).resolve().name if args.model else "tiny_chat"
    app = create_app(settings=settings, name=name)
    bound = listen(args.host, args.port)
    port = bound.getsockname()[1]
    loads: list[Loaded] = []

    def load_model(go_on: Callable[[], bool]) -> LLM:
        loads.append(load(args, go_on))
        return loads[0].llm

    def greet(llm: LLM) -> None:
        print(_greeting(args.host, port, llm, loads[0].load_s), flush=True)

    return serve(app, bound, load_model, greet, drain_s=args.drain, access_log=args.access_log)


def _settings(args: argparse.Namespace) -> Settings:
    from dashinfer_lite.loading import parse_size
    from dashinfer_lite.server.settings import LOOPBACK_HOSTS, Settings

    keys = _keys(args)
    is_local = _is_loopback(args.host)
    if not is_local and not keys and not args.insecure:
        raise RequestError(f"--host {args.host} is open to others: give an --api-key, or say --insecure")
    if not 0 <= args.port < 2**16:
        raise RequestError(f"--port is {args.port}; it must be from 0 to 65535")
    for option in ("max_waiting", "max_waiting_tokens", "max_n"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise RequestError(f"--{option.replace('_', '-')} is {value}; it must be at least 1")
    if not 0 < args.max_wait < float("inf"):
        raise RequestError(f"--max-wait is {args.max_wait}; it must be a number of seconds above 0")
    if not args.metrics_prefix.isidentifier():
        raise RequestError(f"--metrics-prefix is {args.metrics_prefix!r}; it must be a name")
    hosts = (*LOOPBACK_HOSTS, *(args.allow_host or ())) if is_local or args.allow_host else None
    return Settings(
        name=args.name,
        api_keys=keys,
        allowed_hosts=None if hosts is None else tuple(name.lower() for name in hosts),
        allowed_origins=tuple(args.allow_origin or ()),
        max_waiting=args.max_waiting,
        max_waiting_tokens=args.max_waiting_tokens,
        max_wait_s=args.max_wait,
        max_n=args.max_n,
        max_body=parse_size("--max-body", args.max_body),
        metrics_prefix=args.metrics_prefix,
        generation_defaults=not args.plain_defaults,
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _keys(args: argparse.Namespace) -> tuple[str, ...]:
    """The keys of the options, the file and the environment."""
    keys = list(args.api_key or ())
    if args.api_key_file:
        keys += Path(args.api_key_file).read_text(encoding="utf-8").split()
        if not keys:
            raise RequestError(f"{args.api_key_file}: holds no key")
    if not keys and os.environ.get(KEY_VARIABLE):
        keys = [os.environ[KEY_VARIABLE]]
    if not all(key.strip() for key in keys):
        raise RequestError("an API key must not be empty")
    return tuple(key.strip() for key in keys)


def _greeting(host: str, port: int, llm: LLM, load_s: float) -> str:
    from dashinfer_lite import _native

    style, info = Style(sys.stdout), llm.info
    place = f"[{host}]" if ":" in host else host
    return "\n".join(
        [
            f"{style.bold(llm.name)} on {info['device']} {info['tier']}, {info['threads']} threads: "
            f"ready in {seconds(load_s)}, {size(_native.memory()[0])}",
            f"  page  http://{place}:{port}/",
            f"  API   http://{place}:{port}/v1",
            style.dim("Ctrl-C lets running answers finish; a second one drops them."),
        ]
    )
