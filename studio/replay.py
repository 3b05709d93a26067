"""Making a finished run's asset again, from its own run.json and its own prepared views."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.events import CAMERAS, MESH, RUN, SPLATS
from studio.inputs import View
from studio.job import Job, make_job
from studio.settings import make_settings, settings_from_json
from trellis.errors import InputError

COMPARED = (MESH, SPLATS, CAMERAS)


def read_run(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The record of a finished run and its folder, from the folder or its run.json. Raises InputError."""
    path = Path(path)
    file = path / RUN if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{file}' cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"'{file.name}' is not a record of a run: it is not valid JSON.") from error
    fields = {"settings": dict, "views": list, "files": dict, "weights": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in fields.items()):
        raise InputError(f"'{file.name}' is not a record of a run of this version of the studio.")
    return record, file.parent


def job_of_run(
    record: Mapping[str, Any],
    folder: Path,
    out_dir: str | Path,
    changes: Mapping[str, Any] | None = None,
    formats: Sequence[str] = (),
    use_cache: bool = True,
) -> Job:
    """The job that made a run, from the views as the networks saw them.

    changes: flat settings by key that shall differ. Raises InputError if a view is gone or no longer what it was.
    """
    from studio.report import sha256

    views = []
    for entry in record["views"]:
        name = str(entry.get("file")) if isinstance(entry, dict) else ""
        file = (folder / name).resolve()
        if not name or folder.resolve() not in file.parents or not file.is_file():
            raise InputError(f"The run's view '{name}' is missing beside its run.json.")
        if sha256(file) != record["files"].get(name):
            raise InputError(f"The run's view '{name}' has been changed since.")
        views.append(View(str(entry.get("name", name)), file, prepared=True))
    settings = make_settings(changes or {}, settings_from_json(record["settings"]))
    return make_job(views, settings, out_dir, formats=formats, use_cache=use_cache)


def check_weights(record: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    """Raises InputError if a run used other networks than those that are loaded (SHA-256 by name)."""
    then = {name: entry.get("sha256") for name, entry in record["weights"].items() if isinstance(entry, dict)}
    different = sorted(name for name in {*then, *weights} if then.get(name) != weights.get(name))
    if different:
        raise InputError(
            f"The run used other networks ({record.get('checkpoint')}): {different[0]} differs. "
            "Name its checkpoint with --checkpoint."
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The files of two runs that are not the same bytes, and, if there are any, what else differs between the runs."""
    files = [name for name in COMPARED if before["files"].get(name) != after["files"].get(name)]
    if not files:
        return []
    found = [f"{name} differs." for name in files]
    for what in ("device", "versions"):
        then, now = before.get(what) or {}, after.get(what) or {}
        found += [f"{what} {key}: {then.get(key)} then, {now.get(key)} now." for key in sorted({*then, *now})
                  if then.get(key) != now.get(key)]  # fmt: skip
    if before.get("code") != after.get("code"):
        found.append("The studio's code has changed.")
    return found
