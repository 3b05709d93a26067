"""Cameras that a person states for views: checked, and laid over those that the networks found.

Such a camera is that of the prepared view (cut out, centred, square) in the frame of the files that the studio writes
(glTF: y up, the object within [-0.5, 0.5]^3), which is what transforms.json of a run or of found cameras holds.
`studio.photo_cameras` has those of photographs in other frames, `studio.camera_files` reads both from files.

The networks read the pictures, not the cameras, so a stated camera changes nothing that is sampled. It decides the
colours that photographs lay over the texture, the comparison with the photographs, the map of what is known, the camera
files, and where a refinement starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trellis.errors import InputError

if TYPE_CHECKING:
    from trellis.renderers.cameras import Cameras

_MAX_SIDE = 100_000  # pixels
_RIGID = 1e-3  # how far axes may be from unit length and right angles
_ROUNDING = 1e-9  # of the last row of a pose
_NARROWEST, _WIDEST = 1.0, 170.0  # degrees of a field of view
_FARTHEST_CENTER = 100.0  # sides of the picture
FARTHEST = 1000.0
SQUARE = 0.02  # of the side; by so much a rounded size may be off
_SAME = 1e-4  # a camera that differs less from the one found is that one


@dataclass(frozen=True)
class ViewCamera:
    """The camera of one prepared view.

    Attributes:
        pose: camera to world, 4 rows of 4, OpenGL axes (x right, y up, z backward), in the glTF frame.
        lens: fl_x, fl_y, cx and cy in parts of the picture's width and height.
        aligned: it was brought here from a frame of its own, by way of cameras that were found; so it is known how it
            stands to the others, but only about how to the object.
    """

    pose: tuple[tuple[float, ...], ...]
    lens: tuple[float, float, float, float]
    aligned: bool = False

    def as_json(self) -> dict[str, Any]:
        """A frame of a transforms.json, for a picture of size 1 x 1; `camera_of_frame` reads it."""
        names = ("fl_x", "fl_y", "cx", "cy")
        return {"w": 1, "h": 1, **dict(zip(names, self.lens, strict=True)),
                "transform_matrix": [list(row) for row in self.pose],
                **({"aligned": True} if self.aligned else {})}  # fmt: skip


def camera_of_frame(frame: Any, who: str) -> ViewCamera:
    """A frame of a transforms.json with its own "w", "h", "fl_x" (and "fl_y", "cx", "cy") and "transform_matrix".

    who: whose camera it is, for messages ("the camera of 'front.png'"). Raises InputError, one sentence, whatever
    comes.
    """
    who = who[0].upper() + who[1:]
    if not isinstance(frame, Mapping):
        raise InputError(f"{who} must be an object as in a transforms.json, but a {type(frame).__name__} came.")
    width, height = size_of(frame, who)
    if abs(width - height) > SQUARE * max(width, height):
        raise InputError(
            f"{who} is for a picture of {width:g} x {height:g} pixels, but views are square: state the cameras of the "
            "views as the networks saw them, in the studio's own transforms.json, or those of the photos in a file "
            "that names no frame."
        )
    lens = lens_of(frame, width, height, who)
    camera = ViewCamera(pose_of(frame, who), lens, frame.get("aligned") is True)
    if not sees_the_object(camera):
        raise InputError(f"{who} does not look at the object, which lies within half a unit of the origin.")
    return camera


def with_stated(found: Cameras, stated: Sequence[ViewCamera | None]) -> Cameras:
    """The cameras that were found, with those that a person states in their places, in the object frame."""
    if not any(stated):
        return found
    import torch

    from trellis.renderers.camera_formats import from_transforms
    from trellis.renderers.cameras import Cameras

    each = []
    for index, camera in enumerate(stated):
        if camera is None:
            each.append(found[index])
            continue
        height, width = found.height_width(index)
        placed, _ = from_transforms({"frames": [camera.as_json()]})
        scale = torch.tensor([[width], [height], [1]], dtype=placed.intrinsics.dtype)
        sized = Cameras(placed.extrinsics, placed.intrinsics * scale, torch.tensor([[height, width]]))
        each.append(sized.to(found.device, found.extrinsics.dtype))
    return Cameras.cat(each)


def view_camera(cameras: Cameras, index: int) -> ViewCamera:
    """One of some cameras in the object frame."""
    from trellis.renderers.camera_formats import to_transforms

    record = to_transforms(cameras[index], [""])
    width, height = record["w"], record["h"]
    lens = record["fl_x"] / width, record["fl_y"] / height, record["cx"] / width, record["cy"] / height
    return ViewCamera(tuple(map(tuple, record["frames"][0]["transform_matrix"])), lens)


def size_of(frame: Mapping[str, Any], who: str) -> tuple[float, float]:
    """Width and height in pixels of a frame's picture. Raises InputError."""
    width, height = (_number(frame, key, who) for key in ("w", "h"))
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise InputError(f"{who} is for a picture of {width:g} x {height:g} pixels, which there cannot be.")
    return width, height


def lens_of(frame: Mapping[str, Any], width: float, height: float, who: str) -> tuple[float, float, float, float]:
    """fl_x, fl_y, cx and cy of a frame in parts of its picture. Raises InputError."""
    focal_x = _number(frame, "fl_x", who)
    focal_y = _number(frame, "fl_y", who, focal_x)
    for focal, side in ((focal_x, width), (focal_y, height)):
        angle = math.degrees(2 * math.atan2(side, 2 * focal)) if focal > 0 else math.inf
        if not _NARROWEST <= angle <= _WIDEST:
            raise InputError(
                f"{who} must have a field of view from {_NARROWEST:g} to {_WIDEST:g} degrees, but its focal length is "
                f"{focal:.4g} pixels of {side:g}."
            )
    center_x, center_y = _number(frame, "cx", who, width / 2), _number(frame, "cy", who, height / 2)
    # A view may show the edge of a photograph, past whose middle its principal point then lies.
    if max(abs(center_x) / width, abs(center_y) / height) > _FARTHEST_CENTER:
        raise InputError(f"{who} must have its principal point near the picture, not at {center_x:g}, {center_y:g}.")
    return focal_x / width, focal_y / height, center_x / width, center_y / height


def same_camera(one: ViewCamera, other: ViewCamera) -> bool:
    """Whether two cameras are the same up to rounding."""
    return all(np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=_SAME) for name in ("pose", "lens"))


def _number(frame: Mapping[str, Any], key: str, who: str, default: float | None = None) -> float:
    value = frame.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12 or not math.isfinite(value):
        raise InputError(f"{who} needs a finite number as {key}, in pixels.")
    return float(value)


def pose_of(frame: Mapping[str, Any], who: str, farthest: float = FARTHEST) -> tuple[tuple[float, ...], ...]:
    """The transform_matrix of a frame, no number in it beyond `farthest`. Raises InputError."""
    matrix = frame.get("transform_matrix")
    sound = isinstance(matrix, list) and len(matrix) == 4 and all(isinstance(r, list) and len(r) == 4 for r in matrix)
    if not sound:
        raise InputError(f"{who} needs a transform_matrix of 4 rows of 4 numbers.")
    values = [value for row in matrix for value in row]
    numbers = not any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)
    if not numbers or not all(abs(value) <= farthest for value in values):  # what is not a number is no less, either
        raise InputError(f"{who} has a transform_matrix with something in it that is no number, or too large.")
    pose = np.array(matrix, dtype=np.float64)
    turn, rounding = pose[:3, :3], np.abs(pose[3] - (0, 0, 0, 1)).max()  # an inverse may have been computed
    if np.abs(turn @ turn.T - np.eye(3)).max() > _RIGID or np.linalg.det(turn) < 0 or rounding > _ROUNDING:
        raise InputError(
            f"{who} has a transform_matrix that is no rigid motion: its axes must be unit vectors at right angles, "
            "right-handed, and its last row 0, 0, 0, 1."
        )
    pose[3] = 0, 0, 0, 1
    return tuple(tuple(float(value) for value in row) for row in pose)


def sees_the_object(camera: ViewCamera) -> bool:
    """Whether any part of the cube of the object falls into the picture."""
    axis = np.linspace(-0.5, 0.5, 9)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    pose = np.array(camera.pose)
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
    depth = np.where(z < -1e-6, -z, np.nan)
    focal_x, focal_y, center_x, center_y = camera.lens
    across, down = focal_x * x / depth + center_x, -focal_y * y / depth + center_y
    return bool(np.any((across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)))
