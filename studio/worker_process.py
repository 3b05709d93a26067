"""Workers as their owner sees them: started, listened to, and replaced when they die."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from studio.events import JobError
from studio.inputs import BadViewsError
from studio.job import Job
from studio.worker import Options, Ready, main
from trellis.errors import InputError

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0  # after a cancel without news of the job; one step may take that long, and a new start too
SILENCE_SECONDS = 300.0  # without a heartbeat; one compiled call that holds the interpreter may take a minute
_LOADING_SECONDS = 600.0  # the same while torch is imported and the networks are loaded, perhaps over a network


class Worker(ABC):
    """Where jobs are run, as its owner sees it. Not safe to use from several threads.

    Args:
        options: what to load.
        say: told what it does while it starts.
        silence: seconds without a sign of life after which it counts as hung.
        grace: seconds that a cancelled job may go on for without news, before its process is ended.
    """

    def __init__(
        self,
        options: Options,
        say: Callable[[str], None] = lambda sentence: None,
        silence: float = SILENCE_SECONDS,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._options, self._say, self._silence, self._grace = options, say, silence, grace
        self._last_sign = 0.0
        self.memory = 0  # resident bytes of its process, by the latest heartbeat
        self.starts = 0

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Of the process that runs the jobs; None if there is none at present."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether `run` may be called; after a death `start` comes first."""

    @abstractmethod
    def start(self, stop: Callable[[], bool] = lambda: False) -> Ready:
        """Load the networks.

        Raises InputError if there is no such checkpoint or device, JobError if that fails or `stop` says so.
        """

    @abstractmethod
    def stop(self) -> None:
        """End what runs, whatever it does."""

    @abstractmethod
    def _hand_in(self, job: Job) -> None:
        """Let a job begin."""

    @abstractmethod
    def _ask_to_stop(self, job: Job) -> None:
        """Have a job that has begun end with its next step."""

    @abstractmethod
    def _messages(self, when: str, silence: float) -> Iterator[tuple[str, Any]]:
        """Whatever comes, and ("tick", None) ten times a second while nothing does.

        Raises JobError, which says `when` it happened, if the process dies or keeps silent for so many seconds.
        """

    def run(self, job: Job, cancelled: Callable[[], bool]) -> Iterator[tuple[str, Any]]:
        """Run a job: ("event", ...) as they come, "tick" now and then, and one of "done", "cancelled" at the end.

        A job that is cancelled and neither ends nor tells anything new is ended together with the process.

        Raises InputError or JobError as the job did, and JobError (kind "worker") if the process died or hung.
        """
        waiting_since: float | None = None  # for the end of a cancelled job
        self._hand_in(job)
        self._last_sign = time.monotonic()
        for kind, content in self._messages("in the middle of the job", self._silence):
            if waiting_since is None and cancelled():
                self._ask_to_stop(job)
                waiting_since = time.monotonic()
            elif waiting_since is not None and kind == "event":  # a refinement brings what it has to an end
                waiting_since = time.monotonic()
            elif waiting_since is not None and time.monotonic() - waiting_since > self._grace:
                logger.warning("A cancelled job did not end within %g seconds; its worker is replaced.", self._grace)
                self.stop()
                yield "cancelled", None
                return
            if kind == "refused":
                raise _refusal(content)
            if kind == "failed":
                raise JobError(content[1], content[0], content[2])
            if kind in ("event", "tick", "done", "cancelled"):
                yield kind, content
            if kind in ("done", "cancelled"):
                return


class WorkerProcess(Worker):
    """A process of its own, which owns its networks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._process: Any = None
        self._pipe: Any = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self, stop: Callable[[], bool] = lambda: False) -> Ready:
        """Start the process, in place of one that runs, and wait until the networks are loaded."""
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, self._options), name="studio worker", daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self.starts += 1
        self._last_sign = time.monotonic()
        for kind, content in self._messages("while the networks were being loaded", _LOADING_SECONDS):
            if kind == "say":
                self._say(content)
            elif kind == "ready":
                return content
            elif kind == "refused":
                self.stop()
                raise _refusal(content)
            elif kind == "failed":
                self.stop()
                raise JobError(content[1], content[0], content[2])
            if stop():
                break
        self.stop()
        raise JobError("The studio was closed while its networks were being loaded.", "worker")

    def stop(self) -> None:
        if self._process is None:
            return
        self._pipe.close()  # an idle worker ends by itself
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._process = self._pipe = None

    def _hand_in(self, job: Job) -> None:
        self._send(("run", job))

    def _ask_to_stop(self, job: Job) -> None:
        self._send(("cancel", job.id))

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # `_messages` will notice, and knows why
            self._pipe.send(message)

    def _messages(self, when: str, silence: float) -> Iterator[tuple[str, Any]]:
        while True:
            try:
                if not self._pipe.poll(0.1):
                    if time.monotonic() - self._last_sign > silence:
                        raise self._death(f"gave no sign of life for {silence:.0f} seconds {when}", kill=True)
                    yield "tick", None
                    continue
                kind, content = self._pipe.recv()
            except (EOFError, OSError):  # OSError: it ended within a message
                raise self._death(when) from None
            self._last_sign = time.monotonic()
            if kind == "beat":
                self.memory = content
            yield kind, content

    def _death(self, when: str, kill: bool = False) -> JobError:
        """Why the process is gone, as an exception."""
        process = self._process
        if kill:
            process.kill()
            reason = f"The worker {when} and was ended."
        else:
            process.join(10)
            code = process.exitcode
            if code == -signal.SIGKILL:
                reason = f"The worker was killed {when}; most often that means that memory ran out."
            elif code is not None and code < 0:
                reason = f"The worker crashed {when} ({signal.Signals(-code).name})."
            else:
                reason = f"The worker ended {when} (exit status {code})."
        self.stop()
        return JobError(f"{reason} It is being replaced; other jobs go on.", "worker")


def _refusal(sentences: list[str]) -> InputError:
    return BadViewsError(sentences) if len(sentences) > 1 else InputError(sentences[0])
