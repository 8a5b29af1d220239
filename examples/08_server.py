"""A server in the program, and a client that streams from it: OpenAI's where it is installed.

python examples/08_server.py [model folder]     needs the extra "server"
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import uvicorn

from dashinfer_lite import LLM
from dashinfer_lite.server import create_app

QUESTION: Any = [{"role": "user", "content": "What is 17 + 25?"}]


def ask(url: str, model: str) -> Iterator[str]:
    """OpenAI's client needs another base_url and nothing else; without it, events are lines of JSON."""
    try:
        from openai import OpenAI
    except ImportError:
        body = json.dumps({"model": model, "messages": QUESTION, "stream": True}).encode()
        post = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(post) as lines:
            for line in lines:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    else:
        with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            for chunk in client.chat.completions.create(model=model, messages=QUESTION, stream=True):
                yield chunk.choices[0].delta.content or ""


def main(folder: str | None = None) -> None:
    """Serve on a free port, ask, and stop."""
    with LLM(folder) as llm, socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(llm), log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()  # who connects before it listens waits in the socket's queue
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for piece in ask(url, llm.name):
            print(piece, end="", flush=True)
        print(f"\n[{llm.name} at {url}]")
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:2])
