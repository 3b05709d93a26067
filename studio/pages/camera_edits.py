"""Cameras that a visitor sets by hand: what the editor sends, and what is kept of it until a job takes it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from PIL import Image

from studio.events import CamerasFound
from studio.inputs import View
from studio.pages.sessions import Session
from studio.view_cameras import ViewCamera, camera_of_frame
from trellis.errors import InputError

_MAX_CHARACTERS = 200_000  # 32 cameras have some 20,000
_TORN = "The cameras did not arrive whole; please try again."

WHAT_CHANGES = (
    "The shape stays as it is: the networks read the photos, not these cameras. A corrected camera changes the colours "
    "taken from photographs, the comparison with the photos, the map of what they show, and the camera files. Refine "
    "starts from it; once all are corrected, Refine takes them as known and leaves them as they are."
)


def cameras_of_act(data: dict[str, Any], names: Sequence[str]) -> list[ViewCamera | None]:
    """What the editor sent: a camera for each view that was set by hand. Raises InputError for anything else."""
    text = data.get("frames")
    try:
        frames = json.loads(text) if isinstance(text, str) and len(text) <= _MAX_CHARACTERS else None
    except (ValueError, RecursionError):
        frames = None
    if not isinstance(frames, list) or len(frames) != len(names):
        raise InputError(_TORN)
    return [
        None if frame is None else camera_of_frame(frame, f"the camera of '{name}'")
        for frame, name in zip(frames, names, strict=True)
    ]


def newest_of_act(session: Session, data: dict[str, Any], names: Sequence[str]) -> list[ViewCamera | None] | None:
    """What the editor sent, see `cameras_of_act`; None if it has sent something later, which was heard before."""
    cameras = cameras_of_act(data, names)
    try:
        at = float(data.get("at"))
    except (TypeError, ValueError):
        at = math.nan
    if not math.isfinite(at):
        raise InputError(_TORN)
    if at < session.edited_at:
        return None
    session.edited_at = at
    return cameras


def keep(session: Session, ids: Sequence[str], cameras: Sequence[ViewCamera | None]) -> None:
    """Remember them for photographs by their ids, the first of which is the front that they were set for."""
    session.edited = {id: camera for id, camera in zip(ids, cameras, strict=True) if camera is not None}
    session.edited_front = ids[0]


def views_of(session: Session) -> list[View]:
    """The views of a visitor's photographs with the cameras that were set by hand.

    Raises InputError if another photograph has become the front since, for it decides where all cameras stand.
    """
    photos = list(session.photos)
    if session.edited and photos and photos[0].id != session.edited_front:
        raise InputError(
            "Another photo has become the front since cameras were corrected by hand, and all cameras stand around the "
            "front. Press Check cameras, which finds them anew."
        )
    return [replace(photo.view, camera=session.edited.get(photo.id)) for photo in photos]


def forget_for_another_front(session: Session) -> None:
    """Cameras set by hand stand around the front; with another one they mean nothing."""
    first = next(iter(session.photos), None)
    if first is None or first.id != session.edited_front:
        session.edited = {}


def trusts_with(found: CamerasFound, edited: Sequence[ViewCamera | None]) -> list[float | None]:
    """The trust in each view's camera, with some of them set by hand."""
    trusts = [view.trust for view in found.views]
    if not any(edited) or None in trusts:
        return trusts
    from studio.trust import trust_in_cameras  # brings torch
    from studio.view_cameras import with_stated
    from trellis.renderers.camera_formats import from_transforms

    images = []
    for view in found.views:
        mask = Image.open(io.BytesIO(view.mask), formats=("PNG",))
        image = Image.new("RGBA", mask.size)
        image.putalpha(mask)
        images.append(image)
    return trust_in_cameras(with_stated(from_transforms(found.transforms)[0], edited), images)


def editor(photos: str, edited: Sequence[Any], found: Sequence[Any] = (), masks_beside: bool = False) -> str:
    """The element that sets cameras; it belongs into a section with a viewer.

    Args:
        photos: address of the folder of the pictures.
        edited: per view the frame set by hand, or None.
        found: per view the frame that was found, or None for that of the viewer's cameras.
        masks_beside: see the element.
    """

    def json_of(frames: Sequence[Any]) -> str:
        return escape(json.dumps(list(frames)))

    return (
        f'<p class="hint">{WHAT_CHANGES}</p>'
        f'<studio-camera-editor photos="{photos}" masks="{"beside" if masks_beside else "alpha"}" '
        f'edited="{json_of(edited)}" found="{json_of(found)}"></studio-camera-editor>'
    )
