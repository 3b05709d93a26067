"""The cameras of a finished folder as a COLMAP project, with the pictures they belong to."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path, PurePosixPath

from studio.events import CAMERAS
from trellis.errors import InputError
from trellis.renderers.camera_formats import from_transforms, to_colmap_text


def colmap_project(folder: Path) -> bytes:
    """A zip of `images/` and `sparse/0/` (cameras.txt, images.txt, and points3D.txt without points).

    Args:
        folder: of a finished run or refinement: transforms.json, and the views that it names.

    The world is that of transforms.json; sizes and focal lengths are those of the views, which are cut-outs of the
    photographs. Raises InputError if the folder has no cameras, or a view is not there.
    """
    file = folder / CAMERAS
    if not file.is_file():
        raise InputError("There are no cameras in this folder.")
    cameras, paths = from_transforms(json.loads(file.read_text(encoding="utf-8")))
    names = [PurePosixPath(path).name for path in paths]
    texts = dict(zip(("cameras.txt", "images.txt"), to_colmap_text(cameras, names), strict=True))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, name in zip(paths, names, strict=True):
            view = (folder / path).resolve()
            if not view.is_relative_to(folder.resolve()) or not view.is_file():
                raise InputError(f"The view '{name}' is missing beside its cameras.")
            archive.write(view, f"images/{name}", zipfile.ZIP_STORED)  # compressed already
        # COLMAP refuses a model without its third file, which may be empty.
        for name, text in {**texts, "points3D.txt": ""}.items():
            archive.writestr(f"sparse/0/{name}", text)
    return stream.getvalue()
