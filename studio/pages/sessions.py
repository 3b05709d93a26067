"""What the server keeps for each open page: a folder for its files, and the switch that stops its job."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from studio.events import Result


@dataclass
class Session:
    """One open page.

    unseen: the latest result, until the page shows it.
    """

    folder: Path
    cancel: threading.Event = field(default_factory=threading.Event)
    runs: int = 0
    unseen: Result | None = None

    def new_run(self) -> Path:
        """A folder for the next result; that of the result before is cleared away once nobody can still want it."""
        self.runs += 1
        for stale in self.folder.glob("run-*"):
            if stale.name != f"run-{self.runs - 1:03d}":
                shutil.rmtree(stale, ignore_errors=True)
        return self.folder / f"run-{self.runs:03d}"


class Sessions:
    """All open pages of one server, by Gradio's session hash. Safe to use from several threads."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="reconstudio-", ignore_cleanup_errors=True)
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where all sessions' folders lie; it is removed with the process."""
        return Path(self._folder.name)

    def get(self, key: str | None) -> Session:
        """The session of a page, made on its first use."""
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = Session(Path(tempfile.mkdtemp(dir=self.folder)))
            return self._sessions[key]

    def arm(self, key: str | None) -> None:
        """Give the page's next job a fresh switch, so that it can be stopped even while it waits for its turn."""
        self.get(key).cancel = threading.Event()

    def close(self, key: str | None) -> None:
        """Forget a page that has been closed, its job and its files."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.cancel.set()
            shutil.rmtree(session.folder, ignore_errors=True)
