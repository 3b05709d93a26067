"""Workers that misbehave: one is killed, as by `kill -9`, in the middle of the stage that its job's user is called
after; one never ends the first step of a stage and does not hear that its job is cancelled."""

from __future__ import annotations

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from studio import engine, worker
from studio.events import Progress


class _DyingWorker(worker._Worker):
    user = ""

    def _run(self, job: Any, *args: Any) -> None:
        self.user = job.user
        super()._run(job, *args)

    def _send(self, kind: str, content: Any) -> None:
        super()._send(kind, content)
        running = isinstance(content, Progress) and not content.cached
        if running and content.stage == self.user and 2 * content.step >= content.of:
            os.kill(os.getpid(), signal.SIGKILL)


class _StuckWorker(worker._Worker):
    def _send(self, kind: str, content: Any) -> None:
        super()._send(kind, content)
        if isinstance(content, Progress) and content.stage == "latent":
            time.sleep(3600)


def main(pipe: Connection, options: worker.Options) -> None:
    """Dies."""
    _serve(_DyingWorker, pipe, options)


def stuck_main(pipe: Connection, options: worker.Options) -> None:
    """Never gets beyond the beginning of the latent."""
    _serve(_StuckWorker, pipe, options)


def _serve(kind: type[worker._Worker], pipe: Connection, options: worker.Options) -> None:
    engine.warm_up = lambda: None  # it dies before that pays
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        kind(pipe, options).serve()
