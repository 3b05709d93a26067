"""The settings as a browser tab keeps them: as they stand on the page, asked for or not.

A reload finds them even where the server has been started anew, or has removed what it kept for this visitor.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import gradio as gr

from studio.pages.controls import SettingControls
from studio.presets import PRESETS
from studio.settings import Settings
from trellis.errors import InputError

_LONGEST = 10_000  # characters; a page's settings have some 600
_LIGHT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


class KeptSettings:
    """Keeps the values of controls, and a preset's name, whenever somebody changes one of them.

    Args:
        name: under which the browser keeps them.
        controls: all of them in their places.
        defaults: what the controls show at first. Of settings kept on a page with other defaults, as another
            checkpoint has, nothing is recalled.
        preset: the choice among presets, if there is one.

    Attributes:
        mark: what kept settings begin with, followed by the preset and the values; other defaults have another.
    """

    def __init__(
        self, name: str, controls: SettingControls, defaults: Settings, preset: gr.Radio | None = None
    ) -> None:
        self._name, self._controls, self._preset = name, controls, preset
        self.mark = hashlib.sha256(f"{controls.keys} {defaults.model_dump_json()}".encode()).hexdigest()[:16]
        self._components = [*([] if preset is None else [preset]), *controls.components]
        self._recalled = gr.Textbox(visible="hidden", label="Settings kept by the browser")
        gr.on([component.input for component in controls.components], None, self._components, **self._keeping())

    def keep_after(self, event: Any) -> None:
        """Keep what is shown after an event that changes it without anybody touching the controls."""
        event.then(None, self._components, **self._keeping())

    def recall(self, event: Any, function: Any, outputs: Any) -> None:
        """After an event, call `function(request, kept)` with the text for `read`."""
        script = f"() => [sessionStorage.getItem('{self._name}') || '']"
        event.then(function, self._recalled, outputs, js=script, **_LIGHT)

    def read(self, kept: str) -> tuple[str | None, Settings] | None:
        """(preset, settings) from what a browser sent, or None if that is nothing, or nothing for this page."""
        try:
            mark, *shown = json.loads(kept[:_LONGEST])
            if mark != self.mark or len(shown) != len(self._components):
                return None
            preset = None if self._preset is None else shown.pop(0)
            if self._preset is not None and preset not in PRESETS:
                return None
            return preset, self._controls.settings(shown)
        except (ValueError, TypeError, RecursionError, InputError):
            return None

    def _keeping(self) -> dict[str, Any]:
        kept = f"JSON.stringify(['{self.mark}', ...shown])"
        script = f"(...shown) => {{ sessionStorage.setItem('{self._name}', {kept}); }}"
        return {"outputs": None, "js": script, **_LIGHT}
