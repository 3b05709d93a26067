"""Many jobs as one: handed to a service as its workers get free, followed together, cancelled together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextvars import copy_context

from studio.events import CamerasFound, Cancelled, JobError, Result
from studio.job import Job
from studio.service import Event, Service
from trellis.errors import InputError

Failure = InputError | JobError
Ended = Result | CamerasFound | Failure


def run_group(
    service: Service, jobs: Sequence[Job], cancelled: threading.Event | None = None
) -> Iterator[tuple[int, Event | Failure]]:
    """Run jobs in their order, as many at once as the service has workers.

    Only as many are queued as can run, so that a large group never fills the queue and other users have their turns in
    between. One job's failure does not stop the others.

    Yields:
        (index of the job, what it tells), as it happens and for every running job at least twice a second. The last of
        every job is its Result, or the InputError or JobError that it failed with.

    Raises Cancelled if `cancelled` is set before the last job has ended. Closing the generator cancels what runs.
    """
    cancelled = cancelled or threading.Event()
    abandoned = threading.Event()
    waiting = iter(enumerate(jobs))
    taking = threading.Lock()
    told: queue.SimpleQueue[tuple[int, Event | Failure] | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        """Run one job after another; whatever goes wrong ends up in `told`, for nobody else watches this thread."""
        try:
            while True:
                with taking:
                    item = next(waiting, None)
                if item is None:
                    break
                if cancelled.is_set() or abandoned.is_set():
                    raise Cancelled
                number, job = item
                try:
                    events = service.submit(job, cancelled).events()
                    for event in events:
                        told.put((number, event))
                        if abandoned.is_set():
                            events.close()  # cancels the job
                except (InputError, JobError) as error:
                    told.put((number, error))
            told.put(None)
        except BaseException as error:
            told.put(error)

    threads = [
        threading.Thread(target=copy_context().run, args=(work,), name=f"job group {n}", daemon=True)
        for n in range(len(service.workers))
    ]
    for thread in threads:
        thread.start()
    try:
        ended, stopped = 0, None
        while ended < len(threads):
            item = told.get()
            if isinstance(item, tuple):
                yield item
                continue
            ended += 1
            stopped = stopped or item
        if stopped is not None:
            raise stopped
    finally:
        abandoned.set()
        for thread in threads:
            thread.join()
