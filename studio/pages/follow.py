"""Jobs that go on whether or not anybody looks: a thread follows each, and pages read what it has seen."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from typing import Any, Generic, TypeVar

import gradio as gr

from studio.events import CamerasFound, Cancelled, JobError, Note, Progress, Queued, Result
from studio.pages import fragments
from trellis.errors import InputError

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.15  # how often a page looks


class Followed:
    """The events of something that runs, taken in by a thread. Subclasses keep what they need in `_take`.

    Attributes:
        error: what it ended with, unless it ended well.
        ended: whether it has.
        version: grows with every event.
        cancelled: set to stop it.
        settled: whether what came out has been taken over.
    """

    def __init__(self, events: Iterator[Any], cancelled: threading.Event) -> None:
        self.cancelled = cancelled
        self.error: BaseException | None = None
        self.ended = False
        self.settled = False
        self.version = 0
        self._shown_on: set[str | None] = set()
        # In the caller's context: following a comparison hands its jobs in, on behalf of whoever asked for it.
        following = {"target": copy_context().run, "args": (self._follow, events)}
        self._thread = threading.Thread(**following, name="job follower", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        self.cancelled.set()
        self.version += 1

    def first_on(self, page: str | None) -> bool:
        """Whether a page asks for the first time: it is to show what came out."""
        first = page not in self._shown_on
        self._shown_on.add(page)
        return first

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(timeout)
        return self.ended

    def _follow(self, events: Iterator[Any]) -> None:
        try:
            for event in events:
                self._take(event)
                self.version += 1
        except (InputError, Cancelled, JobError) as error:
            self.error = error
        except Exception as error:
            logger.exception("A job could not be followed.")
            self.error = error
        finally:
            self.ended = True
            self.version += 1

    def _take(self, event: Any) -> None:
        raise NotImplementedError


class FollowedJob(Followed):
    """One job.

    Attributes:
        progress: where it is, a Progress or Queued; None before the first.
        previews: the latest picture of each stage that had one, JPEG.
        notes: sentences.
        outcome: the Result or CamerasFound.
    """

    def __init__(self, events: Iterator[Any], cancelled: threading.Event) -> None:
        self.progress: Progress | Queued | None = None
        self.previews: dict[str, bytes] = {}
        self.notes: list[str] = []
        self.outcome: Result | CamerasFound | None = None
        super().__init__(events, cancelled)

    def _take(self, event: Any) -> None:
        if isinstance(event, (Progress, Queued)):
            self.progress = event
            if isinstance(event, Progress) and event.preview:
                self.previews[event.stage] = event.preview
        elif isinstance(event, Note):
            self.notes.append(event.message)
        else:
            self.outcome = event


def refused(error: InputError) -> FollowedJob:
    """A job that ended before it began, so that a page shows its reason like that of any other."""

    def events() -> Iterator[Any]:
        raise error
        yield  # makes this a generator

    work = FollowedJob(events(), threading.Event())
    work.wait()
    return work


def stop(work: Followed | None) -> tuple[Any, Any]:
    """Cancel what runs, if anything does: values for the button that asked for it and for the status display."""
    if work is None or work.ended:
        return gr.update(interactive=False), gr.skip()
    work.cancel()
    return gr.update(interactive=False), fragments.stopping()


AnyFollowed = TypeVar("AnyFollowed", bound=Followed)


class Watch(Generic[AnyFollowed]):
    """`async for work in Watch(work)`: once now, after every change, and once more at the end."""

    def __init__(self, work: AnyFollowed) -> None:
        self._work = work

    async def __aiter__(self) -> AsyncIterator[AnyFollowed]:
        seen = -1
        while True:
            ended = self._work.ended  # asked first, so that the last look sees the end
            if self._work.version != seen:
                seen = self._work.version
                yield self._work
            if ended:
                return
            await asyncio.sleep(_LOOK_SECONDS)


async def until_idle(
    latest: Callable[[], Followed | None], tell: Callable[[Any], Any], settle: Callable[[], Any]
) -> AsyncIterator[Any]:
    """What a page shows: `tell(work)` while the visitor's latest work goes on, and `settle()` once none does.

    Both in one call: between two, another tab of the visitor could begin a job that this page would show as running and
    never follow.
    """
    while True:
        work = latest()
        if work is not None and not work.ended:
            async for now in Watch(work):
                yield tell(now)
        yield await asyncio.to_thread(settle)
        if latest() is work:
            return
