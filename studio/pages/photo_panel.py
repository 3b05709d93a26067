"""The photographs of a visitor on the page: added, looked at, put in order, masked by brush, left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.pages import fragments
from studio.pages.examples import find_examples
from studio.pages.html import html, live, on_act
from studio.pages.sessions import Session, Sessions
from studio.pages.strip import mask_editor, strip
from trellis.errors import InputError
from trellis.pipelines.image_files import MAX_VIEWS

_TAKE = f"(files) => [files, null, `{fragments.hint('Reading ...')}`]"
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class PhotoPanel:
    """Builds itself inside the current layout; `connect` it once everything else is there.

    Attributes:
        strip: the thumbnails; editor: the brush.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        html(fragments.step_heading(1, "Photos of one object"))
        files: dict[str, Any] = {
            "label": "Photos of one object",
            "file_count": "multiple",
            "file_types": ["image", "video", ".heic", ".heif", ".avif", ".jp2", ".ppm"],
        }
        self._upload = gr.File(show_label=False, height=104, elem_id="photos", elem_classes="drop", **files)
        self._taken = gr.File(visible="hidden", **files)
        html(fragments.hint(f"1 to {MAX_VIEWS} photos, or a short video. The first photo becomes the front."))
        self._alerts = html(elem_id="photo-alerts")
        self.strip = live(elem_id="strip")
        self.editor = live(elem_id="mask-editor")
        self._cards: list[tuple[gr.Button, list[str]]] = []
        examples = find_examples()
        if examples:
            html(fragments.hint("Or start from an example:"))
            with gr.Row(elem_classes="cards"):
                for name, files in examples:
                    card = gr.Button(name, icon=files[0], elem_classes="card", min_width=70, size="sm")
                    self._cards.append((card, files))

    def connect(self, status: gr.HTML, emptied: Callable[[Session], Any]) -> None:
        """Listen. `emptied(session)`: what the status display says once there are other photos."""
        self._emptied = emptied
        strips = [self.strip, self._alerts, self.editor]
        filled = [status, *strips]
        # Files that come while others are being read are no less wanted, hence "multiple"; and the drop zone is emptied
        # in the browser at once, else they would bring along those that were dropped before.
        every: dict[str, Any] = {**_PRIVATE, "trigger_mode": "multiple"}
        taken = self._upload.upload(
            None, self._upload, [self._taken, self._upload, self._alerts], js=_TAKE, queue=False, **every
        )
        filling = [status, self.strip, self._alerts]
        self.look_after(taken.then(self._add, self._taken, filling, concurrency_limit=4, **every))
        for card, files in self._cards:
            self.look_after(card.click(self._example_of(files), None, filled, **_PRIVATE))
        self.look_after(on_act(self.strip, self._act, [], strips, queue=False))
        self.look_after(on_act(self.editor, self._mask, [], strips, queue=False))

    def look_after(self, event: Any) -> None:
        """After an event, look at the photographs that nobody has looked at yet."""
        looking = {**_PRIVATE, "concurrency_limit": 2, "concurrency_id": "look"}
        # "always_last": what is shown in the end is what there is, in whatever order answers to clicks have come.
        event.then(self._look, None, [self.strip], trigger_mode="always_last", **looking)

    def _add(self, request: gr.Request, files: list[str] | None) -> Any:
        session = self._sessions.of(request.session_hash)
        sentences = session.photos.add(files or ())
        return self._emptied(session), strip(session.photos), fragments.alerts(sentences)

    def _example_of(self, files: list[str]) -> Callable[..., Any]:
        def example(request: gr.Request) -> Any:
            session = self._sessions.of(request.session_hash)
            session.photos.replace(files)
            return self._emptied(session), strip(session.photos), "", ""

        return example

    def _look(self, request: gr.Request) -> Any:
        session = self._sessions.of(request.session_hash)
        for _ in session.photos.look():
            yield strip(session.photos)
        yield strip(session.photos)

    def _act(self, request: gr.Request, data: dict[str, Any]) -> Any:
        session = self._sessions.of(request.session_hash)
        photos, act, id = session.photos, data.get("act"), str(data.get("id"))
        index = photos.index(id)
        editor: Any = gr.skip()
        if act == "clear":
            photos.clear()
        elif index is not None and act == "remove":
            photos.remove(id)
        elif index is not None and act in ("left", "right"):
            photos.move(id, index + (1 if act == "right" else -1))
        elif index is not None and act == "mask":
            session.painted = id
            editor = mask_editor(photos, next(photo for photo in photos if photo.id == id))
        if photos.index(session.painted) is None:  # else what has been painted so far must not go
            editor = ""
        return strip(photos), "", editor

    def _mask(self, request: gr.Request, data: dict[str, Any]) -> Any:
        session = self._sessions.of(request.session_hash)
        photos, id = session.photos, str(data.get("id"))
        if data.get("act") == "mask":
            try:
                photos.set_mask(id, data.get("png"))
                session.edited.pop(id, None)  # its camera was that of the view as it had been cut out
            except InputError as error:
                return gr.skip(), fragments.alerts([str(error)]), gr.skip()
        return strip(photos), "", ""
