"""The one place that imports numba: lock, and compilation with an on-disk cache.

Kernels are declared with `kernel` and called inside `exclusive()`:

    @kernel(parallel=True)
    def _double(x): ...

    with exclusive():
        _double(array)

Two limits to know. A process that has run a parallel kernel must not fork (libgomp ends the child): start workers with
the "spawn" method. And numba notices edits only in the file of the kernel that it cached, so a kernel should call
kernels of its own file alone.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


def _ensure_writable_cache(source_folder: Path) -> None:
    """Send compiled kernels to a private folder when the installed package is read-only (numba caches beside it)."""
    if "NUMBA_CACHE_DIR" in os.environ or os.access(source_folder, os.W_OK):
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    for folder in (base / "trellis" / "numba", Path(tempfile.gettempdir()) / f"trellis-numba-{user}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            os.environ["NUMBA_CACHE_DIR"] = str(folder)
            return


_ensure_writable_cache(Path(__file__).parent)

import numba  # noqa: E402  (after the environment is set)

prange = numba.prange

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # a process that is forked off while another thread is inside would wait for ever
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def exclusive() -> threading.RLock:
    """The process-wide lock around kernel launches, as a context manager. Re-entrant within one thread.

    A parallel kernel already uses every core, so concurrent launches gain nothing, and nested OpenMP teams started
    from several threads oversubscribe the machine.
    """
    return _lock


def kernel(function: Callable | None = None, *, parallel: bool = False, fastmath: bool = False) -> Callable:
    """Compile a function with numba: nopython, releases the GIL, cached on disk; usable bare or with arguments.

    Division is that of numpy: by zero it gives infinity or NaN. Python's would raise, and its tests keep loops from
    being vectorised.
    """
    if function is None:
        return functools.partial(kernel, parallel=parallel, fastmath=fastmath)
    return numba.njit(
        function, cache=True, nogil=True, parallel=parallel, fastmath=fastmath, error_model="numpy"
    )
