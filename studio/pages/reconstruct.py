"""The Reconstruct page: photos on the left, the model on the right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from studio.engine import ASSETS
from studio.events import Cancelled, JobError, Progress, Result
from studio.inputs import BadViewsError, as_views, check_views
from studio.job import make_job
from studio.pages import fragments
from studio.pages.controls import SettingControls
from studio.pages.sessions import Sessions
from studio.service import Service
from trellis.errors import InputError
from trellis.pipelines.image_files import MAX_VIEWS

EXAMPLES = ASSETS / "examples"
MAX_EXAMPLES = 4

_UPDATE_SECONDS = 0.1  # the page is not told more often than this
_SETTINGS_TABS = {
    "Shape": ("structure_steps", "structure_cfg_strength", "structure_rescale_t", "structure_guidance_rescale",
              "structure_cfg_interval"),
    "Detail": ("mode", "latent_steps", "latent_cfg_strength", "latent_rescale_t", "latent_guidance_rescale",
               "latent_cfg_interval"),
    "Model file": ("simplify", "texture_size"),
}  # fmt: skip


def build(service: Service, sessions: Sessions) -> None:
    """Create the page inside the current `gr.Blocks`."""
    _Page(service, sessions)


class _Page:
    def __init__(self, service: Service, sessions: Sessions) -> None:
        self._service, self._sessions = service, sessions
        with gr.Row(elem_classes="page"):
            with gr.Column(scale=5, min_width=320, elem_classes="inputs"):
                self._build_photos()
                self._build_actions()
                self._build_settings()
            with gr.Column(scale=7, min_width=320, elem_classes="results"):
                self._build_results()
        self._connect()

    def _build_photos(self) -> None:
        _html(fragments.step_heading(1, "Photos of one object"))
        self.photos = gr.Gallery(
            label="Photos of one object",
            show_label=False,
            elem_id="photos",
            type="filepath",
            file_types=["image"],
            columns=4,
            height=230,
            object_fit="contain",
            fit_columns=False,
            allow_preview=False,
            buttons=[],
            interactive=True,
        )
        _html(f'<p class="hint">1 to {MAX_VIEWS} photos. The first becomes the front of the model.</p>')
        self.cards: list[tuple[gr.Button, list[str]]] = []
        examples = find_examples()
        if examples:
            _html('<p class="hint">Or start from an example:</p>')
            with gr.Row(elem_classes="cards"):
                for name, files in examples:
                    card = gr.Button(name, icon=files[0], elem_classes="card", min_width=70, size="sm")
                    self.cards.append((card, files))

    def _build_actions(self) -> None:
        _html(fragments.step_heading(2, "Make the model"))
        with gr.Row(elem_classes="actions"):
            self.generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=120)
            self.cancel = gr.Button(
                "Cancel", variant="stop", elem_id="cancel", scale=1, min_width=90, interactive=False
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
        self.status = _html(fragments.IDLE, elem_id="status")
        self.empty = _html(fragments.EMPTY, elem_id="empty")
        with gr.Column(visible=False, elem_id="result") as self.result:
            self.model = gr.Model3D(
                label="3D model",
                show_label=False,
                elem_id="model",
                clear_color=(0.93, 0.93, 0.92, 1.0),
                display_mode="solid",
                height=300,
                interactive=False,
            )
            _html('<p class="hint">Drag to turn, scroll to zoom. Download:</p>')
            with gr.Row(elem_classes="downloads"):
                self.downloads = [
                    gr.DownloadButton(text, size="sm", min_width=110, elem_id=f"download-{key}")
                    for key, text in (
                        ("mesh", "↓ Model (GLB)"),
                        ("gaussian", "↓ Splats (PLY)"),
                        ("transforms", "↓ Cameras (JSON)"),
                        ("run", "↓ Report (JSON)"),
                    )
                ]
            self.video = gr.Video(
                label="Turntable",
                show_label=False,
                elem_id="turntable",
                autoplay=True,
                loop=True,
                buttons=[],
                interactive=False,
            )
            _html('<p class="hint">Turntable: colour on the left, surface direction (normals) on the right.</p>')

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        self.photos.upload(self._check, self.photos, self.photos, **private)
        for card, files in self.cards:
            card.click(lambda files=files: files, None, self.photos, queue=False, show_progress="hidden", **private)
        armed = self.generate.click(
            self._arm, None, [self.generate, self.cancel, self.status], queue=False, show_progress="hidden", **private
        )
        ran = armed.then(
            self._run,
            [self.photos, *self.controls.components],
            self.status,
            concurrency_limit=None,  # the service has a queue of its own
            show_progress="hidden",
            **private,
        )
        # The result is shown in two steps of its own, since the 3D viewer of Gradio 6.31 stays blank if it gets a file
        # while it is being put on the page, or twice at once, as from a generator, whose last values are sent again.
        # The steps run after a failure too, so that the page never stays locked.
        shown = ran.then(
            self._reveal,
            None,
            [self.status, self.generate, self.cancel, self.empty, self.result],
            queue=False,
            show_progress="hidden",
            **private,
        )
        shown.then(
            self._fill,
            None,
            [self.model, self.video, *self.downloads, self.controls["seed"]],
            queue=False,
            show_progress="hidden",
            **private,
        )
        self.cancel.click(
            self._stop, None, [self.cancel, self.status], queue=False, show_progress="hidden", cancels=ran, **private
        )

    def _check(self, gallery: list[tuple[str, str | None]] | None) -> Any:
        """Take out what cannot be used as soon as it is dropped, and say why."""
        files = [file for file, _ in gallery or ()]
        good, sentences = check_views(as_views(files[:MAX_VIEWS])) if files else ([], [])
        for sentence in sentences:
            gr.Warning(f"Left out: {sentence}")
        if len(files) > MAX_VIEWS:
            gr.Warning(f"{len(files)} photos came; the first {MAX_VIEWS} are kept.")
        kept = [str(view.source) for view in good]
        return gr.skip() if kept == files else kept

    def _arm(self, request: gr.Request) -> Any:
        self._sessions.arm(request.session_hash)
        return gr.update(interactive=False), gr.update(interactive=True), fragments.waiting()

    def _stop(self, request: gr.Request) -> Any:
        """Stop the job itself; Gradio also takes it out of the queue, in case it is still waiting there."""
        self._sessions.get(request.session_hash).cancel.set()
        return gr.update(interactive=False), fragments.stopping()

    def _run(self, request: gr.Request, gallery: list[tuple[str, str | None]] | None, *values: Any) -> Iterator[Any]:
        """Yield what the status display says; the result waits in the session for `_fill`."""
        session = self._sessions.get(request.session_hash)
        try:
            settings = self.controls.settings(values)
            views = as_views([file for file, _ in gallery or ()])
            job = make_job(views, settings, session.new_run(), user=request.session_hash or "page")
            shown, stage = 0.0, ""
            for message in self._service.submit(job, session.cancel).events():
                if isinstance(message, Result):
                    session.unseen = message
                    yield fragments.finished(message)
                elif not isinstance(message, Progress):
                    continue
                elif message.stage != stage or time.monotonic() - shown >= _UPDATE_SECONDS:
                    shown, stage = time.monotonic(), message.stage
                    yield fragments.running(message)
        except Cancelled:
            yield fragments.stopped("Cancelled", [])
        except InputError as error:
            sentences = error.sentences if isinstance(error, BadViewsError) else [str(error)]
            for sentence in sentences:
                gr.Warning(sentence, duration=6)
            yield fragments.stopped("That did not work", sentences)
        except JobError as error:
            yield fragments.stopped("Something went wrong", [str(error)])
        except Exception:
            apology = "The studio failed. Please try again; the server's log says more."
            yield fragments.stopped("Something went wrong", [apology])
            raise

    def _reveal(self, request: gr.Request) -> Any:
        """Unlock the page, and make room for the result if there is a new one."""
        session = self._sessions.get(request.session_hash)
        new = session.unseen is not None
        cancelled = session.cancel.is_set() and not new
        return (
            fragments.stopped("Cancelled", []) if cancelled else gr.skip(),
            gr.update(interactive=True),
            gr.update(interactive=False),
            gr.update(visible=False) if new else gr.skip(),
            gr.update(visible=True) if new else gr.skip(),
        )

    def _fill(self, request: gr.Request) -> dict[Any, Any]:
        """Show the result if there is a new one; otherwise an earlier one stays."""
        session = self._sessions.get(request.session_hash)
        result, session.unseen = session.unseen, None
        if result is None:
            return {self.model: gr.skip()}
        files = (result.mesh, result.gaussian, result.transforms, result.run)
        return {
            self.model: str(result.mesh),
            self.video: str(result.turntable),
            self.controls["seed"]: result.settings.seed,
            **{button: str(file) for button, file in zip(self.downloads, files, strict=True)},
        }


def _html(content: str, **where: Any) -> gr.HTML:
    return gr.HTML(content, padding=False, **where)


def find_examples(folder: Path = EXAMPLES) -> list[tuple[str, list[str]]]:
    """Up to four named sets of views: (title, files) of each subfolder with pictures in it."""
    if not folder.is_dir():
        return []
    found = []
    for sub in sorted(folder.iterdir()):
        files = sorted(str(file) for file in sub.glob("*.png"))
        if files:
            found.append((sub.name.replace("-", " ").replace("_", " ").capitalize(), files))
    return found[:MAX_EXAMPLES]
