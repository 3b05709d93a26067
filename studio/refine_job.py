"""The job of refining an asset: what every door (page, command line, Python) builds, and what the worker runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from studio.events import CAMERAS, MESH, RUN
from studio.inputs import View, as_views
from studio.job import LOCAL_USER
from studio.refine_settings import RefineSettings
from studio.replay import MAX_RECORD_BYTES
from trellis.errors import InputError
from trellis.files import read_json

KIND = "refine"  # of a run.json


@dataclass(frozen=True, eq=False)
class RefineJob:
    """One refinement that has been asked for. Immutable, and can be sent to another process.

    Attributes:
        asset: a GLB file.
        views: the photographs. Empty: those that the camera file names, in their places beside it.
        cameras: a transforms.json, or a folder with one or with COLMAP's text files; None has the networks estimate
            them. They are known, unless the file says that they were predicted.
        settings: of the refinement.
        out_dir: folder for the files; made if it is missing.
        use_cache: take finished stages from the cache and keep them there; an interrupted job then goes on.
        user: on whose behalf; the queue serves users in turn.
        id: unique among all jobs.
    """

    asset: Path
    views: tuple[View, ...]
    cameras: Path | None
    settings: RefineSettings
    out_dir: Path
    use_cache: bool = True
    user: str = LOCAL_USER
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


def make_refine_job(
    asset: str | PathLike[str],
    settings: RefineSettings,
    out_dir: str | PathLike[str],
    *,
    views: Iterable[str | PathLike[str] | Image.Image | View] | str | PathLike[str] | None = None,
    cameras: str | PathLike[str] | None = None,
    use_cache: bool = True,
    user: str = LOCAL_USER,
) -> RefineJob:
    """A job from what a person hands in.

    Args:
        asset: the folder of a finished run, which brings its own views and cameras unless others are given; or a GLB
            file, with views or cameras or both.
        views: photographs, or one folder of them. With cameras, they are matched by file name.
        cameras: a transforms.json or a folder with cameras. Without, the networks estimate those of the views.

    Raises InputError if something is missing. Files are not opened yet.
    """
    asset, out_dir = Path(asset), Path(out_dir)
    photos = () if views is None else tuple(as_views(views))
    cameras = None if cameras is None else Path(cameras)
    if asset.is_dir():
        folder, record = asset, _record_of(asset)
        asset = folder / MESH
        if not photos and cameras is None:
            photos, cameras = tuple(_views_of(record, folder)), folder / CAMERAS
        if out_dir.resolve() == folder.resolve():
            raise InputError("A refinement needs a folder of its own; this one holds the run itself.")
    if not asset.is_file():
        raise InputError(f"There is no asset '{asset}'; give a GLB file or the folder of a finished run.")
    if asset.suffix.lower() != ".glb":
        raise InputError(f"The asset must be a binary glTF file (.glb), but '{asset.name}' came.")
    if not photos and cameras is None:
        raise InputError("A refinement needs photographs of the object: add at least two, or a file with cameras.")
    if len(photos) == 1:
        raise InputError("One view cannot tell shape from picture; at least two views are needed to refine.")
    if cameras is not None and not cameras.exists():
        raise InputError(f"There are no cameras at '{cameras}'.")
    return RefineJob(asset, photos, cameras, settings, out_dir, use_cache, user)


def _record_of(folder: Path) -> dict[str, Any]:
    if not (folder / RUN).is_file():
        raise InputError(f"'{folder.name}' holds no finished run: {RUN} cannot be read.")
    record = read_json(folder / RUN, "a record of a run", MAX_RECORD_BYTES)
    if not isinstance(record, dict) or not isinstance(record.get("views"), list):
        raise InputError(f"'{folder.name}/{RUN}' is not a record of a run of this version of the studio.")
    return record


def _views_of(record: dict[str, Any], folder: Path) -> Iterable[View]:
    """The views of a finished run, by the names that its job gave them."""
    for entry in record["views"]:
        if not isinstance(entry, dict) or entry.get("file") is None:  # a refinement's view that had been left out
            continue
        # What of a view has the most pixels; its camera is known by the file's name, which is the same.
        name = entry.get("photo") or entry["file"]
        file = (folder / str(name)).resolve()
        if folder.resolve() not in file.parents or not file.is_file():
            raise InputError(f"The run's view '{name}' is missing beside its {RUN}.")
        yield View(str(entry.get("name", name)), file)
