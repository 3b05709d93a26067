"""The History page: what this visitor has made, to open again or to take the settings from."""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import Any

import gradio as gr

from studio.events import RUN
from studio.pages import fragments
from studio.pages.files import Shelf, address
from studio.pages.html import live, on_act
from studio.pages.reconstruct import ReconstructPage
from studio.pages.sessions import Session, Sessions
from studio.pages.sheet import title_of
from studio.results import Finished, read_result
from studio.settings import ReconstructSettings, leaves
from trellis.errors import InputError


def _empty(keep: float) -> str:
    return fragments.empty(
        "What you make will be listed here",
        ("Make a model on the <b>Reconstruct</b> page, or several on <b>Compare</b>.",
         "Come back to open any of them, or to use its settings again."),
        f"The list belongs to this browser tab. It is removed {fragments.span(keep)} after you leave.",
    )  # fmt: skip


class HistoryPage:
    """Builds itself inside the current tab."""

    def __init__(
        self, sessions: Sessions, reconstruct: ReconstructPage, pages: gr.Tabs, defaults: ReconstructSettings
    ) -> None:
        self._sessions, self._reconstruct, self._defaults = sessions, reconstruct, defaults
        self._empty = _empty(sessions.keep)
        self.list = live(self._empty, elem_id="history")
        outputs = [pages, self.list, *reconstruct.open_outputs, *reconstruct.controls.components]
        self._count = len(outputs)
        reconstruct.kept.keep_after(on_act(self.list, self._act, [], outputs, queue=False))

    def refresh(self, request: gr.Request) -> str:
        """The list as it is now."""
        return self._html(self._sessions.of(request.session_hash))

    def _act(self, request: gr.Request, data: dict[str, Any]) -> Any:
        session = self._sessions.of(request.session_hash)
        act, key = data.get("act"), str(data.get("id"))
        unchanged = [gr.skip()] * self._count
        if key not in session.runs:
            return unchanged
        controls = len(self._reconstruct.controls.components)
        if act == "open":
            shown = self._reconstruct.show(session, key)
            return [gr.Tabs(selected="reconstruct"), gr.skip(), *shown, *[gr.skip()] * controls]
        if act == "settings":
            run = _read(self._sessions.shelf, key)
            if run is None:
                return unchanged
            values = self._reconstruct.controls.values_of(run.result.settings)
            opened = [gr.skip()] * len(self._reconstruct.open_outputs)
            return [gr.Tabs(selected="reconstruct"), gr.skip(), *opened, *values]
        if act == "remove":
            shown = session.shown == key
            self._sessions.drop_run(session, key)
            page = self._reconstruct.open_updates(session, shown)
            return [gr.skip(), self._html(session), *page, *[gr.skip()] * controls]
        return unchanged

    def _html(self, session: Session) -> str:
        cards = [card for key in reversed(session.runs) if (card := self._card(session, key))]
        return f'<ul class="history">{"".join(cards)}</ul>' if cards else self._empty

    def _card(self, session: Session, key: str) -> str:
        run = _read(self._sessions.shelf, key)
        if run is None:
            return ""
        result = run.result
        picture = "" if run.picture is None else run.picture.relative_to(result.folder).as_posix()
        score = f"{run.psnr:.1f} dB &middot; " if run.psnr is not None else ""
        shown = ' <span class="badge calm">Shown</span>' if key == session.shown else ""
        settings = ", ".join(_differences(result.settings, self._defaults)) or "standard settings"
        settings = settings[0].upper() + settings[1:]
        return (
            f'<li data-run="{key}"><img src="{address(key, picture)}" alt="The model from the front">'
            f"<div><p><b>{_ago(run.finished)}</b>{shown}</p>"
            f"<p>{result.counts.get('views', 0)} photos &middot; {score}{result.counts.get('triangles', 0):,} faces "
            f"&middot; {fragments.clock(result.seconds)}</p><p class=\"hint\">{escape(settings)}</p>"
            f'<p><button type="button" class="link" data-act="open" data-id="{key}">Open</button> '
            f'<button type="button" class="link" data-act="settings" data-id="{key}">Use its settings</button> '
            f'<a class="link" href="?run={key}">Link</a> '
            f'<button type="button" class="link" data-act="remove" data-id="{key}">Remove</button></p></div></li>'
        )


def _read(shelf: Shelf, key: str) -> Finished | None:
    """The reconstruction in a folder, if it is finished and is one."""
    folder = shelf.find(key)
    if folder is None or not (folder / RUN).is_file():
        return None
    try:
        return read_result(folder)
    except InputError:
        return None


def _differences(settings: ReconstructSettings, defaults: ReconstructSettings) -> list[str]:
    """What was set otherwise than the defaults."""
    return [
        f"{title_of(setting).replace(':', '').lower()} {setting.of(settings)}"
        for setting in leaves()
        if setting.of(settings) != setting.of(defaults)
    ]


def _ago(then: datetime) -> str:
    seconds = (datetime.now(then.tzinfo) - then).total_seconds()
    if seconds < 90:
        return "Just now"
    return f"{seconds / 60:.0f} minutes ago" if seconds < 5400 else f"{seconds / 3600:.0f} hours ago"
