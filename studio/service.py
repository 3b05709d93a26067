"""The engine as every door uses it: hand in a job, follow it, cancel it, keep its result.

    with Service(checkpoint) as service:
        ticket = service.submit(job)
        for event in ticket.events():
            ...

A thread per device takes jobs from one queue and feeds them to that device's worker process. A worker that dies fails
the job it was running, with the reason, and is replaced for the next one. On ZeroGPU, which lends its GPU call by call,
the processes of `studio.zero_gpu` take the place of the worker's.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Literal

from studio.cache import DEFAULT_BYTES, default_folder
from studio.engine import chosen_checkpoint
from studio.events import CamerasFound, Cancelled, JobError, Note, Progress, Queued, Result
from studio.fair_queue import FairQueue
from studio.job import Job
from studio.settings import ReconstructSettings
from studio.worker import Options, Ready
from studio.worker_process import SILENCE_SECONDS, Worker, WorkerProcess
from studio.zero_gpu import ZeroGpuWorker, on_zero_gpu
from trellis.errors import InputError

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "cancelled", "failed"]
Event = Queued | Progress | Note | Result | CamerasFound

_POLL = 0.1  # seconds
_HEARTBEAT = 0.5  # seconds between repeated events while nothing new happens


@dataclass(eq=False)
class Ticket:
    """A job that has been handed in.

    Attributes:
        state: where it is.
        result: once it is done.
        error: once it has failed: InputError or JobError.
        cancelled: set by `cancel`, or by whoever shares the event.
        context: the context variables of whoever handed it in, such as the request that ZeroGPU charges for it.
    """

    job: Job
    state: State = "queued"
    result: Result | CamerasFound | None = None
    error: Exception | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    context: Context = field(default_factory=copy_context)
    _ended: threading.Event = field(default_factory=threading.Event)
    _news: queue.SimpleQueue[Progress | Note] = field(default_factory=queue.SimpleQueue)
    _queue: FairQueue[Ticket] | None = None

    def cancel(self) -> None:
        """Stop it: at once while it waits, within one step while it runs. Of no effect on a job that has ended."""
        self.cancelled.set()

    def wait(self, timeout: float | None = None) -> Result | CamerasFound:
        """The result. Raises what ended the job otherwise, and TimeoutError."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"The job has not ended within {timeout:g} seconds.")
        if self.result is not None:
            return self.result
        raise self.error or Cancelled()

    def events(self) -> Iterator[Event]:
        """What happens, as it happens and at least twice a second, and the result last. For one reader.

        Raises InputError, Cancelled or JobError if the job ends so. Closing the generator cancels the job.
        """
        latest: Event | None = None
        told = 0.0
        try:
            while True:
                ended = self._ended.is_set()  # asked first: whatever came before the end is in the queue by then
                try:
                    latest = self._news.get(timeout=_POLL)
                except queue.Empty:
                    if ended:
                        break
                    if self.state == "queued" and self._queue is not None:
                        if self.cancelled.is_set() and self._queue.remove(self):
                            self.finish("cancelled")
                            continue
                        latest = Queued(self._queue.ahead(self) or 0)
                    if latest is None or time.monotonic() - told < _HEARTBEAT:
                        continue
                told = time.monotonic()
                yield latest
            yield self.wait()
        finally:
            if not self._ended.is_set():
                self.cancel()

    def tell(self, event: Progress | Note) -> None:
        self._news.put(event)

    def finish(
        self, state: State, result: Result | CamerasFound | None = None, error: Exception | None = None
    ) -> None:
        self.state, self.result, self.error = state, result, error
        self._ended.set()


class Service:
    """Workers and their queue. Start it by `start` or as a context manager.

    Args:
        checkpoint: a folder or repository; None for the chosen one. Raises InputError if that is missing.
        devices: one worker each; None in it takes a GPU if there is one.
        cache_bytes: bound on the finished stages that are kept.
        capacity, per_user: bounds on waiting jobs.
        say: told what the workers do while they start.
        silence: seconds without a sign of life after which a worker counts as hung.
        backends: by need, the name of what is to do that part of the work; see `trellis.backends`.
        gpu_seconds: the longest call that is asked of ZeroGPU.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        devices: Sequence[str | None] = (None,),
        *,
        cache_bytes: int = DEFAULT_BYTES,
        capacity: int = 64,
        per_user: int = 16,
        say: Callable[[str], None] = lambda sentence: None,
        silence: float = SILENCE_SECONDS,
        backends: Mapping[str, str] | None = None,
        gpu_seconds: int = Options.gpu_seconds,
    ) -> None:
        self.checkpoint = chosen_checkpoint(checkpoint)
        self._queue: FairQueue[Ticket] = FairQueue(capacity, per_user)
        kind = ZeroGpuWorker if on_zero_gpu() else WorkerProcess
        self.workers: list[Worker] = [
            kind(
                Options(self.checkpoint, device, default_folder(), cache_bytes, dict(backends or {}), gpu_seconds),
                say, silence,
            )
            for device in devices
        ]  # fmt: skip
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ready: Ready | None = None

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def defaults(self) -> ReconstructSettings:
        """The settings that the checkpoint recommends."""
        return self._started().defaults

    @property
    def device(self) -> str:
        return self._started().device

    @property
    def engine(self) -> str:
        """A hash of networks and machine, under which the history of run times is kept."""
        return self._started().engine

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of every weight file, by network."""
        return self._started().weights

    def start(self, stop: Callable[[], bool] = lambda: False) -> Service:
        """Load the networks, unless that has been done. Raises InputError or JobError if it fails on any device."""
        if self._ready is not None:
            return self
        try:
            for worker in self.workers:
                self._ready = worker.start(stop)
        except BaseException:
            self.close()
            raise
        for worker in self.workers:
            thread = threading.Thread(target=self._serve, args=(worker,), name="studio dispatcher", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def submit(self, job: Job, cancelled: threading.Event | None = None) -> Ticket:
        """Queue a job. `cancelled` stops it when set. Raises InputError if too many wait already."""
        ticket = Ticket(job, cancelled=cancelled or threading.Event(), _queue=self._queue)
        self._queue.put(job.user, ticket)
        return ticket

    def close(self) -> None:
        """Cancel what waits and what runs, and end the workers."""
        self._closing.set()
        for ticket in self._queue.close():
            ticket.finish("cancelled")
        for thread in self._threads:
            thread.join()
        for worker in self.workers:
            worker.stop()

    def _started(self) -> Ready:
        if self._ready is None:
            raise RuntimeError("The service has not been started.")
        return self._ready

    def _serve(self, worker: Worker) -> None:
        """Feed one worker until the service is closed."""
        while not self._closing.is_set():
            ticket = self._queue.get(timeout=0.5)
            if ticket is None:
                continue
            if ticket.cancelled.is_set():
                ticket.finish("cancelled")
                continue
            ticket.state = "running"
            try:
                ticket.context.run(self._run, worker, ticket)
            except (InputError, JobError) as error:
                if isinstance(error, JobError):
                    logger.error("A job failed: %s %s", error, error.details)
                _clear_up(worker, ticket.job)
                ticket.finish("failed", error=error)
            except Exception as error:  # a bug in here must not leave a person waiting for ever
                logger.exception("A job could not be handed to its worker.")
                ticket.finish("failed", error=JobError(f"The job could not be run: {error}."))
                worker.stop()

    def _run(self, worker: Worker, ticket: Ticket) -> None:
        def stop() -> bool:
            return ticket.cancelled.is_set() or self._closing.is_set()

        if not worker.alive:
            worker.start(self._closing.is_set)
        for kind, content in worker.run(ticket.job, stop):
            if kind == "event":
                ticket.tell(content)
            elif kind == "done":
                ticket.finish("done", result=content)
            elif kind == "cancelled":
                _clear_up(worker, ticket.job)
                ticket.finish("cancelled")


def _clear_up(worker: Worker, job: Job) -> None:
    """Remove the unfinished files of a worker that is no more."""
    if not worker.alive:
        for unfinished in job.out_dir.glob(".unfinished-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
