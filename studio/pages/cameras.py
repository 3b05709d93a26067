"""The panel of the cameras that a job has found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from studio.events import CAMERAS, VIEWS, CamerasFound
from studio.pages.camera_edits import editor, trusts_with
from studio.pages.files import address, light_addresses
from studio.pages.strip import badge
from studio.view_cameras import ViewCamera


def write_cameras(found: CamerasFound, folder: Path) -> None:
    """Write what the panel's viewer reads: transforms.json, and the picture of each view."""
    (folder / VIEWS).mkdir(parents=True, exist_ok=True)
    record = json.loads(json.dumps(found.transforms))
    for number, (frame, view) in enumerate(zip(record["frames"], found.views, strict=True)):
        frame["file_path"] = _picture(number)
        (folder / frame["file_path"]).write_bytes(view.picture)
        (folder / f"{VIEWS}/{number:03d}-mask.png").write_bytes(view.mask)
    (folder / CAMERAS).write_text(json.dumps(record), encoding="utf-8")


def _picture(number: int) -> str:
    return f"{VIEWS}/{number:03d}.jpg"


def cameras_panel(
    found: CamerasFound, key: str, ids: Sequence[str], edited: Mapping[str, ViewCamera], left_out: Sequence[str] = ()
) -> str:
    """The cameras around the object to come, and a card for each view.

    key: of the folder on the shelf that holds transforms.json and the pictures.
    ids: of the photographs, in the order of the views; those in `left_out` have been dropped since.
    edited: cameras set by hand, by these ids.
    """
    by_hand = [edited.get(id) for id in ids]
    trusts = trusts_with(found, by_hand)
    known = "" if None in trusts else ",".join(f"{trust:.2f}" for trust in trusts)
    registered = found.transforms.get("frame") == "gltf"
    viewer = (
        f'<studio-viewer id="cameras-view" cameras="{address(key, CAMERAS)}" photos="{address(key)}" '
        f'trust="{known}" lights="{light_addresses()}" '
        f'label="The cameras of {len(found.views)} photos around the object"></studio-viewer>'
    )
    cards = []
    for number, (id, view, trust) in enumerate(zip(ids, found.views, trusts, strict=True), start=1):
        gone = id in left_out
        acts = '<span class="badge calm">Left out</span>'
        if not gone:
            acts = f'<button type="button" class="link" data-act="drop" data-id="{escape(id)}">Leave out</button>'
            if registered:
                acts += f'<button type="button" class="link" data-edit="{number - 1}">Correct</button>'
        notes = "".join(badge(note) for note in view.notes)
        cards.append(
            f'<li class="{"gone" if gone else ""}"><img src="{address(key, _picture(number - 1))}" '
            f'alt="View {number}: {escape(view.name)}"><b>{number}</b>{_trust(trust)}'
            f'<div class="badges">{notes}</div><div class="acts">{acts}</div></li>'
        )
    where = (
        "Each pyramid is a photo at the place it was taken from. Click one to look from there."
        if registered
        else "These cameras are seen from the first photo; they are not lined up with the model to come."
    )
    mend, editing = "Leave out a photo that stands in a wrong place", ""
    if registered:
        mend += ", or correct its camera"
        frames = [camera and camera.as_json() for camera in by_hand]
        editing = (
            f"<details{' open' if any(by_hand) else ''}><summary>Correct cameras by hand</summary>"
            f"{editor(address(key), frames, masks_beside=True)}</details>"
        )
    return (
        '<section class="cameras"><div class="line"><h3>Cameras</h3>'
        f'<span class="aside">{found.seconds:.0f} s</span></div><p class="hint">{where} '
        f"{mend}, then press <b>Generate</b>.</p>{viewer}"
        f'<ul class="view-cards">{"".join(cards)}</ul>{editing}</section>'
    )


def _trust(trust: float | None) -> str:
    if trust is None:
        return ""
    word, kind = ("Fits", "sure") if trust >= 0.66 else ("Doubtful", "doubt") if trust >= 0.33 else ("Wrong?", "wrong")
    title = "How much of this photo's outline the other photos explain (silhouette consistency)"
    bar = f'<i style="width:{100 * trust:.0f}%"></i>'
    return f'<span class="trust {kind}" title="{title}">{bar}{word} {trust:.0%}</span>'
