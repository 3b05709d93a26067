"""Files of cameras that a person states for photographs: whose camera is whose, and in which frame they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from studio.photo_cameras import PhotoCamera, photo_camera_of_frame
from studio.view_cameras import ViewCamera, camera_of_frame
from trellis.errors import InputError
from trellis.files import read_json

_MAX_BYTES = 4 * 2**20  # of a file of cameras; 32 of them have some 20 kB
_MAX_COLMAP_BYTES = 512 * 2**20  # of an images.txt, which lists the points that every image sees
_OF_A_RUN = re.compile(r"views/\d{3}\.png")


def read_cameras(path: Path, names: Sequence[str]) -> list[ViewCamera] | list[PhotoCamera]:
    """The cameras of views by their names: from a transforms.json, or a folder with one or with COLMAP's text files.

    A file of the studio's own says in which frame it is ("frame": "gltf"), and its cameras are those of the views; any
    other has those of the photographs, in a frame of its own.

    Raises InputError, one sentence, whatever the file holds.
    """
    if path.is_dir():
        if not (path / "transforms.json").is_file():
            return cameras_of_transforms(_colmap(path), names, f"'{path.name}'")
        path = path / "transforms.json"
    record = read_json(path, "a file of cameras", _MAX_BYTES)
    return cameras_of_transforms(record, names, f"'{path.name}'")


def _colmap(folder: Path) -> dict[str, Any]:
    """What COLMAP's text files hold, as a transforms.json. Raises InputError."""
    from nvdiffrec.view_files import colmap_texts  # brings torch
    from trellis.renderers.camera_formats import from_colmap_text, to_transforms

    files = colmap_texts(folder)
    if files is None:
        raise InputError(f"'{folder.name}' holds no cameras: neither a transforms.json nor COLMAP's text files.")
    if any(file.stat().st_size > _MAX_COLMAP_BYTES for file in files):
        raise InputError(f"The text files in '{folder.name}' have more than {_MAX_COLMAP_BYTES >> 20} MB.")
    try:
        cameras, names = from_colmap_text(*(file.read_text(encoding="utf-8") for file in files))
    except (OSError, ValueError) as error:
        raise InputError(f"The text files in '{folder.name}' cannot be read: {error}") from error
    return to_transforms(cameras, names)


def cameras_of_transforms(record: Any, names: Sequence[str], what: str) -> list[ViewCamera] | list[PhotoCamera]:
    """The same from a parsed transforms.json. `what`: its name in messages.

    Where all pictures are called views/000.png and so on, they are in the order of the views; else a frame's picture
    must be called like the view.
    """
    frames = record.get("frames") if isinstance(record, Mapping) else None
    if not isinstance(frames, list) or not all(isinstance(frame, Mapping) for frame in frames):
        raise InputError(f"{what} lists no cameras: it must be a transforms.json with frames.")
    if record.get("frame", "gltf") != "gltf":
        raise InputError(f"The cameras of {what} do not stand around the model: their frame must be 'gltf'.")
    if len(frames) < len(names):
        raise InputError(f"{what} lists {len(frames)} cameras, but there are {len(names)} photos: each needs one.")
    shared = {key: value for key, value in record.items() if key != "frames"}
    read = camera_of_frame if "frame" in record else photo_camera_of_frame
    return [read({**shared, **frames[index]}, f"the camera of '{name}'")
            for index, name in zip(_order(frames, names, what), names, strict=True)]  # fmt: skip


def _order(frames: Sequence[Mapping[str, Any]], names: Sequence[str], what: str) -> list[int]:
    """Which frame is whose."""
    paths = [PurePosixPath(str(frame.get("file_path", ""))) for frame in frames]
    # First, for a photo may be called 001.png and be another than the second view.
    if all(_OF_A_RUN.fullmatch(str(path)) for path in paths):
        if len(frames) != len(names):
            raise InputError(f"{what} lists {len(frames)} cameras, but there are {len(names)} photos: each needs one.")
        return list(range(len(names)))
    places = {key: index for index in reversed(range(len(frames))) for key in (paths[index].stem, paths[index].name)}
    order = [places.get(name, places.get(PurePosixPath(name).stem)) for name in names]
    if len(set(names)) != len(names) or None in order:
        absent = next((name for name, index in zip(names, order, strict=True) if index is None), names[0])
        raise InputError(f"{what} has no camera of its own for '{absent}': its file_path must be the photo's name.")
    return order
