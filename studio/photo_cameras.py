"""Cameras of photographs as they were taken, in a frame of their own: those of COLMAP, of a rig, of a rendering.

They say how the photographs stand to each other, and nothing of the object. The cameras that the networks find for the
same photographs stand around it, roughly; a similarity brings the one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from studio.view_cameras import SQUARE, ViewCamera, lens_of, pose_of, sees_the_object, size_of, view_camera
from trellis.errors import InputError

if TYPE_CHECKING:
    from studio.stages import PreparedView
    from trellis.renderers.cameras import Cameras

_FARTHEST = 1e6
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_STRANGERS = 60.0  # degrees in the median; cameras that differ more are not those of these photographs


@dataclass(frozen=True)
class PhotoCamera:
    """The camera of one whole photograph.

    Attributes:
        pose: camera to world, 4 rows of 4, OpenGL axes (x right, y up, z backward), in any right-handed frame and unit.
        lens: fl_x, fl_y, cx and cy in parts of the photograph's width and height.
        aspect: of the photograph, width by height; None for any, with square pixels, and then fl_y is that of a square.
    """

    pose: tuple[tuple[float, ...], ...]
    lens: tuple[float, float, float, float]
    aspect: float | None

    def as_json(self) -> dict[str, Any]:
        return {"photograph": True, "lens": list(self.lens), "aspect": self.aspect,
                "transform_matrix": [list(row) for row in self.pose]}  # fmt: skip

    def of_view(self, crop: tuple[float, float, float, float], who: str) -> ViewCamera:
        """The camera of what a view shows of the photograph (see `PreparedView.crop`), still in its own frame.

        Raises InputError if the photograph has another shape than the camera's picture.
        """
        left, top, width, height = crop
        aspect = height / width  # of the photograph, for the crop is square
        focal_x, focal_y, center_x, center_y = self.lens
        if self.aspect is None:
            focal_y *= aspect
        elif abs(math.log(self.aspect / aspect)) > SQUARE:
            raise InputError(
                f"{who[0].upper()}{who[1:]} is for a picture {self.aspect:.3f} times as wide as high, but the photo is "
                f"{aspect:.3f} times: cropping or turning a photo changes its camera."
            )
        lens = focal_x / width, focal_y / height, (center_x - left) / width, (center_y - top) / height
        return ViewCamera(self.pose, lens)


def photo_camera_of_frame(frame: Any, who: str) -> PhotoCamera:
    """A frame of a transforms.json with its own lens and "transform_matrix".

    The lens is "w", "h", "fl_x" (and "fl_y", "cx", "cy"), or "camera_angle_x" in radians.

    who: whose camera it is, for messages. Raises InputError, one sentence, whatever comes.
    """
    who = who[0].upper() + who[1:]
    if any(frame.get(key) for key in _DISTORTION):
        raise InputError(f"{who} has lens distortion; undistort the photos first.")
    angle = frame.get("camera_angle_x")
    if "fl_x" not in frame and isinstance(angle, float | int) and 0 < angle < math.pi:
        focal = 0.5 / math.tan(angle / 2)
        lens, aspect = lens_of({"fl_x": focal}, 1.0, 1.0, who), None
    else:
        width, height = size_of(frame, who)
        lens, aspect = lens_of(frame, width, height, who), width / height
    return PhotoCamera(pose_of(frame, who, _FARTHEST), lens, aspect)


def aligned(
    stated: Sequence[PhotoCamera], prepared: Sequence[PreparedView], found: Cameras
) -> tuple[list[ViewCamera], str]:
    """The cameras of the views around the object, and a sentence on how well they agree with those that were found.

    Args:
        found: those of the networks, in the object frame.

    Raises InputError, one sentence: a view does not say what it shows of its photograph, or the cameras cannot be those
    of these photographs in this order.
    """
    from nvdiffrec.similarity import similarity_between  # brings torch
    from studio.view_cameras import with_stated

    own = []
    for camera, view in zip(stated, prepared, strict=True):
        if view.crop is None:
            raise InputError(
                f"It is not known what '{view.name}' shows of its photo, so the photo's camera cannot be given; "
                "reconstruct it anew with these cameras."
            )
        own.append(camera.of_view(view.crop, f"the camera of '{view.name}'"))
    cameras = with_stated(found, own)
    alignment = similarity_between(cameras, found.to("cpu"))
    angle, shift = (float(values.quantile(0.5)) for values in (alignment.angles, alignment.shifts))
    placed = alignment.similarity.apply(cameras)
    views = [replace(view_camera(placed, index), aligned=True) for index in range(len(own))]
    blind = [view.name for camera, view in zip(views, prepared, strict=True) if not sees_the_object(camera)]
    if angle > _STRANGERS or blind:
        raise InputError(
            f"The cameras do not belong to these photos in this order: after the best alignment they still differ by "
            f"{angle:.0f} degrees in the median from those that the networks found."
        )
    if len(own) == 1:
        return views, (
            "One photo's camera, in a frame of its own, says nothing of where it stands: only its lens was taken over."
        )
    worst = int(alignment.angles.argmax())
    sentence = (
        f"The stated cameras were aligned with those that the networks found by a similarity; they differ by "
        f"{angle:.1f} degrees and {shift:.0%} of the distance in the median, at most by "
        f"{float(alignment.angles[worst]):.1f} degrees (photo {worst + 1})."
    )
    if len(own) == 2:
        sentence += " With two photos nothing tells which of the two was found wrongly."
    return views, sentence
