"""The Compare page: one object under many settings, side by side."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from studio.compare import Cell, sweep
from studio.costs import best_bargain, full_seconds
from studio.events import MESH, RUN, VIDEO, Progress, Result
from studio.groups import run_group
from studio.history import History
from studio.pages import camera_edits, fragments, sheet
from studio.pages.files import address
from studio.pages.follow import Followed, refused, stop, until_idle
from studio.pages.html import html, live, on_act, scroll_to
from studio.pages.reconstruct import ReconstructPage
from studio.pages.sessions import Session, Sessions
from studio.presets import apply_preset
from studio.service import Service
from studio.settings import leaves, make_settings
from trellis.errors import InputError

WORK = "compare"
MAX_CELLS = 16  # a page with more is not read by anybody

_NOTHING = "nothing"
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_LIGHT: dict[str, Any] = {**_PRIVATE, "queue": False}
# Through the queue: on ZeroGPU, only its requests tell who is to be charged for the job.
_HANDING_IN: dict[str, Any] = {**_PRIVATE, "concurrency_limit": None}
_SUGGESTED = {
    "structure_steps": "5, 12, 30", "structure_cfg_strength": "3, 7.5", "latent_steps": "6, 12, 25",
    "latent_cfg_strength": "1, 3", "mode": "multidiffusion, stochastic", "simplify": "0.90, 0.95, 0.98",
    "texture_size": "512, 1024, 2048", "seed": "0, 1, 2",
}  # fmt: skip
# A grid of small pictures needs no more.
_SMALL = {"video_frames": 60, "video_size": 256}

EMPTY = fragments.empty(
    "Compare settings on your own object",
    (
        "Add photos on the <b>Reconstruct</b> page.",
        "Choose one or two settings, and the values to try.",
        "Press <b>Compare</b>: the models appear here, turning together.",
    ),
    "The cheapest setting that is nearly as good as the best gets a mark, and everything can be handed on as one file.",
)


class FollowedSweep(Followed):
    """The cells of a comparison.

    Attributes:
        cells, keys: the jobs, and the keys of their folders.
        states: what each cell told last: None, an event, or an error.
    """

    def __init__(
        self, service: Service, axes: Sequence[sheet.Axis], cells: Sequence[Cell], keys: Sequence[str]
    ) -> None:
        self.axes, self.cells, self.keys = tuple(axes), list(cells), list(keys)
        self.states: list[Any] = [None] * len(cells)
        self._engine = service.engine
        cancelled = threading.Event()
        super().__init__(run_group(service, [cell.job for cell in cells], cancelled), cancelled)

    def _take(self, event: Any) -> None:
        index, told = event
        self.states[index] = told

    @property
    def done(self) -> int:
        return sum(isinstance(state, (Result, Exception)) for state in self.states)

    def cards(self) -> list[sheet.Card]:
        """What there is to see of every cell so far."""
        records = {
            index: json.loads((cell.job.out_dir / RUN).read_text(encoding="utf-8"))
            for index, (cell, state) in enumerate(zip(self.cells, self.states, strict=True))
            if isinstance(state, Result) and (cell.job.out_dir / RUN).is_file()
        }
        expected = partial(History().expected, self._engine)
        times = dict(zip(records, full_seconds(list(records.values()), expected), strict=True))
        scores = {index: _psnr(record) for index, record in records.items()}
        order = list(records)
        best = best_bargain([scores[k] for k in order], [times[k] for k in order]) if len(order) > 1 else None
        bargain = order[best] if best is not None else None
        cards = []
        for index, (cell, state, key) in enumerate(zip(self.cells, self.states, self.keys, strict=True)):
            varied = tuple(cell.varied[axis.setting.key] for axis in self.axes)
            if index not in records:
                cards.append(sheet.Card(varied, state=_state(state, self.ended)))
                continue
            folder = cell.job.out_dir
            cards.append(
                sheet.Card(
                    varied,
                    state.turntable,
                    scores[index],
                    times[index],
                    records[index]["counts"]["triangles"],
                    (folder / MESH).stat().st_size,
                    "No video",
                    index == bargain,
                    key,
                )  # fmt: skip
            )
        return cards


class ComparePage:
    """Builds itself inside the current tab; opens a cell on the Reconstruct page."""

    def __init__(self, service: Service, sessions: Sessions, reconstruct: ReconstructPage, pages: gr.Tabs) -> None:
        self._service, self._sessions, self._reconstruct = service, sessions, reconstruct
        self._settings = {s.key: s for s in leaves() if s.key in _SUGGESTED}
        with gr.Row(elem_classes="page"):
            with gr.Column(scale=3, min_width=300, elem_classes="inputs"):
                self._build_inputs()
            with gr.Column(scale=9, min_width=320, elem_classes="results"):
                self.status = html(fragments.IDLE, elem_id="compare-status")
                self.grid = live(EMPTY, elem_id="compare-grid")
                self.exports = html(elem_id="compare-exports")
        self._connect(pages)

    def _build_inputs(self) -> None:
        html(fragments.heading("What to vary", "The photos are those of the Reconstruct page."))
        titles = [(sheet.title_of(setting), key) for key, setting in self._settings.items()]
        self.axes: list[tuple[gr.Dropdown, gr.Textbox]] = []
        for number, (key, choices) in enumerate(
            (("structure_steps", titles), ("structure_cfg_strength", [("Nothing else", _NOTHING), *titles])), start=1
        ):
            with gr.Group():
                which = gr.Dropdown(choices, value=key, label="Setting" if number == 1 else "Second setting",
                                    elem_id=f"axis-{number}")  # fmt: skip
                values = gr.Textbox(_SUGGESTED[key], label="Values, separated by commas", elem_id=f"values-{number}")
            # In the browser: an answer that comes late would overwrite what has been typed meanwhile.
            suggested = f"(key) => ({json.dumps(_SUGGESTED)})[key] || ''"
            which.input(None, which, values, js=suggested, **_LIGHT)
            which.change(self._allow, which, values, **_LIGHT)
            self.axes.append((which, values))
        self.preset = gr.Radio(
            [("Draft", "draft"), ("Standard", "standard"), ("Best", "best")], value="draft",
            label="Everything else", info="All other settings are those of this preset.", elem_id="compare-preset",
        )  # fmt: skip
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button("Compare", variant="primary", elem_id="compare-start", scale=2, min_width=110)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="compare-cancel", scale=1, min_width=80,
                                    interactive=False)  # fmt: skip

    def _connect(self, pages: gr.Tabs) -> None:
        inputs = [self.preset, *(control for axis in self.axes for control in axis)]
        buttons = [self.status, self.start, self.cancel]
        self._outputs = [*buttons, self.grid, self.exports]
        started = self.start.click(self._begin, inputs, buttons, **_HANDING_IN)
        started.then(None, js=scroll_to("compare-status"), **_LIGHT)
        self._follow_after(started)
        self.cancel.click(self._stop, None, [self.cancel, self.status], **_LIGHT)
        on_act(self.grid, self._open, [], [pages, *self._reconstruct.open_outputs], queue=False)

    def on_load(self, event: Any) -> None:
        """After an event that has attached a session: show its comparison, if there is one."""
        self._follow_after(event)

    def _follow_after(self, event: Any) -> None:
        late: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": None}  # as on the Reconstruct page
        event.then(self._follow, None, self._outputs, **_PRIVATE, **late)

    def _allow(self, key: str) -> Any:
        return gr.update(interactive=key != _NOTHING)

    def _begin(self, request: gr.Request, preset: str, *chosen: str) -> Any:
        session = self._sessions.of(request.session_hash)
        busy = gr.update(interactive=False), gr.update(interactive=True)
        with session.lock:
            work = session.works.get(WORK)
            if work is not None and not work.ended:
                return fragments.waiting(), *busy
            try:
                session.works[WORK] = session.compared = self._sweep(session, preset, chosen)
            except InputError as error:
                session.works[WORK] = refused(error)
                return fragments.ending(error), gr.update(interactive=True), gr.update()
        return fragments.waiting(), *busy

    def _sweep(self, session: Session, preset: str, chosen: Sequence[str]) -> FollowedSweep:
        pairs = [(key, values) for key, values in zip(chosen[::2], chosen[1::2], strict=True) if key != _NOTHING]
        if len({key for key, _ in pairs}) < len(pairs):
            raise InputError("The two settings to vary must not be the same.")
        axes = []
        for key, values in pairs:
            if key not in self._settings:
                raise InputError("That setting cannot be varied.")
            named = tuple(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
            if not named:
                raise InputError(f"{sheet.title_of(self._settings[key])}: give the values to try.")
            axes.append(sheet.Axis(self._settings[key], named))
        count = 1
        for axis in axes:
            count *= len(axis.values)
        if count > MAX_CELLS:
            raise InputError(f"That would be {count} models; at most {MAX_CELLS} are compared here.")
        settings = make_settings(_SMALL, apply_preset(preset, self._service.defaults))
        folder = self._sessions.new_folder(session, "sweep")
        variations = [f"{axis.setting.key}={','.join(axis.values)}" for axis in axes]
        cells = sweep(camera_edits.views_of(session), variations, settings, folder, user=session.key)
        keys = [self._sessions.adopt_run(session, cell.job.out_dir) for cell in cells]
        return FollowedSweep(self._service, axes, cells, keys)

    def _stop(self, request: gr.Request) -> Any:
        return stop(self._sessions.of(request.session_hash).works.get(WORK))

    async def _follow(self, request: gr.Request) -> AsyncIterator[Any]:
        gridded: tuple[FollowedSweep, int] | None = None

        def tell(work: FollowedSweep) -> Any:
            nonlocal gridded
            changed = gridded != (work, work.done)  # videos start anew with every change, so only if there is one more
            gridded = work, work.done
            return self._status(work), gr.skip(), gr.skip(), self._grid(work) if changed else gr.skip(), gr.skip()

        latest = partial(self._sessions.of(request.session_hash).works.get, WORK)
        async for shown in until_idle(latest, tell, partial(self._settle, request)):
            yield shown

    def _settle(self, request: gr.Request) -> Any:
        session = self._sessions.of(request.session_hash)
        work, compared = session.works.get(WORK), session.compared
        status = fragments.IDLE if work is None else fragments.ending(work.error)  # of one that was refused
        if isinstance(work, FollowedSweep):
            status = self._status(work)
        ended = work is None or work.ended
        head = status, gr.update(interactive=ended), gr.update(interactive=not ended)
        if not isinstance(compared, FollowedSweep):
            return *head, EMPTY, ""
        return *head, self._grid(compared), self._exports(session, compared) if compared.ended else ""

    def _status(self, work: FollowedSweep) -> str:
        count = f"{work.done} of {len(work.cells)}"
        if work.ended and work.error is not None:
            return fragments.ending(work.error)
        if work.ended:
            cards = work.cards()
            failed = [str(state) for state in work.states if isinstance(state, Exception)]
            return fragments.said(f"{count} models compared", [sheet.bargain_sentence(work.axes, cards), *failed])
        if work.cancelled.is_set():
            return fragments.stopping()
        running = next((state for state in work.states if isinstance(state, Progress)), None)
        return fragments.batch(f"Model {min(work.done + 1, len(work.cells))} of {len(work.cells)}", work.done,
                               len(work.cells), running)  # fmt: skip

    def _grid(self, work: FollowedSweep) -> str:
        return sheet.grid(work.axes, work.cards(), lambda card: address(card.key, VIDEO))

    def _exports(self, session: Session, work: FollowedSweep) -> str:
        """Write the files to hand on; links to them."""
        cards = [card for card in work.cards() if card.finished]
        if not cards:
            return ""
        folder = self._sessions.new_folder(session, "sheet")
        title = "Comparison by " + " and ".join(axis.title.replace(":", "").lower() for axis in work.axes)
        (folder / "comparison.html").write_text(sheet.page(title, work.axes, cards), encoding="utf-8")
        (folder / "comparison.csv").write_text(sheet.table(work.axes, cards), encoding="utf-8")
        if session.sheet is not None:
            old = self._sessions.shelf.find(session.sheet)
            self._sessions.shelf.remove(session.sheet)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
        session.sheet = self._sessions.shelf.put(folder)
        size = fragments.size((folder / "comparison.html").stat().st_size)
        return (
            f'<p class="hint">To hand on: <a id="compare-html" href="{address(session.sheet, "comparison.html")}" '
            f'download="comparison.html">one HTML file with everything in it ({size})</a> &middot; '
            f'<a id="compare-csv" href="{address(session.sheet, "comparison.csv")}" download="comparison.csv">'
            "the figures as CSV</a></p>"
        )

    def _open(self, request: gr.Request, data: dict[str, Any]) -> Any:
        """Show a cell on the Reconstruct page."""
        session = self._sessions.of(request.session_hash)
        key = str(data.get("id"))
        if data.get("act") != "open" or key not in session.runs:
            return [gr.skip()] * (1 + len(self._reconstruct.open_outputs))
        return [gr.Tabs(selected="reconstruct"), *self._reconstruct.show(session, key)]


def _psnr(record: dict[str, Any]) -> float | None:
    agreement = record["quality"]["agreement"]
    return None if agreement is None else agreement["mean"]["mesh"]["psnr"]


def _state(state: Any, ended: bool) -> str:
    if isinstance(state, Exception):
        return "Failed"
    if ended:
        return "Not made"
    return f"{state.message} ..." if isinstance(state, Progress) else "Waiting"
