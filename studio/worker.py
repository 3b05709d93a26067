"""The process that owns the networks: takes one job after another, and tells what happens.

It is started with the "spawn" method, because a process that has run OpenMP kernels must not be forked. Messages are
pairs (kind, content) over a pipe. To the worker: ("run", Job), ("cancel", job id). From it:

    ("say", sentence)      while the networks are loaded
    ("ready", Ready)       once they are
    ("beat", bytes)        every second, with the resident memory
    ("event", event)       Progress or Note of the running job
    ("done", Result)       and one of these at the end of a job:
    ("cancelled", None), ("refused", [sentences]), ("failed", (kind, sentence, details))

The worker ends when the pipe does, so it never outlives the studio.
"""

from __future__ import annotations

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
import ctypes
import gc
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from studio.events import Cancelled, JobError, Note
from studio.inputs import sentences_of
from studio.job import Job
from studio.refine_job import RefineJob
from studio.settings import ReconstructSettings
from trellis.errors import InputError

BEAT_SECONDS = 1.0
ENDINGS = ("done", "cancelled", "refused", "failed")  # messages that end a job


@dataclass(frozen=True)
class Options:
    """What a worker is started with.

    Attributes:
        checkpoint: a folder or repository; None for the chosen one.
        device: None takes a GPU if there is one.
        cache_folder: of the stage cache; None keeps nothing.
        cache_bytes: its bound.
        backends: by need, the name of what is to do that part of the work; all others are chosen automatically.
        gpu_seconds: the longest call that is asked of ZeroGPU; without an account one may use 120 in a day.
    """

    checkpoint: str | None = None
    device: str | None = None
    cache_folder: Path | None = None
    cache_bytes: int = 4 * 2**30
    backends: Mapping[str, str] = field(default_factory=dict)
    gpu_seconds: int = 120


@dataclass(frozen=True)
class Ready:
    """What has been loaded.

    Attributes:
        checkpoint: its name.
        defaults: the settings it recommends.
        device: where it runs.
        engine: a hash of networks and machine, under which the history of run times is kept.
        weights: SHA-256 of every weight file, by network.
        pid: of the process.
    """

    checkpoint: str
    defaults: ReconstructSettings
    device: str
    engine: str
    weights: dict[str, str]
    pid: int


def main(pipe: Connection, options: Options) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the studio, which cancels the job
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _bound_heaps()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the studio has gone
        _Worker(pipe, options).serve()


class _Worker:
    def __init__(self, pipe: Connection, options: Options) -> None:
        self._pipe, self._options = pipe, options
        self._sending = threading.Lock()
        self._cancelled: set[str] = set()

    def serve(self) -> None:
        from studio.cache import StageCache
        from studio.engine import load_engine
        from studio.history import History

        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            engine = load_engine(
                self._options.checkpoint, self._options.device, lambda sentence: self._send("say", sentence),
                self._options.backends,
            )  # fmt: skip
            pace = engine.pace
        except Exception as error:
            self._send(*_ending(error))
            return
        cache = StageCache(
            self._options.cache_folder, self._options.cache_bytes, lambda sentence: self._send("event", Note(sentence))
        )
        release_memory()
        self._send("ready", Ready(engine.checkpoint, engine.defaults, str(engine.pipeline.device), pace,
                                  engine.weights, os.getpid()))  # fmt: skip
        while True:
            kind, job = self._pipe.recv()
            if kind != "run":
                continue  # the cancelling of a job that has just ended
            self._run(job, engine, cache, History())
            self._cancelled.discard(job.id)
            release_memory()

    def _run(self, job: Job | RefineJob, engine: Any, cache: Any, history: Any) -> None:
        perform(job, engine, self._send, lambda: self._is_cancelled(job.id), cache, history)

    def _is_cancelled(self, job: str) -> bool:
        """Read what has come in the meantime. Asked between steps, so nothing else needs to listen."""
        while self._pipe.poll():
            kind, content = self._pipe.recv()
            if kind == "cancel":
                self._cancelled.add(content)
        return job in self._cancelled

    def _send(self, kind: str, content: Any) -> None:
        with self._sending:
            self._pipe.send((kind, content))

    def _beat(self) -> None:
        import psutil

        process, pause = psutil.Process(), threading.Event()
        with suppress(OSError):
            while True:
                self._send("beat", process.memory_info().rss)
                pause.wait(BEAT_SECONDS)


def perform(
    job: Job | RefineJob, engine: Any, send: Callable[[str, Any], None], cancelled: Callable[[], bool], cache: Any,
    history: Any,
) -> None:  # fmt: skip
    """Run a job and send what it tells, and in the end one of the messages that end a job."""
    hooks = {"emit": lambda event: send("event", event), "cancelled": cancelled, "cache": cache}
    try:
        if isinstance(job, RefineJob):
            from studio.refine_runner import run_refine

            result = run_refine(job, engine, **hooks)
        else:
            from studio.runner import run_job

            result = run_job(job, engine, history=history, **hooks)
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        send(*_ending(error))
    else:
        send("done", result)


def _ending(error: Exception) -> tuple[str, Any]:
    """The message that tells what a job, or the loading of the networks, ended with."""
    if isinstance(error, Cancelled):
        return "cancelled", None
    if isinstance(error, InputError):
        return "refused", sentences_of(error)
    if isinstance(error, JobError):
        return "failed", (error.kind, str(error), error.details)
    details = "".join(traceback.format_exception(error))
    sentence = f"The studio failed with an unexpected {type(error).__name__}; its log says more."
    return "failed", ("bug", sentence, details)


def _bound_heaps() -> None:
    """Have glibc keep two heaps instead of eight per core.

    Otherwise what a job has freed stays scattered over many heaps, and the resident size wanders by a tenth. (Mapping
    large blocks one by one would steady it further, but page faults then make sampling a third slower.)
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(arena_max, 2)


def release_memory() -> None:
    """Give what the last job used back to the system, so that memory returns to where it was."""
    import torch

    from studio import memory

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    memory.release()
