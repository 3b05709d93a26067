"""A comparison as HTML: cards whose assets turn together, on the page and in a file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from studio.costs import GOOD_ENOUGH
from studio.pages import fragments
from studio.settings import Setting


@dataclass(frozen=True)
class Axis:
    """A setting that varies, and the values it takes."""

    setting: Setting
    values: tuple[str, ...]

    @property
    def title(self) -> str:
        return title_of(self.setting)


@dataclass(frozen=True)
class Card:
    """One finished or unfinished cell.

    Attributes:
        varied: the values of the axes, in their order.
        video: the turntable; None before it is there, or if it could not be filmed.
        psnr (dB), seconds, triangles, bytes: None before they are known.
        state: a word or two in the place of the video.
        bargain: the cheapest of those nearly as good as the best.
        key: of the run on the shelf, "" in a file.
    """

    varied: tuple[str, ...]
    video: Path | None = None
    psnr: float | None = None
    seconds: float | None = None
    triangles: int | None = None
    bytes: int | None = None
    state: str = ""
    bargain: bool = False
    key: str = ""

    @property
    def finished(self) -> bool:
        return self.triangles is not None


def title_of(setting: Setting) -> str:
    """A setting's title, with the part that it belongs to."""
    part = {"structure": "Shape: ", "latent": "Detail: "}.get(setting.path[0], "") if len(setting.path) > 1 else ""
    return f"{part}{setting.title[0].lower()}{setting.title[1:]}" if part else setting.title


def grid(axes: Sequence[Axis], cards: Sequence[Card], source: Callable[[Card], str]) -> str:
    """The cards, a column for each value of the last axis. `source`: the address of a card's video."""
    columns = len(axes[-1].values) if axes else 1
    body = "".join(_card(axes, card, source) for card in cards)
    return f'<studio-wall class="wall" style="--columns:{columns}">{body}</studio-wall>'


def bargain_sentence(axes: Sequence[Axis], cards: Sequence[Card]) -> str:
    """What to take away from a comparison."""
    chosen = next((card for card in cards if card.bargain), None)
    scored = [card for card in cards if card.psnr is not None]
    if chosen is None or len(scored) < 2:
        return ""
    best = max(scored, key=lambda card: card.psnr or 0.0)
    named = zip(axes, chosen.varied, strict=True)
    what = " and ".join(f"{axis.title.replace(':', '').lower()} {value}" for axis, value in named)
    if best is chosen:
        return f"The best one, with {what}, is also the cheapest within {GOOD_ENOUGH:g} dB of it."
    below = (best.psnr or 0) - (chosen.psnr or 0)
    near = f"within {below:.1f} dB of" if below >= 0.05 else "as good as"
    saved = f" and takes {chosen.seconds / best.seconds:.0%} of its time" if best.seconds and chosen.seconds else ""
    return f"With {what} the model is {near} the best{saved}."


def page(title: str, axes: Sequence[Axis], cards: Sequence[Card]) -> str:
    """A complete HTML file: videos, table and style are inside."""

    def source(card: Card) -> str:
        return f"data:video/mp4;base64,{base64.b64encode(card.video.read_bytes()).decode()}" if card.video else ""

    head = "".join(f"<th>{escape(name)}</th>" for name in _columns(axes))
    rows = "".join(
        f"<tr{' class=best' if card.bargain else ''}>"
        + "".join(f"<td>{escape(_shown(value))}</td>" for value in _row(card))
        + "</tr>"
        for card in cards
    )
    cells = grid(axes, [replace(card, key="") for card in cards], source)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{escape(bargain_sentence(axes, cards))}</p>{cells}"
        f"<table><tr>{head}</tr>{rows}</table>"
        "<p class=note>PSNR compares the model with the photos, in decibels; higher is closer. Time is what the model "
        "takes from scratch on this machine.</p>"
        f"<script>{_TOGETHER}</script></html>\n"
    )


def table(axes: Sequence[Axis], cards: Sequence[Card]) -> str:
    """The same figures as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*(axis.setting.key for axis in axes), "psnr_db", "seconds", "triangles", "glb_bytes", "bargain"])
    for card in cards:
        figures = (card.psnr, card.seconds, card.triangles, card.bytes)
        writer.writerow([*card.varied, *("" if value is None else value for value in figures), int(card.bargain)])
    return stream.getvalue()


def _card(axes: Sequence[Axis], card: Card, source: Callable[[Card], str]) -> str:
    name = " &middot; ".join(
        f"{escape(axis.title)} <b>{escape(value)}</b>" for axis, value in zip(axes, card.varied, strict=True)
    )
    if card.video is None:
        body = f'<div class="pending">{escape(card.state)}</div>'
    else:
        body = f'<video src="{source(card)}" autoplay loop muted playsinline aria-label="The model, turning"></video>'
    facts = [
        f"<b>{card.psnr:.1f} dB</b>" if card.psnr is not None else "",
        fragments.clock(card.seconds) if card.seconds is not None else "",
        f"{card.triangles:,} faces" if card.triangles is not None else "",
        fragments.size(card.bytes) if card.bytes is not None else "",
    ]
    line = " &middot; ".join(fact for fact in facts if fact)
    mark = ""
    if card.bargain:
        mark = f'<span class="bargain" title="Cheapest within {GOOD_ENOUGH:g} dB of the best">Best value</span>'
    act = (
        f'<button type="button" class="link" data-act="open" data-id="{escape(card.key)}">Open</button>'
        if card.key and card.finished
        else ""
    )
    best = " best" if card.bargain else ""
    return f'<figure class="cell{best}">{body}{mark}<figcaption><p>{name}</p><p>{line} {act}</p></figcaption></figure>'


def _columns(axes: Sequence[Axis]) -> list[str]:
    return [*(axis.title for axis in axes), "PSNR (dB)", "Time (s)", "Faces", "GLB (MB)"]


def _row(card: Card) -> list[Any]:
    return [*card.varied, card.psnr, card.seconds, card.triangles, None if card.bytes is None else card.bytes / 2**20]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


# Half a second is often enough: the videos have one length, and drift apart only when the browser is busy.
_TOGETHER = """
setInterval(() => {
  const [first, ...others] = document.querySelectorAll('video');
  for (const video of others) if (Math.abs(video.currentTime - first.currentTime) > 0.08) {
    video.currentTime = first.currentTime;
  }
}, 500);
"""
_STYLE = """
body { max-width: 1200px; margin: 2rem auto; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif; color: #292524;
  background: #fafaf9; }
h1 { font-size: 1.4rem; }
.wall { display: grid; grid-template-columns: repeat(var(--columns), minmax(150px, 280px)); gap: 12px;
  overflow-x: auto; }
.cell { position: relative; margin: 0; padding: 6px; border: 1px solid #e7e5e4; border-radius: 8px; background: white; }
.cell.best { border-color: #0f766e; box-shadow: 0 0 0 1px #0f766e; }
.cell video { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; object-position: left;
  border-radius: 5px; }
.cell p { margin: 4px 2px 0; font-size: 0.85rem; }
.pending { display: grid; place-items: center; aspect-ratio: 1; color: #78716c; background: #eeedea;
  border-radius: 5px; }
.bargain { position: absolute; top: 12px; left: 12px; padding: 1px 9px; border-radius: 1em; font-size: 0.75rem;
  color: white; background: #0f766e; }
table { margin: 1.5rem 0; border-collapse: collapse; }
td, th { padding: 0.35rem 0.8rem; border-bottom: 1px solid #e7e5e4; text-align: left;
  font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 600; color: #0f766e; }
.note { color: #78716c; font-size: 0.85rem; }
"""
