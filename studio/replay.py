"""Making a finished run's asset again, from its own run.json and its own prepared views.

`revise` is the way to change something about a finished asset: what the change does not touch comes from the cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.events import CAMERAS, MESH, RUN, SPLATS
from studio.inputs import Earlier, View
from studio.job import LOCAL_USER, Job, make_job
from studio.photo_cameras import PhotoCamera
from studio.settings import make_settings, settings_from_json
from studio.view_cameras import ViewCamera, camera_of_frame
from trellis.errors import InputError
from trellis.files import read_json

COMPARED = (MESH, SPLATS, CAMERAS)
MAX_RECORD_BYTES = 16 * 2**20  # of a run.json; they have some 20 kB
_MAX_NOTES = 20


def read_run(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The record of a finished run and its folder, from the folder or its run.json. Raises InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no '{path}'; give the folder of a finished run, or its {RUN}.")
    file = path / RUN if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"'{path}' holds no finished run: there is no {RUN} in it.")
    record = read_json(file, "a record of a run", MAX_RECORD_BYTES)
    fields = {"settings": dict, "views": list, "files": dict, "weights": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in fields.items()):
        raise InputError(f"'{file.name}' is not a record of a run of this version of the studio.")
    return record, file.parent


def view_names(record: Mapping[str, Any]) -> list[str]:
    """What the views of a run are called."""
    return [str(entry.get("name")) if isinstance(entry, dict) else "" for entry in record["views"]]


def job_of_run(
    record: Mapping[str, Any],
    folder: Path,
    out_dir: str | Path,
    changes: Mapping[str, Any] | None = None,
    formats: Sequence[str] = (),
    use_cache: bool = True,
    user: str = LOCAL_USER,
    cameras: Sequence[ViewCamera | PhotoCamera | None] | None = None,
) -> Job:
    """The job that made a run, from the views as the networks saw them.

    changes: flat settings by key that shall differ. cameras: see `revise`. Raises InputError if a view is gone or no
    longer what it was.
    """
    if cameras is not None and len(cameras) != len(record["views"]):
        raise InputError(f"The run has {len(record['views'])} views, but {len(cameras)} cameras came.")
    views = []
    for index, entry in enumerate(record["views"]):
        name = str(entry.get("file")) if isinstance(entry, dict) else ""
        file = _kept(record, folder, name)
        photo = entry.get("photo")  # earlier versions kept none
        sharp = None if photo is None else _kept(record, folder, str(photo))
        camera = _stated_camera(entry, name) if cameras is None else cameras[index]
        views.append(View(str(entry.get("name", name)), file, earlier=_earlier(entry), camera=camera, sharp=sharp))
    settings = make_settings(changes or {}, settings_from_json(record["settings"]))
    return make_job(views, settings, out_dir, formats=formats, use_cache=use_cache, user=user)


def revise(
    finished: str | Path,
    changes: Mapping[str, Any],
    out_dir: str | Path | None = None,
    formats: Sequence[str] = (),
    user: str = LOCAL_USER,
    cameras: Sequence[ViewCamera | PhotoCamera | None] | None = None,
) -> Job:
    """The job that makes a finished run again with some settings or cameras changed.

    Another `texture_size` bakes again, another `simplify` also simplifies again, other cameras bake again if the
    texture is painted from photographs; none of them samples anything as long as the run's stages are in the cache.

    Args:
        finished: the folder of the run.
        changes: flat settings by key.
        out_dir: None for the run's own folder, whose files are replaced when all new ones are finished.
        formats: further files to write, from `trellis.export.bundle.FORMATS`.
        cameras: one for each view, None for the one that the networks found; left out, they stay as they were.

    Raises InputError: the folder holds no such run, its views have been changed, or a setting is out of its range.
    """
    record, folder = read_run(finished)
    return job_of_run(record, folder, folder if out_dir is None else out_dir, changes, formats, user=user,
                      cameras=cameras)  # fmt: skip


def _kept(record: Mapping[str, Any], folder: Path, name: str) -> Path:
    """A picture that a run left in its folder. Raises InputError if it is gone or no longer what it was."""
    from studio.report import sha256

    file = (folder / name).resolve()
    if not name or folder.resolve() not in file.parents or not file.is_file():
        raise InputError(f"The run's view '{name}' is missing beside its run.json.")
    if sha256(file) != record["files"].get(name):
        raise InputError(f"The run's view '{name}' has been changed since.")
    return file


def _stated_camera(entry: Mapping[str, Any], name: str) -> ViewCamera | None:
    """The camera that a person had stated for a view. Raises InputError if the record's is none."""
    camera = entry.get("camera")
    if camera is None:
        return None
    return camera_of_frame(camera.get("stated") if isinstance(camera, Mapping) else camera, f"the camera of '{name}'")


def _earlier(entry: Mapping[str, Any]) -> Earlier:
    """What a record says of a view. Raises InputError if it does not say it as this studio does."""
    from studio.report import BACKGROUND_REMOVAL

    method, photograph, notes = entry.get("cut_out_by"), entry.get("photograph"), entry.get("notes")
    if not isinstance(method, str) or method not in BACKGROUND_REMOVAL or not isinstance(notes, list):
        raise InputError("The run's record does not say how its views were cut out.")
    if not isinstance(photograph, str) or not re.fullmatch("[0-9a-f]{32}", photograph):
        raise InputError("The run's record does not say which photographs its views were cut out of.")
    kept = []
    for note in notes[:_MAX_NOTES]:
        kinds = {"kind": str, "value": (int, float), "message": str}
        if not isinstance(note, dict) or not all(isinstance(note.get(key), kind) for key, kind in kinds.items()):
            raise InputError("The run's record holds notes on its views that cannot be read.")
        if note["kind"] != "duplicate":  # found anew
            kept.append({key: note[key] for key in kinds})
    return Earlier(method, photograph, tuple(kept), _crop(entry.get("crop")))


def _crop(value: Any) -> tuple[float, float, float, float] | None:
    """What a view shows of its photograph, as a record says it."""
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 4 and all(type(number) in (int, float) for number in value)
    if not numbers or not (all(abs(number) <= 1e6 for number in value) and min(value[2:]) > 0):
        raise InputError("The run's record does not say what its views show of their photographs.")
    return tuple(float(number) for number in value)


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
    then, now = (record.get("peak_memory_bytes", {}).get("chunked") for record in (before, after))
    if then != now:
        found.append("One of the two ran in smaller pieces, because memory was short.")
    if before.get("code") != after.get("code"):
        found.append("The studio's code has changed.")
    return found
