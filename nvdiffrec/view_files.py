"""Reading views from disk: NeRF `transforms.json`, COLMAP text, or a folder that `studio reconstruct` wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvdiffrec.views import Views
from trellis.errors import InputError
from trellis.files import read_json
from trellis.pipelines.image_files import open_image
from trellis.renderers.camera_formats import Frame, from_colmap_text, from_transforms
from trellis.renderers.cameras import Cameras

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_TRANSFORMS = ("transforms.json", "transforms_train.json")
_MASK_FOLDER = "masks"
_MAX_BYTES = 16 * 2**20  # of a transforms.json; a thousand frames have half a megabyte
_ASPECT_TOLERANCE = 0.02  # a resized copy may be off by a rounded pixel


Pictures = Mapping[str, tuple[Tensor, Tensor]]  # by file name: image [3, H, W] sRGB and mask [1, H, W] in [0, 1]


def load_views(
    path: str | PathLike[str],
    masks: str | PathLike[str] | None = None,
    frame: Literal["auto"] | Frame = "auto",
    pictures: Pictures | None = None,
) -> Views:
    """Load posed photographs.

    Args:
        path: a `transforms.json` (any name ending in .json), or a folder that holds one, or a folder with COLMAP's
            `cameras.txt` and `images.txt` (also in `sparse`, `sparse/0` or `colmap`) whose images lie in `images` or
            beside them.
        masks: folder with one mask per image, of the image's name or stem (white = object). Without it, an image's
            own alpha counts, then the frame's "mask_path", then the folder `masks` beside the images' folder.
        frame: world of the file: "gltf" (y up, what this program writes), "object" (z up, as NeRF-synthetic). "auto"
            takes "object" for the NeRF-synthetic form with `camera_angle_x` and "gltf" for all others.
        pictures: photographs that have been opened already. None is then read from disk: every camera is that of the
            picture with its file's name or stem, and cameras of no picture are passed over.

    Returns:
        The views in the object frame (z up), their sizes as the files have them.

    Raises:
        InputError: something is missing or contradictory; the sentence says what, and in which view.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return _load_transforms(path, masks, frame, pictures)
    if not path.is_dir():
        raise InputError(f"'{path.name}' is neither a folder nor a transforms.json.")
    for name in _TRANSFORMS:
        if (path / name).is_file():
            return _load_transforms(path / name, masks, frame, pictures)
    texts = colmap_texts(path)
    if texts is not None:
        return _load_colmap(path, texts, masks, "gltf" if frame == "auto" else frame, pictures)
    raise InputError(
        f"'{path.name}' holds no cameras: neither a transforms.json nor COLMAP's cameras.txt and images.txt."
    )


def colmap_texts(folder: Path) -> tuple[Path, Path] | None:
    """COLMAP's cameras.txt and images.txt in a folder, or in `sparse`, `sparse/0` or `colmap` in it."""
    for sub in ("", "sparse", "sparse/0", "colmap"):
        files = folder / sub / "cameras.txt", folder / sub / "images.txt"
        if all(file.is_file() for file in files):
            return files
    return None


def _load_transforms(
    file: Path, masks: str | PathLike[str] | None, frame: str, pictures: Pictures | None
) -> Views:
    record = read_json(file, "a file of cameras", _MAX_BYTES)
    frames = record.get("frames") if isinstance(record, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(entry, dict) for entry in frames):
        raise InputError(f"'{file.name}' lists no frames.")
    _check_matrices(frames)
    if frame == "auto":
        synthetic = "fl_x" not in record and any("camera_angle_x" in entry for entry in (record, *frames))
        frame = "object" if synthetic else "gltf"
    if pictures is None:
        names, opened = _open_all(
            [str(entry.get("file_path", "")) for entry in frames],
            lambda image, index: _mask_file(image, file.parent, masks, frames[index].get("mask_path")),
            file.parent,
            "Frame",
        )
    else:
        used, names, opened = _match([str(entry.get("file_path", "")) for entry in frames], pictures)
        frames = [frames[index] for index in used]
    # NeRF-synthetic files state no image size: it is that of the image.
    sized = [
        {"w": image.shape[2], "h": image.shape[1], **_sizes(record), **entry}
        for entry, (image, _) in zip(frames, opened, strict=True)
    ]
    cameras, _ = from_transforms({**record, "frames": sized}, frame)
    # A file of this program says in which frame it is, and who predicted its cameras: None if all of them were stated.
    predicted = bool(record.get("predicted_by", record.get("frame")))
    registered = not predicted and record.get("frame") == "gltf" and not record.get("aligned_to")
    return replace(_views(cameras, opened, names), predicted=predicted, registered=registered)


def _load_colmap(
    root: Path, texts: tuple[Path, Path], masks: str | PathLike[str] | None, frame: Frame, pictures: Pictures | None
) -> Views:
    cameras, files = from_colmap_text(*(file.read_text(encoding="utf-8") for file in texts), frame=frame)
    if pictures is None:
        folder = root / "images" if (root / "images").is_dir() else root
        names, opened = _open_all(files, lambda image, _: _mask_file(image, root, masks, None), folder, "Image")
    else:
        used, names, opened = _match(files, pictures)
        cameras = cameras[used]
    return _views(cameras, opened, names)


def _open_all(
    stated: Sequence[str], mask_of: Callable[[Path, int], Path | None], folder: Path, what: str
) -> tuple[list[str], list[tuple[Tensor, Tensor]]]:
    """Names and pictures of the files that a camera file states."""
    files = [_find_image(folder, name, f"{what} {i + 1}") for i, name in enumerate(stated)]
    return [file.stem for file in files], [_open(file, mask_of(file, i)) for i, file in enumerate(files)]


def _match(
    stated: Sequence[str], pictures: Pictures
) -> tuple[list[int], list[str], list[tuple[Tensor, Tensor]]]:
    """Which of the stated files are among the pictures; their names and the pictures, in the order of the pictures."""
    places = {key: index for index, name in reversed(list(enumerate(stated)))
              for key in (PurePosixPath(name).stem, PurePosixPath(name).name)}  # fmt: skip
    used = []
    for name in pictures:
        index = places.get(name, places.get(PurePosixPath(name).stem))
        if index is None:
            raise InputError(
                f"There is no camera for '{name}' among those of {', '.join(sorted(stated)[:6])}"
                f"{', ...' if len(stated) > 6 else ''}: a photo needs the file name that its camera states."
            )
        used.append(index)
    return used, list(pictures), list(pictures.values())


def _views(
    cameras: Cameras, pictures: Sequence[tuple[Tensor, Tensor]], names: Sequence[str]
) -> Views:
    """Views whose cameras fit the pictures: a picture may be a resized copy of what the camera describes."""
    fitted = []
    for index, ((image, _), name) in enumerate(zip(pictures, names, strict=True)):
        height, width = cameras.height_width(index)
        size = tuple(image.shape[1:])
        if abs(math.log(size[0] / size[1] * width / height)) > _ASPECT_TOLERANCE:
            raise InputError(
                f"View '{name}' is {size[1]} x {size[0]} pixels, but its camera describes {width} x {height}: "
                "cropping changes a camera, so supply the image that belongs to it."
            )
        fitted.append(cameras[index].scaled(*size))
    images, masks = zip(*pictures, strict=True)
    return Views(Cameras.cat(fitted), images, masks, _distinct(names))


def _sizes(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("w", "h") if key in record}


def _check_matrices(frames: Sequence[Mapping[str, Any]]) -> None:
    """Name the frame whose pose is broken; the camera class can only say that one of them is."""
    for index, entry in enumerate(frames):
        name = entry.get("file_path", index)
        try:
            matrix = np.array(entry["transform_matrix"], dtype=np.float64)
        except KeyError as error:
            raise InputError(f"Frame '{name}' has no transform_matrix.") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"The transform_matrix of frame '{name}' is not a table of numbers.") from error
        if matrix.shape != (4, 4):
            raise InputError(f"The transform_matrix of frame '{name}' must be 4 x 4, but is {list(matrix.shape)}.")
        if not np.isfinite(matrix).all():
            raise InputError(f"The transform_matrix of frame '{name}' holds a value that is not a finite number.")
        error = np.abs(matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)).max()
        if error > 1e-3 or np.linalg.det(matrix[:3, :3]) < 0:
            raise InputError(
                f"The transform_matrix of frame '{name}' is not a rigid motion: its axes must be unit vectors at right "
                "angles and right-handed."
            )


def _find_image(folder: Path, stated: str, who: str) -> Path:
    """The image file that a camera file states, with the suffix added if that is left out."""
    if not stated:
        raise InputError(f"{who} states no image file.")
    target = folder / stated
    candidates = [target, *(target.with_name(target.name + suffix) for suffix in _SUFFIXES)]
    inside = folder.resolve()
    for candidate in candidates:
        if candidate.is_file():
            if not candidate.resolve().is_relative_to(inside):
                raise InputError(f"{who} refers to '{stated}', outside of its folder; put the images beside it.")
            return candidate
    raise InputError(f"{who} refers to '{stated}', but there is no such image.")


def _mask_file(image: Path, root: Path, masks: str | PathLike[str] | None, stated: str | None) -> Path | None:
    """Where the separate mask of an image lies, or None; one that was asked for must exist."""
    if masks is None and stated:
        return _find_image(root, stated, f"View '{image.stem}'")
    folders = [Path(masks)] if masks is not None else [root / _MASK_FOLDER, image.parent.parent / _MASK_FOLDER]
    for folder in folders:
        for name in (image.name, *(image.stem + suffix for suffix in _SUFFIXES), image.name + ".png"):
            if (folder / name).is_file():
                return folder / name
    if masks is not None:
        raise InputError(f"There is no mask for view '{image.stem}' in '{Path(masks).name}'.")
    return None


def _open(file: Path, mask_file: Path | None) -> tuple[Tensor, Tensor]:
    """Image [3, H, W] sRGB and mask [1, H, W], both in [0, 1]."""
    picture = open_image(file)
    color = _tensor(picture.convert("RGB"))
    if mask_file is not None:
        mask_picture = open_image(mask_file)
        mask_picture = mask_picture.getchannel("A") if mask_picture.mode == "RGBA" else mask_picture.convert("L")
        if mask_picture.size != picture.size:
            (mw, mh), (w, h) = mask_picture.size, picture.size
            raise InputError(f"The mask of '{file.name}' is {mw} x {mh} pixels, but the image is {w} x {h}.")
        return color, _tensor(mask_picture)
    if picture.mode != "RGBA" or picture.getextrema()[3][0] == 255:
        raise InputError(
            f"'{file.name}' has neither transparency nor a mask, so the object cannot be told from its background; "
            f"supply PNG files with alpha, or a folder '{_MASK_FOLDER}' with a black and white image per view."
        )
    return color, _tensor(picture.getchannel("A"))


def _tensor(picture: Image.Image) -> Tensor:
    pixels = np.array(picture, dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number added to those that repeat."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result
