"""What the server keeps for each visitor: photographs, runs and the job, found again after a reload by a secret key.

The browser tab keeps the key. Gradio's own session hash changes with every load of the page and only says which page
speaks.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from studio.events import CamerasFound
from studio.pages.files import Shelf
from studio.pages.follow import Followed
from studio.pages.photos import Photos
from studio.refine_events import Refined
from studio.view_cameras import ViewCamera

GRACE_SECONDS = 60.0  # a job goes on this long after its page was closed, so that a reload finds it
KEEP_SECONDS = 3600.0
MAX_RUNS = 24  # of one visitor


@dataclass
class Session:
    """One visitor.

    Attributes:
        key: secret; the browser tab knows it.
        lock: held while a job is handed in, or what came of one is taken over: two clicks may be heard at once.
        folder: everything that is kept for this visitor.
        photos: on the Reconstruct page.
        painted: id of the photograph in the mask editor.
        works: what runs or ran last, by page.
        runs: keys of the runs on the shelf, oldest first.
        shown: the run on the Reconstruct page; coming: the one that is being made, None while only cameras are sought.
        cameras: those found last, camera_folder: the key of their pictures, camera_photos: ids of their photographs.
        edited: cameras set by hand, by the ids of their photographs; edited_front: the first photograph then;
            edited_at: the time of the latest edit by the browser's clock, in ms.
        run_photos: ids of the photographs of each run, by its key; run_edited: the cameras set by hand for the run that
            is shown and not used yet, one per view.
        sheet: key of the files of the latest comparison.
        refined: key and result of the latest refinement.
        compared: the latest comparison that was begun.
        discarded: folders that are to go, see `discard`.
        seen: when a page of it last spoke; pages: those that are open, and have never been out of reach.
    """

    key: str
    folder: Path
    photos: Photos
    lock: threading.Lock = field(default_factory=threading.Lock)
    painted: str = ""
    works: dict[str, Followed] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    shown: str | None = None
    coming: str | None = None
    cameras: CamerasFound | None = None
    camera_folder: str | None = None
    camera_photos: list[str] = field(default_factory=list)
    edited: dict[str, ViewCamera] = field(default_factory=dict)
    edited_front: str = ""
    edited_at: float = 0.0
    run_photos: dict[str, list[str]] = field(default_factory=dict)
    run_edited: list[ViewCamera | None] | None = None
    sheet: str | None = None
    refined: tuple[str, Refined] | None = None
    compared: Followed | None = None
    discarded: list[Path] = field(default_factory=list)
    pages: set[str] = field(default_factory=set)
    seen: float = 0.0

    @property
    def busy(self) -> bool:
        return any(not work.ended for work in self.works.values())

    def cancel(self) -> None:
        for work in self.works.values():
            work.cancel()

    def discard(self, folder: Path) -> None:
        """Remove a folder of this visitor's, as soon as no job can be reading it any more."""
        self.discarded.append(folder)
        self.tidy()

    def tidy(self) -> None:
        """Remove what has been discarded, unless a job that was handed in before may need it."""
        if not self.busy and not self.lock.locked():
            gone, self.discarded = self.discarded, []
            for folder in gone:
                shutil.rmtree(folder, ignore_errors=True)


class Sessions:
    """All visitors of one server. Safe to use from several threads.

    Args:
        keep: seconds after which the files of a visitor who has gone are removed.
        grace: seconds after which their job is cancelled.
        clock: seconds that only grow.
    """

    def __init__(
        self, keep: float = KEEP_SECONDS, grace: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="reconstudio-", ignore_cleanup_errors=True)
        self.keep, self._grace, self._clock = keep, grace, clock
        self.shelf = Shelf()
        self._sessions: dict[str, Session] = {}
        self._of_page: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def folder(self) -> Path:
        """Where all visitors' folders lie; it is removed with the process."""
        return Path(self._folder.name)

    def attach(self, page: str, key: str | None) -> Session:
        """The session that a newly loaded page belongs to: the one with this key, or else a new one."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session is None:
                session = self._new()
            self.detach(page)
            self._of_page[page] = session.key
            session.pages.add(page)
            session.seen = self._clock()
            return session

    def of(self, page: str | None) -> Session:
        """The session of a page, made on its first use."""
        with self._lock:
            session = self._sessions.get(self._of_page.get(page or "", ""))
            if session is None:  # not among the open ones: nobody would say that this page has been closed
                session = self._new()
                self._of_page[page or ""] = session.key
            session.seen = self._clock()
            return session

    def touch(self, key: str) -> bool:
        """A page of the session with this key is there; whether the session is."""
        with self._lock:
            session = self._sessions.get(key)
            if session is not None:
                session.seen = self._clock()
            return session is not None

    @contextmanager
    def guest(self, caller: str | None) -> Iterator[Session]:
        """The session of a program that calls an endpoint, and opens no page: it is there only during its calls."""
        call = f"call {secrets.token_hex(8)}"
        with self._lock:
            session = self._sessions.get(self._of_page.get(caller or "", "")) or self._new()
            self._of_page[caller or ""] = session.key
            session.pages.add(call)
        try:
            yield session
        finally:
            with self._lock:
                session.pages.discard(call)
                session.seen = self._clock()

    def detach(self, page: str | None) -> None:
        """A page has been closed, or cannot be reached; its session stays for a while, and is still that page's."""
        with self._lock:
            session = self._sessions.get(self._of_page.get(page or "", ""))
            if session is not None:
                session.pages.discard(page or "")
                session.seen = self._clock()

    def new_folder(self, session: Session, stem: str) -> Path:
        """An empty folder of a visitor's."""
        folder = session.folder / f"{stem}-{secrets.token_hex(6)}"
        folder.mkdir()
        return folder

    def new_run(self, session: Session) -> tuple[str, Path]:
        """(key, folder) for a run to come. Beyond the limit, the oldest run that is not shown goes."""
        folder = session.folder / f"run-{secrets.token_hex(6)}"
        return self.adopt_run(session, folder), folder

    def adopt_run(self, session: Session, folder: Path) -> str:
        """List a run to come in a folder of the visitor's; returns its key."""
        key = self.shelf.put(folder)
        with self._lock:
            session.runs.append(key)
            surplus = [old for old in session.runs[:-1] if old != session.shown]
            for old in surplus[: max(0, len(session.runs) - MAX_RUNS)]:
                self.drop_run(session, old)
        return key

    def drop_run(self, session: Session, key: str) -> None:
        """Forget a run and its files."""
        with self._lock:
            if key not in session.runs:
                return
            session.runs.remove(key)
            session.run_photos.pop(key, None)
            folder = self.shelf.find(key)
            self.shelf.remove(key)
            if session.shown == key:
                session.shown = None
        if folder is not None:
            session.discard(folder)

    def tidy(self) -> None:
        """Cancel the jobs and remove the files of visitors who have gone, and remove what others have discarded."""
        now, gone = self._clock(), []
        with self._lock:
            for session in list(self._sessions.values()):
                session.tidy()
                if session.pages:
                    continue
                if session.busy and now - session.seen > self._grace:
                    session.cancel()
                if not session.busy and now - session.seen > self.keep:
                    gone.append(self._sessions.pop(session.key))
            self._of_page = {page: key for page, key in self._of_page.items() if key in self._sessions}
        for session in gone:
            for key in [*session.runs, session.photos.key]:
                self.shelf.remove(key)
            shutil.rmtree(session.folder, ignore_errors=True)

    def tidy_until(self, closing: threading.Event) -> None:
        """Tidy now and then; for a thread."""
        pause = max(0.5, min(self.keep, self._grace, 60.0) / 4)
        while not closing.wait(pause):
            self.tidy()

    def _new(self) -> Session:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        photos = Photos(folder / "photos", lambda dropped: session.discard(dropped))
        photos.key = self.shelf.put(photos.folder)
        session = Session(secrets.token_urlsafe(24), folder, photos, seen=self._clock())
        self._sessions[session.key] = session
        return session
