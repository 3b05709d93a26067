"""A worker for Hugging Face's ZeroGPU, which lends a GPU for the length of one call.

The networks are loaded once, in this process, where the package `spaces` makes torch believe that there is a GPU. A job
is one call of a decorated generator: `spaces` waits for a GPU, forks a process that has it (or takes one again that it
forked before), runs the generator there and hands on what it yields. Those are the messages of `studio.worker`, so what
owns the worker notices no difference.

What the fork asks for: this process runs no parallel kernel (libgomp would end the child) and no CUDA. Backends are
therefore chosen, and kernels warmed up, in the forked process.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from importlib.util import find_spec
from multiprocessing.sharedctypes import RawValue
from typing import Any

import psutil

from studio.events import JobError, Note
from studio.job import Job
from studio.refine_job import RefineJob
from studio.worker import BEAT_SECONDS, ENDINGS, Ready, perform, release_memory
from studio.worker_process import Worker
from trellis.errors import InputError

_START_SECONDS = 15  # to fork, to bring the networks to the GPU, to load compiled kernels
_MARGIN = 1.5  # a call that takes longer than it asked for is ended
_DEATH_SECONDS = 5  # for `spaces` to tell of a death; if that falls into the middle of a message, it may never do
_ABORTED = "ZeroGPU worker error"  # the title of the error that `spaces` raises when the forked process is gone


def on_zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU, as SPACES_ZERO_GPU tells. Raises InputError if `spaces` is missing there."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as `spaces` reads it
        return False
    if find_spec("spaces") is None:
        raise InputError(
            "This Space is on ZeroGPU, but the package spaces, which asks for its GPU, is missing: add it to "
            "requirements.txt."
        )
    return True


class ZeroGpuWorker(Worker):
    """Runs each job in a process that ZeroGPU has given a GPU. Made and started by the program's first thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine: Any = None
        self._ready: Ready | None = None
        self._call: Callable[[Job | RefineJob, int], Iterator[tuple[str, Any]]] | None = None
        self._number = 0  # of the latest job
        self._stopped = RawValue("q", 0)  # jobs up to this number shall stop; memory that forked processes share
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._child: psutil.Process | None = None
        self._lost = False
        self._asked_for = 0  # seconds
        self._prepared_in = 0  # the forked process that has chosen its backends, as that process sees it

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def alive(self) -> bool:
        return self._call is not None and not self._lost

    def start(self, stop: Callable[[], bool] = lambda: False) -> Ready:
        """Load the networks, unless that has been done: they outlive the processes that run jobs."""
        self._lost = False
        if self._ready is None:
            import spaces  # before torch, parts of which it replaces

            self._ready = self._load()
            self._call = spaces.GPU(duration=self._duration)(self._generator())
        self.starts += 1
        return self._ready

    def stop(self) -> None:
        """End the running job's process, if there is one."""
        self._stopped.value = self._number
        if self._child is not None:
            with suppress(psutil.NoSuchProcess):
                self._child.kill()
            self._lost, self._child = True, None

    def _load(self) -> Ready:
        from studio import refine_runner, runner  # noqa: F401  (here, so that no forked process has to)
        from studio.engine import load_networks, warm_up

        options = self._options
        self._engine = engine = load_networks(options.checkpoint, options.device, self._say)
        self._say("Preparing the renderers (some 20 seconds on the very first start) ...")
        # In a process of its own: it leaves the compiled kernels on the disk, where forked processes find them.
        compiling = multiprocessing.get_context("spawn").Process(target=warm_up, name="warming up", daemon=True)
        compiling.start()
        compiling.join()
        self._say("Ready. ZeroGPU lends the GPU job by job.")
        device = str(engine.pipeline.device)  # asked here: only the first thread sees the imagined GPU
        return Ready(engine.checkpoint, engine.defaults, device, engine.pace, engine.weights, os.getpid())

    # The owner's side

    def _hand_in(self, job: Job) -> None:
        self._number += 1
        self._child, self._news, self._asked_for = None, queue.SimpleQueue(), self._options.gpu_seconds
        # In the caller's context, for ZeroGPU charges the visitor whose request it finds there.
        call = (self._pull, job, self._number, self._news)
        threading.Thread(target=copy_context().run, args=call, name="ZeroGPU call", daemon=True).start()

    def _ask_to_stop(self, job: Job) -> None:
        self._stopped.value = self._number

    def _pull(self, job: Job, number: int, news: queue.SimpleQueue[tuple[str, Any]]) -> None:
        """Make the call, which waits for a GPU first, and pass on what comes.

        The ending comes last, once the GPU is given back, so that the next job does not ask for a second one.
        """
        ending: tuple[str, Any] = ("lost", None)
        try:
            for message in self._call(job, number):
                if message[0] in ENDINGS:
                    ending = message
                else:
                    news.put(message)
        except Exception as error:
            if ending[0] == "lost":
                ending = ("lost", error)
        news.put(ending)

    def _messages(self, when: str, silence: float) -> Iterator[tuple[str, Any]]:
        begun = time.monotonic()
        while True:
            try:
                kind, content = self._news.get(timeout=0.1)
            except queue.Empty:
                now = time.monotonic()
                if self._child is None and self._stopped.value >= self._number:
                    yield "cancelled", None  # nothing runs yet; a GPU that comes later is given back at once
                elif self._child is not None and now - self._last_sign > _DEATH_SECONDS and not _lives(self._child):
                    ran, self._child, self._lost = self._last_sign - begun, None, True
                    raise _loss(None, when, ran, self._asked_for) from None
                elif now - self._last_sign > silence:
                    self.stop()
                    sentence = f"ZeroGPU gave no sign of life for {silence:.0f} seconds {when}."
                    raise JobError(sentence, "worker") from None
                yield "tick", None
                continue
            self._last_sign = time.monotonic()
            if kind == "started":
                begun = self._last_sign
                with suppress(psutil.NoSuchProcess):
                    self._child = psutil.Process(content)
                continue
            if kind == "lost":
                ran = None if self._child is None else self._last_sign - begun
                self._child, self._lost = None, True
                raise _loss(content, when, ran, self._asked_for)
            if kind == "beat":
                self.memory = content
            elif kind in ENDINGS:
                self._child = None
            yield kind, content

    def _duration(self, job: Job | RefineJob, number: int) -> int:
        """Seconds to ask for: what such a job took here before, with a margin; the most there is if none ran before."""
        from studio.history import History

        expected = None
        if isinstance(job, Job):
            expected = History().expected(self._ready.engine, job.settings, len(job.views))
        if expected is None:
            return self._asked_for
        stages = ("prepare", "cameras") if job.until == "cameras" else expected
        spent = sum(expected[stage] for stage in stages)
        self._asked_for = min(self._options.gpu_seconds, math.ceil(_START_SECONDS + _MARGIN * spent))
        return self._asked_for

    # The forked process's side

    def _generator(self) -> Callable[[Job | RefineJob, int], Iterator[tuple[str, Any]]]:
        def run_on_zero_gpu(job: Job | RefineJob, number: int) -> Iterator[tuple[str, Any]]:
            """What `studio.worker` tells of a job: it runs in a thread, so that a long step does not stop the beat."""
            yield "started", os.getpid()
            news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
            running = threading.Thread(target=self._perform, args=(job, number, news), name="job", daemon=True)
            running.start()
            while True:
                try:
                    message = news.get(timeout=BEAT_SECONDS)
                except queue.Empty:
                    if not running.is_alive():
                        return
                    yield "beat", psutil.Process().memory_info().rss
                    continue
                if message[0] in ENDINGS:
                    running.join()  # it gives memory back
                yield message
                if message[0] in ENDINGS:
                    return

        return run_on_zero_gpu

    def _perform(self, job: Job | RefineJob, number: int, news: queue.SimpleQueue[tuple[str, Any]]) -> None:
        from studio.backends import choose
        from studio.cache import StageCache
        from studio.engine import warm_up
        from studio.history import History

        def send(kind: str, content: Any) -> None:
            news.put((kind, content))

        options = self._options
        if self._prepared_in != os.getpid():
            for weight in self._weights():
                weight.requires_grad_(False)  # the stand-ins that `spaces` put in their place have forgotten it
            choose(self._engine.pipeline.device, options.backends)
            warm_up()
            self._prepared_in = os.getpid()
        cache = StageCache(options.cache_folder, options.cache_bytes, lambda sentence: send("event", Note(sentence)))
        perform(job, self._engine, send, lambda: self._stopped.value >= number, cache, History())
        release_memory()

    def _weights(self) -> Iterator[Any]:
        pipeline = self._engine.pipeline
        for network in (*pipeline.models.values(), pipeline.vggt, pipeline.image_cond_model):
            yield from network.parameters()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _loss(error: Exception | None, when: str, ran: float | None, asked_for: int) -> JobError:
    """Why a call ended before the job did.

    ran: seconds that it had a GPU for; None if it got none.
    """
    title, message = getattr(error, "title", None), str(getattr(error, "message", error)).strip().rstrip(".")
    details = "" if error is None else f"{title or type(error).__name__}: {message}"
    if ran is not None and (error is None or title == _ABORTED):
        return JobError(
            f"ZeroGPU ended the process {when}, {ran:.0f} s after it had started; {asked_for} s had been asked for. "
            "Stages that were finished are kept, so the same job goes on from there.",
            "worker", details,
        )  # fmt: skip
    if title is not None:  # an error for people's eyes: the quota, the length of the call, no GPU within a minute
        return JobError(f"ZeroGPU lends no GPU for this job: {message}.", "worker", details)
    return JobError(f"ZeroGPU could not be asked for a GPU ({message:.200}); the log says more.", "worker", details)
