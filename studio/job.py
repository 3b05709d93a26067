"""The job: what every door (page, command line, HTTP API, batch) builds, and what the worker runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from studio.camera_files import cameras_of_transforms
from studio.inputs import View, as_views
from studio.settings import ReconstructSettings, settings_from_json
from trellis.errors import InputError

LOCAL_USER = "local"


@dataclass(frozen=True, eq=False)
class Job:
    """One reconstruction that has been asked for. Immutable, and can be sent to another process.

    Attributes:
        views: 1 to 32 photographs; the first one defines the front.
        settings: with a definite seed.
        out_dir: folder for the files; made if it is missing.
        formats: further files to write beside the usual ones, from `trellis.export.bundle.FORMATS`.
        use_cache: take finished stages from the cache and keep them there.
        user: on whose behalf; the queue serves users in turn.
        until: None for the whole asset. "cameras" stops once the cameras are known and ends in `CamerasFound` instead
            of a `Result`; it writes no files. A whole job for the same views then goes on from the cache, and one for
            some of them need not cut them out again.
        id: unique among all jobs.
    """

    views: tuple[View, ...]
    settings: ReconstructSettings
    out_dir: Path
    formats: tuple[str, ...] = ()
    use_cache: bool = True
    user: str = LOCAL_USER
    until: Literal["cameras"] | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


def make_job(
    views: Iterable[str | PathLike | Image.Image | View] | str | PathLike | None,
    settings: ReconstructSettings,
    out_dir: str | PathLike,
    *,
    formats: Sequence[str] = (),
    use_cache: bool = True,
    user: str = LOCAL_USER,
    until: Literal["cameras"] | None = None,
) -> Job:
    """A job from what a person hands in. Draws the seed if a new one was asked for.

    Raises InputError: there are no views or too many, or a format is unknown. Files are not opened yet.
    """
    if formats:
        from trellis.export.bundle import FORMATS  # brings torch

        for name in formats:
            if name not in FORMATS:
                raise InputError(f"There is no export format {name!r}; choose from {', '.join(FORMATS)}.")
    formats = tuple(dict.fromkeys(formats))
    return Job(tuple(as_views(views)), settings.with_drawn_seed(), Path(out_dir), formats, use_cache, user, until)


def job_from_json(value: Any, defaults: ReconstructSettings | None = None, user: str = LOCAL_USER) -> Job:
    """A job from {"views": [paths] or a folder, "out": folder, "settings": {...}, "formats": [...], "cameras": {...}}.

    The cameras, which may be left out or null, are those of a transforms.json; see `studio.camera_files`.

    Raises InputError with a sentence for anything else, whatever comes in.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"A job must be an object with views, out and settings, but a {type(value).__name__} came.")
    surplus = [str(key) for key in value if key not in ("views", "out", "settings", "formats", "cameras")]
    if surplus:
        raise InputError(f"A job has views, out, settings, formats and cameras, but {surplus[0]!r} came.")
    views, out, formats = value.get("views"), value.get("out"), value.get("formats", [])
    names = [views] if isinstance(views, str) else views
    if not isinstance(names, list) or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise InputError("The views of a job must be a folder or a list of files.")
    if not isinstance(out, str) or not out or "\0" in out:
        raise InputError("A job needs 'out', the folder for its files.")
    if not isinstance(formats, list) or not all(isinstance(name, str) for name in formats):
        raise InputError("The formats of a job must be a list of names.")
    settings = settings_from_json(value.get("settings", {}), defaults)
    cameras = value.get("cameras")
    if cameras is not None:
        views = as_views(names)
        stated = cameras_of_transforms(cameras, [view.name for view in views], "The job")
        names = [replace(view, camera=camera) for view, camera in zip(views, stated, strict=True)]
    return make_job(names, settings, out, formats=formats, user=user)
