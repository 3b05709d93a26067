"""Finished stages on disk, so that a changed setting repeats only what depends on it.

One file per entry, named by its key, which is a hash of everything that the output depends on (see
`studio.fingerprint`). Several processes may use one folder at once:

* a file appears by a rename, so it is never half there, whatever happens to the process that writes it;
* its checksum is verified on every read, and a file that fails is removed and counts as absent;
* the size bound is kept under a lock; entries unused for the longest go first. A reader holds an open file, which
  survives its removal.

A cache that cannot be written to (full disk, wrong permissions) says so once, in one sentence, and the work goes on
without it for a minute.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "RECONSTUDIO_CACHE"  # a folder, or "off"
DEFAULT_BYTES = 4 * 2**30

_SUFFIX = ".stage"
_UNFINISHED = ".unfinished-"
_STALE_SECONDS = 3600  # an unfinished file this old has been left by a process that died
_PAUSE_SECONDS = 60.0  # after a failed write, before the next is tried
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def default_folder() -> Path | None:
    """Where stages are kept unless told otherwise; None if RECONSTUDIO_CACHE says off."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return None if chosen.lower() == "off" else Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reconstudio" / "stages"


class StageCache:
    """Stage outputs by key.

    Args:
        folder: made when first written to, readable by its owner alone; None keeps nothing.
        max_bytes: bound on all entries together. An entry larger than half of it is not kept at all, for it would push
            out everything else.
        say: told why nothing more is kept, once until something is kept again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        max_bytes: int = DEFAULT_BYTES,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self._say = say
        self._used = self.folder is not None and max_bytes > 0
        self._not_before = 0.0  # after a failure, when to try to write again
        self._failing = False

    def __contains__(self, key: str) -> bool:
        return self.folder is not None and self._file(key).is_file()

    def get(self, key: str) -> Any | None:
        """The value under a key, or None. A damaged entry is removed."""
        if self.folder is None:
            return None
        file = self._file(key)
        from studio.codec import decode  # brings torch, which not everyone who asks about a cache needs

        try:
            data = file.read_bytes()
        except OSError:
            return None
        try:
            value = decode(data)
        except Exception as error:  # whatever a damaged or foreign file makes the decoder raise, it is not an entry
            logger.warning("A cached stage is damaged and will be computed again (%s): %s", file.name, error)
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):
            os.utime(file)  # used just now
        return value

    def put(self, key: str, value: Any) -> bool:
        """Keep a value; returns whether it is kept. Never raises for reasons of storage."""
        if not self._writable:
            return False
        from studio.codec import encode

        data = encode(value)
        if len(data) > self.max_bytes // 2:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._file(key), data)
            self._shrink()
        except OSError as error:
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            if self._failing:
                return False
            self._failing = True
            full = error.errno in NO_ROOM
            reason = "the disk is full" if full else (error.strerror or str(error)).lower()
            self._say(f"Finished stages are not being kept for the next run, because {reason} at the stage cache.")
            return False
        self._failing = False
        return True

    def place(self, key: str) -> Path | None:
        """Where the caller may keep a file of its own under a key, bounded and removed like every entry; or None."""
        return self._file(key) if self._writable else None

    @property
    def _writable(self) -> bool:
        return self._used and time.monotonic() >= self._not_before

    def size(self) -> int:
        """Bytes of all entries together."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Remove every entry."""
        for file, _, _ in self._entries():
            with suppress(OSError):
                file.unlink()

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _write(self, file: Path, data: bytes) -> None:
        handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # else a power cut may leave the new name on old blocks
            os.replace(name, file)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def _entries(self) -> list[tuple[Path, int, float]]:
        """(file, bytes, when it was last used) of every entry."""
        found = []
        if self.folder is None or not self.folder.is_dir():
            return found
        for file in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # another process may have just removed it
                state = file.stat()
                found.append((file, state.st_size, state.st_mtime))
        return found

    def _shrink(self) -> None:
        """Remove the entries unused for the longest until the rest fits, and what dead processes left unfinished."""
        with file_lock(self.folder / ".lock"):
            entries = sorted(self._entries(), key=lambda entry: entry[2])
            total = sum(size for _, size, _ in entries)
            for file, size, _ in entries:
                if total <= self.max_bytes:
                    break
                with suppress(FileNotFoundError):
                    file.unlink()
                total -= size
            for file in self.folder.glob(f"{_UNFINISHED}*"):
                with suppress(OSError):
                    if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                        file.unlink()


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the operating system releases it if this one dies."""
    with path.open("a+b") as stream:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
