"""The Refine page: a finished model is made to agree with its photographs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from studio.events import RUN
from studio.pages import fragments, refine_view
from studio.pages.controls import SettingControls
from studio.pages.follow import FollowedJob, refused, stop, until_idle
from studio.pages.html import html, live, scroll_to
from studio.pages.kept_settings import KeptSettings
from studio.pages.sessions import Session, Sessions
from studio.refine_events import Refined, RefineProgress
from studio.refine_job import RefineJob, make_refine_job
from studio.refine_settings import RefineSettings
from studio.service import Service
from trellis.errors import InputError
from trellis.pipelines.image_files import MAX_VIEWS

WORK = "refine"

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_LIGHT: dict[str, Any] = {**_PRIVATE, "queue": False}
# Through the queue: on ZeroGPU, only its requests tell who is to be charged for the job.
_HANDING_IN: dict[str, Any] = {**_PRIVATE, "concurrency_limit": None}
_OWN, _UPLOADED = "own", "uploaded"

EMPTY = fragments.empty(
    "Make a model agree with its photos",
    (
        "Take the model of the <b>Reconstruct</b> page, or bring a GLB file and photos of it.",
        "Press <b>Refine</b>. Shape, colours, light and cameras are fitted step by step.",
        "Compare before and after, photo by photo, and light the model anew.",
    ),
    "Stop whenever it is good enough: the best state so far is kept. If refining does not help, this page says so.",
)
EMPTY_ALONE = EMPTY.replace(
    "Take the model of the <b>Reconstruct</b> page, or bring a GLB file and photos of it.",
    "Bring a GLB file and at least two photos of the object.",
)


class FollowedRefinement(FollowedJob):
    """A refinement.

    Attributes:
        losses, scores: (step, value) of the fit so far: the loss, and the score of the judging views in dB.
        key: of its folder on the shelf.
    """

    def __init__(self, events: Iterator[Any], cancelled: threading.Event, key: str) -> None:
        self.losses: list[tuple[int, float]] = []
        self.scores: list[tuple[int, float]] = []
        self.key = key
        super().__init__(events, cancelled)

    def _take(self, event: Any) -> None:
        super()._take(event)
        if isinstance(event, RefineProgress) and event.stage == "optimise":
            if event.loss is not None and (not self.losses or self.losses[-1][0] != event.step):
                self.losses.append((event.step, event.loss))
            if event.psnr is not None and (not self.scores or self.scores[-1][0] != event.step):
                self.scores.append((event.step, event.psnr))


class RefinePage:
    """Builds itself inside the current `gr.Blocks`. `alone`: there is no Reconstruct page to take a model from."""

    def __init__(self, service: Service, sessions: Sessions, alone: bool = False) -> None:
        self._service, self._sessions, self._alone = service, sessions, alone
        with gr.Row(elem_classes="page"):
            with gr.Column(scale=4, min_width=300, elem_classes="inputs"):
                self._build_inputs()
            with gr.Column(scale=8, min_width=320, elem_classes="results"):
                self._build_results()
        self._connect()

    def _build_inputs(self) -> None:
        html(fragments.step_heading(1, "The model and its photos"))
        self.source = gr.Radio(
            [("The model of the Reconstruct page", _OWN), ("A model of mine", _UPLOADED)],
            value=_UPLOADED if self._alone else _OWN, label="Which model", show_label=False,
            visible=not self._alone, elem_id="refine-source",
        )  # fmt: skip
        with gr.Column(visible=self._alone, elem_id="refine-upload") as self.uploads:
            self.asset = gr.File(label="Model (GLB)", file_types=[".glb"], height=90, elem_id="refine-asset",
                                 elem_classes="drop")  # fmt: skip
            self.photos = gr.File(
                label=f"2 to {MAX_VIEWS} photos of it", file_count="multiple", file_types=["image"], height=90,
                elem_id="refine-photos", elem_classes="drop",
            )  # fmt: skip
            self.cameras = gr.File(
                label="Cameras, if they are known: transforms.json, or COLMAP's cameras.txt and images.txt",
                file_count="multiple", file_types=[".json", ".txt"], height=90, elem_id="refine-cameras",
                elem_classes="drop",
            )  # fmt: skip
        html(fragments.step_heading(2, "Refine it"))
        self.controls = SettingControls(RefineSettings(), "refine")
        self.controls.add("steps")
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button("Refine", variant="primary", elem_id="refine-start", scale=2, min_width=110)
            self.stop = gr.Button("Stop, keep best", variant="stop", elem_id="refine-stop", scale=2, min_width=150,
                                  interactive=False)  # fmt: skip
        with gr.Accordion("Settings", open=False, elem_id="refine-settings"):
            with gr.Tab("What is fitted"):
                self.controls.add("geometry", "material", "light", "normal_map")
            with gr.Tab("Photos"):
                self.controls.add("resolution", "registration", "correct_cameras", "correct_exposure", "turntable")
            with gr.Tab("Files"):
                self.controls.add("texture_size", "video_frames", "video_size", "seed")

    def _build_results(self) -> None:
        self.status = html(fragments.IDLE, elem_id="refine-status")
        self.empty = html(EMPTY_ALONE if self._alone else EMPTY, elem_id="refine-empty")
        with gr.Column(visible=False, elem_id="refine-result") as self.result:
            with gr.Tabs(elem_id="refine-tabs"):
                with gr.Tab("Before and after"):
                    self.views = live(elem_id="refine-views")
                with gr.Tab("3D model"):
                    self.model = live(elem_id="refine-model")
                with gr.Tab("Other lights"):
                    self.lights = live(elem_id="refine-lights")
                with gr.Tab("Files"):
                    self.files = live(elem_id="refine-files")

    def _connect(self) -> None:
        self._kept = KeptSettings("reconstudio-refine-settings", self.controls, RefineSettings())
        self.source.change(lambda which: gr.update(visible=which == _UPLOADED), self.source, self.uploads, **_LIGHT)
        buttons = [self.status, self.start, self.stop, self.empty]
        inputs = [self.source, self.asset, self.photos, self.cameras, *self.controls.components]
        self._outputs = [*buttons, self.result, self.views, self.model, self.lights, self.files]
        started = self.start.click(self._begin, inputs, buttons, **_HANDING_IN)
        started.then(None, js=scroll_to("refine-status"), **_LIGHT)
        self._follow_after(started, self._settle)
        self.stop.click(self._stop, None, [self.stop, self.status], **_LIGHT)

    def on_load(self, event: Any) -> None:
        """After an event that has attached a session: show its refinement, if there is one."""
        self._follow_after(event, self._restore)

    def fill_controls(self, event: Any) -> None:
        """After the page's load event: the settings as they were."""
        self._kept.recall(event, self._chosen, self.controls.components)

    def _chosen(self, kept: str) -> list[Any]:
        _, settings = self._kept.read(kept) or (None, RefineSettings())
        return self.controls.values_of(settings)

    def forget_uploads(self, event: Any) -> None:
        """After the session has gone: what was brought to it is not kept longer."""
        event.then(None, None, [self.asset, self.photos, self.cameras], js="() => [null, null, null]", **_LIGHT)

    def _follow_after(self, event: Any, settle: Any) -> None:
        async def follow(request: gr.Request) -> AsyncIterator[Any]:
            latest = partial(self._sessions.of(request.session_hash).works.get, WORK)
            async for shown in until_idle(latest, self._now, partial(settle, request)):
                yield shown

        late: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": None}  # as on the Reconstruct page
        event.then(follow, None, self._outputs, **_PRIVATE, **late)

    def _begin(
        self, request: gr.Request, source: str, asset: str | None, photos: list[str] | None,
        cameras: list[str] | None, *values: Any,
    ) -> Any:  # fmt: skip
        session = self._sessions.of(request.session_hash)
        busy = gr.update(interactive=False), gr.update(interactive=True)
        with session.lock:
            work = session.works.get(WORK)
            if work is not None and not work.ended:
                return gr.skip(), *busy, gr.skip()
            try:
                settings = self.controls.settings(values)
                out = self._sessions.new_folder(session, "refined")
                if source == _OWN and not self._alone:
                    job = self._job_of_run(session, settings, out)
                else:
                    given = self._sessions.new_folder(session, "given")
                    job = job_of_uploads(given, asset, photos or (), cameras or (), settings, out, session.key)
                ticket = self._service.submit(job)
            except InputError as error:
                session.works[WORK] = refused(error)
                return fragments.ending(error), gr.update(interactive=True), gr.update(interactive=False), gr.skip()
            session.works[WORK] = FollowedRefinement(ticket.events(), ticket.cancelled, self._sessions.shelf.put(out))
        return fragments.waiting(), *busy, gr.update(visible=False)

    def _job_of_run(self, session: Session, settings: RefineSettings, out: Path) -> RefineJob:
        folder = self._sessions.shelf.find(session.shown or "")
        if folder is None or not (folder / RUN).is_file():
            raise InputError("There is no model on the Reconstruct page yet; make one there, or bring one of yours.")
        return make_refine_job(folder, settings, out, user=session.key)

    def _stop(self, request: gr.Request) -> Any:
        return stop(self._sessions.of(request.session_hash).works.get(WORK))

    def _now(self, work: FollowedJob) -> list[Any]:
        """Values for the outputs while it runs."""
        buttons = gr.update(interactive=False), gr.update(interactive=not work.cancelled.is_set())
        return [self._status(work), *buttons, *[gr.skip()] * (len(self._outputs) - 3)]

    def _settle(self, request: gr.Request) -> Any:
        return self._updates(request, False)

    def _restore(self, request: gr.Request) -> Any:
        return self._updates(request, True)

    def _updates(self, request: gr.Request, loaded: bool) -> list[Any]:
        """Values for the outputs; a result that this page shows already stays untouched."""
        session = self._sessions.of(request.session_hash)
        work = session.works.get(WORK)
        busy = work is not None and not work.ended
        head = [self._status(work), gr.update(interactive=not busy), gr.update(interactive=busy)]
        refinement = session.refined
        new = isinstance(work, FollowedRefinement) and isinstance(work.outcome, Refined)
        if new and (new := work.first_on(request.session_hash)):
            session.refined = refinement = (work.key, work.outcome)
        if not (new or loaded):
            return [*head, gr.update(visible=refinement is None and not busy), *[gr.skip()] * 5]
        if refinement is None:
            return [*head, gr.update(visible=not busy), gr.update(visible=False), *[""] * 4]
        pieces = refine_view.result(refinement[1], refinement[0])
        shown = [pieces[name] for name in ("views", "model", "lights", "files")]
        return [*head, gr.update(visible=False), gr.update(visible=True), *shown]

    def _status(self, work: Any) -> str:
        if work is None:
            return fragments.IDLE
        if not work.ended:
            if work.cancelled.is_set():
                return fragments.stopping()
            if isinstance(work, FollowedRefinement) and isinstance(work.progress, RefineProgress):
                return refine_view.running(work.progress, work.losses, work.scores, work.previews)
            return fragments.waiting()
        if isinstance(work, FollowedRefinement) and isinstance(work.outcome, Refined):
            return refine_view.result(work.outcome, work.key)["verdict"]
        return fragments.ending(work.error)


def job_of_uploads(
    folder: Path, asset: str | None, photos: Sequence[str], cameras: Sequence[str], settings: RefineSettings, out: Path,
    user: str,
) -> RefineJob:  # fmt: skip
    """A job from files that were handed in, copied into `folder` under their own names, which cameras refer to."""
    if asset is None:
        raise InputError("There is no model yet: add a GLB file.")
    views = _copied(photos, folder / "photos")
    given = _copied(cameras, folder / "cameras")
    where = None
    if given:
        where = given[0] if len(given) == 1 and given[0].suffix.lower() == ".json" else folder / "cameras"
    return make_refine_job(
        _copied([asset], folder)[0], settings, out, views=views or None, cameras=where, user=user
    )


def _copied(files: Sequence[str], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    copies = []
    for file in map(Path, files):
        copy = folder / file.name
        if not file.is_file():
            raise InputError(f"'{file.name}' was added too long ago and has been removed; please add it again.")
        if copy.exists():
            raise InputError(f"Two files are called '{file.name}'; give them different names.")
        shutil.copyfile(file, copy)
        copies.append(copy)
    return copies
