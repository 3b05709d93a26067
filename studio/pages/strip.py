"""The strip of photographs as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from studio.pages.files import address
from studio.pages.photos import Photo, Photos

_WORDS = {"blur": "Blurred?", "crop": "Cut off", "exposure": "Exposure", "duplicate": "Near-duplicate",
          "cutout": "No object"}  # fmt: skip
_LEFT, _RIGHT, _BRUSH, _CROSS = (
    "M15 5l-7 7 7 7", "M9 5l7 7-7 7", "M4 20c3 0 5-1 5-4l9-11 2 2-11 9M4 20c0-3 2-5 5-4", "M6 6l12 12M18 6L6 18",
)  # fmt: skip


def icon_button(act: str, id: str, title: str, path: str, disabled: bool = False) -> str:
    """A button with a picture, whose click `live` reports."""
    return (
        f'<button type="button" data-act="{act}" data-id="{escape(id)}" title="{escape(title)}" '
        f'aria-label="{escape(title)}"{" disabled" if disabled else ""}>'
        '<svg viewBox="0 0 24 24" width="15" height="15" aria-hidden="true" fill="none" stroke="currentColor" '
        f'stroke-width="2" stroke-linecap="round" stroke-linejoin="round"><path d="{path}"/></svg></button>'
    )


def strip(photos: Photos) -> str:
    """Thumbnails with what can be done to each."""
    items = list(photos)
    if not items:
        return ""
    cards = "".join(_card(photos, photo, index, len(items)) for index, photo in enumerate(items))
    count = f"{len(items)} {'photo' if len(items) == 1 else 'photos'}"
    clear = '<button type="button" class="link" data-act="clear">Remove all</button>'
    head = f'<div class="strip-head"><span>{count}; the first is the front.</span>{clear}</div>'
    return f'{head}<ul class="strip">{cards}</ul>'


def _card(photos: Photos, photo: Photo, index: int, count: int) -> str:
    picture = "small.png" if photo.looked_at else "small.jpg"
    name = f"photo {index + 1}"
    found = "".join(badge(note) for note in photo.notes)
    waiting = "" if photo.looked_at else '<span class="badge calm">Looking ...</span>'
    masked = '<span class="badge calm" title="Its mask was painted or given">Masked</span>' if photo.mask else ""
    return (
        f'<li class="{"looked" if photo.looked_at else "new"}" data-photo="{photo.id}">'
        f'<img src="{address(photos.key, f"{photo.id}/{picture}", photo.version)}" alt="{name}: {escape(photo.name)}" '
        f'title="{escape(photo.name)}"><b>{index + 1}</b><div class="badges">{found}{waiting}{masked}</div>'
        '<div class="acts">'
        + icon_button("left", photo.id, f"Move {name} forward", _LEFT, index == 0)
        + icon_button("right", photo.id, f"Move {name} back", _RIGHT, index == count - 1)
        + icon_button("mask", photo.id, f"Paint what belongs to the object in {name}", _BRUSH, not photo.looked_at)
        + icon_button("remove", photo.id, f"Remove {name}", _CROSS)
        + "</div></li>"
    )


def badge(note: Mapping[str, Any]) -> str:
    """What may be wrong with a photograph: a word, and the sentence on demand."""
    message = escape(str(note["message"]))
    return f'<span class="badge" tabindex="0">{_WORDS.get(note["kind"], "Note")}<i>{message}</i></span>'


def mask_editor(photos: Photos, photo: Photo) -> str:
    """The brush for one photograph."""
    at = f"{photo.id}/"
    return (
        f'<section class="mask-panel"><h3>What belongs to the object in {escape(photo.name)}?</h3>'
        f'<studio-mask data-photo="{photo.id}" photo="{address(photos.key, at + "photo.jpg", photo.version)}" '
        f'mask="{address(photos.key, at + "cut.png", photo.version)}"></studio-mask></section>'
    )
