"""The panel of the cameras that a job has found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from studio.events import CAMERAS, VIEWS, CamerasFound
from studio.pages.files import address, light_addresses
from studio.pages.strip import badge


def write_cameras(found: CamerasFound, folder: Path) -> None:
    """Write what the panel's viewer reads: transforms.json, and the picture of each view."""
    (folder / VIEWS).mkdir(parents=True, exist_ok=True)
    record = json.loads(json.dumps(found.transforms))
    for number, (frame, view) in enumerate(zip(record["frames"], found.views, strict=True)):
        frame["file_path"] = _picture(number)
        (folder / frame["file_path"]).write_bytes(view.picture)
    (folder / CAMERAS).write_text(json.dumps(record), encoding="utf-8")


def _picture(number: int) -> str:
    return f"{VIEWS}/{number:03d}.jpg"


def cameras_panel(found: CamerasFound, key: str, ids: Sequence[str], left_out: Sequence[str] = ()) -> str:
    """The cameras around the object to come, and a card for each view.

    key: of the folder on the shelf that holds transforms.json and the pictures.
    ids: of the photographs, in the order of the views; those in `left_out` have been dropped since.
    """
    trusts = [view.trust for view in found.views]
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
        act = (
            '<span class="badge calm">Left out</span>'
            if gone
            else f'<button type="button" class="link" data-act="drop" data-id="{escape(id)}">Leave out</button>'
        )
        notes = "".join(badge(note) for note in view.notes)
        cards.append(
            f'<li class="{"gone" if gone else ""}"><img src="{address(key, _picture(number - 1))}" '
            f'alt="View {number}: {escape(view.name)}"><b>{number}</b>{_trust(trust)}'
            f'<div class="badges">{notes}</div>{act}</li>'
        )
    where = (
        "Each pyramid is a photo at the place it was taken from. Click one to look from there."
        if registered
        else "These cameras are seen from the first photo; they are not lined up with the model to come."
    )
    return (
        '<section class="cameras"><div class="line"><h3>Cameras</h3>'
        f'<span class="aside">{found.seconds:.0f} s</span></div><p class="hint">{where} '
        f"Leave out a photo that stands in a wrong place, then press <b>Generate</b>.</p>{viewer}"
        f'<ul class="view-cards">{"".join(cards)}</ul></section>'
    )


def _trust(trust: float | None) -> str:
    if trust is None:
        return ""
    word, kind = ("Fits", "sure") if trust >= 0.66 else ("Doubtful", "doubt") if trust >= 0.33 else ("Wrong?", "wrong")
    title = f"{trust:.0%} of this photo's outline is explained by the other photos (silhouette consistency)"
    bar = f'<i style="width:{100 * trust:.0f}%"></i>'
    return f'<span class="trust {kind}" title="{title}">{bar}{word} {trust:.0%}</span>'
