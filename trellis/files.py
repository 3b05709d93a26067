"""Reading settings files of strangers, and writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from trellis.errors import InputError

_MAX_JSON_BYTES = 2**20


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` with the same suffix; on success rename it over `path`, else remove it.

    The rename is atomic because both names lie in one folder, which is created if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private to the owner
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of at most a megabyte; InputError otherwise."""
    try:
        text = file.read_bytes()
        value = json.loads(text) if len(text) <= _MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The configuration {file.name} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"The configuration {file.name} is not a JSON object of at most one megabyte.")
    return value
