"""How a server behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an application may be told; the defaults suit one machine and the people on it.

    name                  the model's name for clients; None: the name of its folder
    api_keys              one of them must come as `Authorization: Bearer …`; empty: none is asked for
    allowed_hosts         names that the Host header may have, against DNS rebinding; None: any
    allowed_origins       web pages of these origins may call the server (CORS); empty: none but its own
    max_waiting           requests that wait for their first step; None: four times what is computed together
    max_waiting_tokens    and their prompt tokens; None: four times what the KV cache holds
    max_wait_s            and the seconds that they have to wait at the measured rate of prefill
    max_n                 answers a request may ask for
    max_prompts           prompts of one completion or embedding request
    max_body              bytes of a request's body
    max_headers           bytes of a request's headers
    body_timeout_s        seconds in which a body must arrive
    ping_s                a stream that has nothing to say sends a comment after so many seconds
    metrics_prefix        of the names at /metrics
    generation_defaults   sampling defaults that the model's folder recommends are used
    """

    name: str | None = None
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    allowed_origins: tuple[str, ...] = ()
    max_waiting: int | None = None
    max_waiting_tokens: int | None = None
    max_wait_s: float = 60.0
    max_n: int = 16
    max_prompts: int = 256
    max_body: int = 8 << 20
    max_headers: int = 64 << 10
    body_timeout_s: float = 30.0
    ping_s: float = 15.0
    metrics_prefix: str = "dashinfer"
    generation_defaults: bool = True
