"""The Reconstruct page: photos on the left, the model on the right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from studio.events import RUN, CamerasFound, Progress, Queued, Result
from studio.job import Job, make_job
from studio.pages import camera_edits, fragments
from studio.pages.cameras import cameras_panel, write_cameras
from studio.pages.controls import SettingControls
from studio.pages.follow import FollowedJob, refused, stop, until_idle
from studio.pages.html import html, live, on_act, scroll_to
from studio.pages.kept_settings import KeptSettings
from studio.pages.photo_panel import PhotoPanel
from studio.pages.preset_choice import DEFAULT, PresetChoice
from studio.pages.result_view import FORMATS, ResultView
from studio.pages.sessions import Session, Sessions
from studio.pages.strip import strip
from studio.presets import apply_preset
from studio.replay import revise
from studio.service import Service
from studio.settings import settings_from_json
from studio.stages import STAGES
from trellis.errors import InputError

WORK = "reconstruct"  # this page's entry among a session's works

_CAMERA_STAGES = STAGES[:2]
_REBAKED = ("simplify", "texture_size", "texture_source", "watertight", "longest_side")  # need no new guess
_SETTINGS_TABS = {
    "Shape": ("structure_candidates", "structure_steps", "structure_cfg_strength", "structure_rescale_t",
              "structure_guidance_rescale", "structure_cfg_interval"),
    "Detail": ("mode", "latent_steps", "latent_cfg_strength", "latent_rescale_t", "latent_guidance_rescale",
               "latent_cfg_interval"),
    "Model file": (*_REBAKED, "video_frames", "video_size"),
}  # fmt: skip
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_LIGHT: dict[str, Any] = {**_PRIVATE, "queue": False}  # answered at once, past the queue
# Through the queue: on ZeroGPU, only its requests tell who is to be charged for the job.
_HANDING_IN: dict[str, Any] = {**_PRIVATE, "concurrency_limit": None}


class ReconstructPage:
    """Builds itself inside the current `gr.Blocks`.

    `open_outputs` and `open_updates` are for the page's load event, and for other pages that show a run here.
    """

    def __init__(self, service: Service, sessions: Sessions) -> None:
        self._service, self._sessions = service, sessions
        with gr.Row(elem_classes="page"):
            with gr.Column(scale=5, min_width=320, elem_classes="inputs"):
                self.photos = PhotoPanel(self._sessions)
                self._build_actions()
                self._build_settings()
            with gr.Column(scale=7, min_width=320, elem_classes="results"):
                self._build_results()
        self._connect()

    # Layout

    def _build_actions(self) -> None:
        html(fragments.step_heading(2, "Make the model"))
        self.preset = PresetChoice(self._service, self._sessions)
        with gr.Row(elem_classes="actions"):
            self.generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=2, min_width=110)
            self.check = gr.Button("Check cameras", elem_id="check-cameras", scale=2, min_width=150)
            self.cancel = gr.Button(
                "Cancel", variant="stop", elem_id="cancel", scale=1, min_width=80, interactive=False
            )

    def _build_settings(self) -> None:
        self.controls = SettingControls(self._service.defaults)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            with gr.Row():
                self.controls.add("seed", "randomise_seed")
            for title, keys in _SETTINGS_TABS.items():
                with gr.Tab(title):
                    self.controls.add(*keys)

    def _build_results(self) -> None:
        self.status = html(fragments.IDLE, elem_id="status")
        self.empty = html(fragments.EMPTY, elem_id="empty")
        self.cameras = live(elem_id="cameras")
        with gr.Column(visible=False, elem_id="result") as self.result:
            with gr.Tabs(elem_id="result-tabs"):
                with gr.Tab("3D model"):
                    self.model = live(elem_id="model-view")
                    self._build_rebake()
                with gr.Tab("Turntable"):
                    self.turntable = live(elem_id="turntable-view")
                with gr.Tab("Photos"):
                    self.photographs = live(elem_id="photographs")
                with gr.Tab("Cameras"):
                    self.run_cameras = live(elem_id="run-cameras")
                    again = "Write the model again with these cameras"
                    self.use_cameras = gr.Button(again, elem_id="use-cameras", size="sm")
                with gr.Tab("Check"):
                    self.checks = live(elem_id="checks")
                with gr.Tab("Files"):
                    self.files = live(elem_id="files")
            self.link = html(elem_id="link")

    def _build_rebake(self) -> None:
        with gr.Accordion("Change the model file, without guessing anew", open=False, elem_id="rebake-panel"):
            self.rebake_controls = SettingControls(self._service.defaults, "rebake")
            with gr.Row():
                self.rebake_controls.add(*_REBAKED[:2])
            self.rebake_controls.add(*_REBAKED[2:])
            self.rebake = gr.Button("Bake again", elem_id="rebake", size="sm")

    # Events

    def _connect(self) -> None:
        self.photos.connect(self.status, self._without_refusal)
        on_act(self.cameras, self._act, [], [self.cameras, self.photos.strip, self.status], queue=False)
        on_act(self.run_cameras, self._set_run_cameras, [], [self.status], queue=False)

        self.kept = KeptSettings(
            "reconstudio-settings", self.controls, self._service.defaults, self.preset.radio
        )
        self.kept.keep_after(self.preset.connect(self.controls))
        starting = [self.generate, self.check, self.rebake, self.use_cameras]
        buttons = [self.status, *starting, self.cancel, self.empty]
        for button, start, inputs in (
            (self.generate, self._generate, self.controls.components),
            (self.check, self._check, []),
            (self.rebake, self._rebake, self.rebake_controls.components),
            (self.use_cameras, self._use_cameras, []),
        ):
            started = button.click(start, inputs, buttons, **_HANDING_IN)
            started.then(None, js=scroll_to("status"), **_LIGHT)
            self._follow_after(started)
        self.cancel.click(self._stop, None, [self.cancel, self.status], **_LIGHT)

    def _follow_after(self, event: Any) -> Any:
        """Show how this visitor's job goes on, and in the end what came out."""
        # "always_last": a job begun while the answer about the one before is on its way is followed like any other.
        late: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": None}
        return event.then(self._follow, None, self.open_outputs, **_PRIVATE, **late)

    @property
    def open_outputs(self) -> list[Any]:
        """What `open_updates` fills."""
        return [
            self.status, self.generate, self.check, self.rebake, self.use_cameras, self.cancel, self.empty,
            self.cameras, self.result, self.model, self.turntable, self.photographs, self.run_cameras, self.checks,
            self.files, self.link, *self.rebake_controls.components,
        ]  # fmt: skip

    def on_load(self, event: Any) -> None:
        """After an event that has attached a session: show it, and follow its job if there is one."""
        # The photos are shown here alone: what comes late from a job's end must not take back what was added since.
        outputs = [*self.open_outputs, self.photos.strip, self.photos.editor]
        shown = event.then(self._restore, None, outputs, **_LIGHT)
        self._follow_after(shown)
        self.photos.look_after(shown)

    def fill_controls(self, event: Any) -> None:
        """After the page's load event: the settings as they were."""
        self.kept.recall(event, self._chosen, [self.preset.radio, *self.controls.components])

    def _act(self, request: gr.Request, data: dict[str, Any]) -> Any:
        """Leave a photograph out after its camera has been seen, or keep cameras that were set by hand."""
        session = self._sessions.of(request.session_hash)
        if (data.get("act") == "cameras" or "frames" in data) and session.cameras is not None:
            try:
                cameras = camera_edits.newest_of_act(session, data, [view.name for view in session.cameras.views])
            except InputError as error:
                return gr.skip(), gr.skip(), fragments.ending(error)
            if cameras is not None:
                camera_edits.keep(session, session.camera_photos, cameras)
        if data.get("act") == "cameras":
            return gr.skip(), gr.skip(), gr.skip()  # the editor has shown it already
        if data.get("act") == "drop":
            session.photos.remove(str(data.get("id")))
        return self._cameras_html(session), strip(session.photos), gr.skip()

    def _set_run_cameras(self, request: gr.Request, data: dict[str, Any]) -> Any:
        """Keep cameras that were set by hand for the model on the page, until they are used."""
        session = self._sessions.of(request.session_hash)
        view = self._view(session)
        if view is None or data.get("act") != "cameras":
            return gr.skip()
        try:
            cameras = camera_edits.newest_of_act(session, data, view.view_names)
        except InputError as error:
            return fragments.ending(error)
        if cameras is not None:
            session.run_edited = cameras
        return gr.skip()

    # Jobs

    def _without_refusal(self, session: Session) -> Any:
        """The status display without the reason why an earlier job had no result: it was about other photos."""
        work = session.works.get(WORK)
        if work is None or not work.ended or work.outcome is not None:
            return gr.skip()
        del session.works[WORK]
        return fragments.IDLE

    def _generate(self, request: gr.Request, *values: Any) -> Any:
        def job(session: Session) -> Job:
            settings = self.controls.settings(values)
            views = camera_edits.views_of(session)
            make_job(views, settings, session.folder)  # refuses before a run is listed
            key, folder = self._sessions.new_run(session)
            session.run_photos[key] = [photo.id for photo in session.photos]
            session.coming = key
            return make_job(views, settings, folder, formats=FORMATS, user=session.key)

        return self._start(request, job)

    def _check(self, request: gr.Request) -> Any:
        def job(session: Session) -> Job:
            session.coming = None
            session.camera_photos = [photo.id for photo in session.photos]
            camera_edits.forget_for_another_front(session)
            views = session.photos.views()
            return make_job(views, self._service.defaults, session.folder / "none", user=session.key, until="cameras")

        return self._start(request, job)

    def _rebake(self, request: gr.Request, *values: Any) -> Any:
        def job(session: Session) -> Job:
            chosen = self.rebake_controls.settings(values)
            return self._revision(session, {name: getattr(chosen, name) for name in _REBAKED})

        return self._start(request, job)

    def _use_cameras(self, request: gr.Request) -> Any:
        def job(session: Session) -> Job:
            cameras = session.run_edited
            if cameras is None:
                raise InputError("No camera has been changed yet: choose a photo and move its camera first.")
            revision = self._revision(session, {}, cameras)
            ids = session.run_photos.get(session.shown or "")
            if ids is not None and ids == [photo.id for photo in session.photos]:
                camera_edits.keep(session, ids, cameras)  # the next model of these photos has them, too
            return revision

        return self._start(request, job)

    def _revision(self, session: Session, changes: dict[str, Any], cameras: Any = None) -> Job:
        """The model on the page again with something changed, in its place if it is the visitor's own."""
        folder = self._sessions.shelf.find(session.shown or "")
        if folder is None:
            raise InputError("There is no model yet that could be changed.")
        session.coming, target = session.shown, folder
        if session.shown not in session.runs:  # somebody else's, opened by its link
            session.coming, target = self._sessions.new_run(session)
        return revise(folder, changes, target, formats=FORMATS, user=session.key, cameras=cameras)

    def _start(self, request: gr.Request, job: Any) -> Any:
        """Hand a job in, unless one is running. What cannot be handed in says why."""
        session = self._sessions.of(request.session_hash)
        free = gr.update(interactive=True)
        with session.lock:
            work = session.works.get(WORK)
            if work is not None and not work.ended:
                return self._status(session, work), *[gr.update(interactive=False)] * 4, free, gr.skip()
            try:
                ticket = self._service.submit(job(session))
            except InputError as error:
                session.works[WORK] = work = refused(error)
                return self._status(session, work), *[free] * 4, gr.skip(), gr.skip()
            session.works[WORK] = FollowedJob(ticket.events(), ticket.cancelled)
        return fragments.waiting(), *[gr.update(interactive=False)] * 4, free, gr.update(visible=False)

    def _stop(self, request: gr.Request) -> Any:
        return stop(self._sessions.of(request.session_hash).works.get(WORK))

    async def _follow(self, request: gr.Request) -> AsyncIterator[Any]:
        """Yield what the status display says until the job ends, and then the page after it."""
        session = self._sessions.of(request.session_hash)
        others = [gr.skip()] * (len(self.open_outputs) - 1)
        latest, settle = partial(session.works.get, WORK), partial(self._settle, request)
        async for shown in until_idle(latest, lambda work: [self._status(session, work), *others], settle):
            yield shown

    def _settle(self, request: gr.Request) -> Any:
        """The page after a job. Each of a visitor's pages shows what came out, and once."""
        session = self._sessions.of(request.session_hash)
        work = session.works.get(WORK)
        if not isinstance(work, FollowedJob) or not work.ended:
            return self.open_updates(session, False)
        with session.lock:
            self._take_over(session, work)
        there = isinstance(work.outcome, (Result, CamerasFound))
        return self.open_updates(session, there and work.first_on(request.session_hash))

    def _take_over(self, session: Session, work: FollowedJob) -> None:
        if work.settled:
            return
        work.settled = True
        if isinstance(work.outcome, Result):
            session.shown, session.camera_folder, session.run_edited = session.coming, None, None
        elif isinstance(work.outcome, CamerasFound):
            self._keep_cameras(session, work.outcome)
        elif session.coming is not None and session.coming != session.shown:
            self._sessions.drop_run(session, session.coming)

    def _restore(self, request: gr.Request) -> Any:
        """What this visitor has, on a page that shows nothing yet, or what is there no more."""
        session = self._sessions.of(request.session_hash)
        wanted = request.query_params.get("run")
        if wanted and self._sessions.shelf.file(wanted, RUN):
            session.run_edited = session.run_edited if wanted == session.shown else None
            session.shown = wanted
        work = session.works.get(WORK)
        if work is not None and work.settled:
            work.first_on(request.session_hash)  # it is shown now; what is chosen meanwhile must not be overwritten
        return [*self.open_updates(session, True), strip(session.photos), ""]

    def _chosen(self, request: gr.Request, kept: str) -> Any:
        # The first time, too: what Gradio shows for a number that is not given yet is a zero.
        preset, settings = self.kept.read(kept) or (DEFAULT, apply_preset(DEFAULT, self._service.defaults))
        session = self._sessions.of(request.session_hash)
        return [self.preset.update(preset, session), *self.controls.values_of(settings)]

    def open_updates(self, session: Session, new: bool) -> list[Any]:
        """Values for `open_outputs`. `new`: there is another result than before; else the shown one stays untouched."""
        work = session.works.get(WORK)
        busy = work is not None and not work.ended
        buttons = [gr.update(interactive=not busy)] * 4
        head = [self._status(session, work), *buttons, gr.update(interactive=busy)]
        view = self._view(session)
        there = view is not None
        panel = self._cameras_html(session)
        where = [gr.update(visible=not (there or panel or busy)), panel, gr.update(visible=there)]
        if not new:
            return [*head, *where, *[gr.skip()] * 7, *[gr.skip()] * len(self.rebake_controls.components)]
        if view is None:
            return [*head, *where, *[""] * 7, *[gr.skip()] * len(self.rebake_controls.components)]
        settings = self.rebake_controls.values_of(settings_from_json(view.record["settings"]))
        link = (
            f'<p class="hint"><a href="?run={session.shown}">Link to this model</a>, for whoever you give it to, '
            "as long as it is kept here.</p>"
        )
        edited = session.run_edited and [camera and camera.as_json() for camera in session.run_edited]
        shown = [view.model(), view.turntable(), view.photographs(), view.cameras(edited), view.checks(), view.files(),
                 link]  # fmt: skip
        return [*head, *where, *shown, *settings]

    def show(self, session: Session, key: str) -> list[Any]:
        """Values for `open_outputs` that show another run of this visitor."""
        session.shown, session.camera_folder, session.run_edited = key, None, None
        work = session.works.get(WORK)
        if work is not None and work.ended:
            session.works.pop(WORK)  # what it said belongs to the run before
        return self.open_updates(session, True)

    def _view(self, session: Session) -> ResultView | None:
        folder = self._sessions.shelf.find(session.shown or "")
        if folder is None or not (folder / RUN).is_file():
            return None
        return ResultView(session.shown or "", folder)

    def _status(self, session: Session, work: Any) -> str:
        if not isinstance(work, FollowedJob):
            return fragments.IDLE
        if not work.ended:
            if work.cancelled.is_set():
                return fragments.stopping()
            if isinstance(work.progress, Queued):
                return fragments.queued(work.progress)
            if isinstance(work.progress, Progress):
                stages = _CAMERA_STAGES if session.coming is None else STAGES
                return fragments.running(work.progress, work.previews, stages)
            return fragments.waiting()
        if isinstance(work.outcome, Result):
            return fragments.finished(work.outcome)
        if isinstance(work.outcome, CamerasFound):
            return fragments.said("Cameras found", work.outcome.notes)
        return fragments.ending(work.error)

    def _keep_cameras(self, session: Session, found: CamerasFound) -> None:
        folder = session.folder / "cameras"
        write_cameras(found, folder)
        if session.camera_folder is not None:
            self._sessions.shelf.remove(session.camera_folder)
        session.camera_folder = self._sessions.shelf.put(folder)
        session.cameras = found

    def _cameras_html(self, session: Session) -> str:
        if session.camera_folder is None or session.cameras is None:
            return ""
        left_out = [id for id in session.camera_photos if session.photos.index(id) is None]
        return cameras_panel(
            session.cameras, session.camera_folder, session.camera_photos, session.edited, left_out
        )
