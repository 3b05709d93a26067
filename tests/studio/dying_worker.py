"""A worker that is killed, as by `kill -9`, in the middle of the stage that its job's user is called after."""

from __future__ import annotations

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
import os
import signal
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


def main(pipe: Connection, options: worker.Options) -> None:
    engine.warm_up = lambda: None  # it dies before that pays
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _DyingWorker(pipe, options).serve()
