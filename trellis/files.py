"""Reading JSON files of strangers, and writing a file so that nobody ever sees half of it."""

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


def read_json(file: Path, kind: str, limit: int = 2**20) -> Any:
    """What a JSON file of at most `limit` bytes holds.

    kind: what it should be, for messages ("a record of a run").

    Raises InputError, one sentence, whatever the file holds.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(limit + 1)
        value = json.loads(text) if len(text) <= limit else None
    except OSError as error:
        raise InputError(f"'{file.name}' cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{file.name}' is not {kind}: it is not valid JSON.") from error
    if len(text) > limit:
        raise InputError(f"'{file.name}' is not {kind}: it has more than {limit >> 20} MB.")
    return value


def read_configuration(file: Path) -> dict[str, Any]:
    """The JSON object that describes a network or a pipeline. Raises InputError."""
    value = read_json(file, "a configuration")
    if not isinstance(value, dict):
        raise InputError(f"'{file.name}' is not a configuration: it is not a JSON object.")
    return value
