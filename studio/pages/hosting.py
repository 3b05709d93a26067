"""How the studio is hosted, as environment variables say: who may come in, how much they may ask for, and for how long.

    RECONSTUDIO_LOGIN          "name:password", several separated by commas; none lets everybody in
    RECONSTUDIO_QUEUE          jobs that may wait, of all visitors together (64); RECONSTUDIO_QUEUE_EACH of one (4)
    RECONSTUDIO_UPLOAD_MB      largest file (256)
    RECONSTUDIO_KEEP           seconds after which the files of a visitor who has gone are removed (3600)
    RECONSTUDIO_GRACE          seconds after which their running job is cancelled (60)
    RECONSTUDIO_MCP            1 offers the named endpoints as tools of the Model Context Protocol too
    RECONSTUDIO_ZERO_GPU       longest call in seconds that is asked of ZeroGPU, on a Space that has it (120)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from studio.pages.sessions import GRACE_SECONDS, KEEP_SECONDS
from studio.worker import Options
from trellis.errors import InputError


@dataclass(frozen=True)
class Hosting:
    """logins: (name, password) pairs, empty to let everybody in. The others as in the module's table."""

    logins: tuple[tuple[str, str], ...] = ()
    queue: int = 64
    queue_each: int = 4
    upload_mb: int = 256
    keep: float = KEEP_SECONDS
    grace: float = GRACE_SECONDS
    mcp: bool = False
    gpu_seconds: int = Options.gpu_seconds


def hosting(environment: Mapping[str, str] = os.environ) -> Hosting:
    """What the environment says. Raises InputError with a sentence for a value that means nothing."""
    mcp = _is_on("RECONSTUDIO_MCP", environment)
    if mcp and find_spec("mcp") is None:
        raise InputError("RECONSTUDIO_MCP needs the package mcp: pip install 'gradio[mcp]'.")
    return Hosting(
        logins=_logins(environment.get("RECONSTUDIO_LOGIN", "")),
        queue=int(_number(environment, "RECONSTUDIO_QUEUE", Hosting.queue, 1, 10_000)),
        queue_each=int(_number(environment, "RECONSTUDIO_QUEUE_EACH", Hosting.queue_each, 1, 1000)),
        upload_mb=int(_number(environment, "RECONSTUDIO_UPLOAD_MB", Hosting.upload_mb, 1, 4096)),
        keep=_number(environment, "RECONSTUDIO_KEEP", Hosting.keep, 1, 30 * 86_400),
        grace=_number(environment, "RECONSTUDIO_GRACE", Hosting.grace, 1, 86_400),
        mcp=mcp,
        gpu_seconds=int(_number(environment, "RECONSTUDIO_ZERO_GPU", Hosting.gpu_seconds, 10, 3600)),
    )


def _is_on(name: str, environment: Mapping[str, str]) -> bool:
    return environment.get(name, "").strip().lower() in ("1", "true", "t", "yes", "on")


def _logins(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, colon, password = entry.partition(":")
        if not name or not colon or not password:
            raise InputError("RECONSTUDIO_LOGIN must be name:password, several separated by commas.")
        pairs.append((name, password))
    return tuple(pairs)


def _number(environment: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, but {text!r:.40} came.")
    return value
