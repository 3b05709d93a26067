"""The choice among presets: how good, how fast."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from studio.history import History
from studio.pages import fragments
from studio.pages.controls import SettingControls
from studio.pages.sessions import Session, Sessions
from studio.presets import PRESETS, apply_preset, measured_times, preset_keys
from studio.service import Service
from studio.settings import leaves

DEFAULT = "standard"
_LIGHT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


class PresetChoice:
    """Builds itself inside the current layout; `connect` it once the controls are there.

    Attributes:
        radio: the component.
    """

    def __init__(self, service: Service, sessions: Sessions) -> None:
        self._service, self._sessions = service, sessions
        names = [(preset.name.capitalize(), preset.name) for preset in PRESETS.values()]
        self.radio = gr.Radio(
            names, value=DEFAULT, label="How good, how fast", info=PRESETS[DEFAULT].help, elem_id="preset"
        )

    def connect(self, controls: SettingControls) -> Any:
        """Let a choice set the controls of what presets decide, and no others; returns the event."""
        # In the browser, so that Generate, pressed at once, has the preset's settings, however slow the network is.
        values = {name: [self._values(name)[key] for key in preset_keys()] for name in PRESETS}
        script = f"(name) => ({json.dumps(values)})[name]"
        set_controls = self.radio.input(None, self.radio, controls.of(*preset_keys()), js=script, **_LIGHT)
        self.radio.input(self._explain, self.radio, self.radio, trigger_mode="always_last", **_LIGHT)
        return set_controls

    def update(self, name: str, session: Session) -> Any:
        """The radio with this choice."""
        return gr.update(value=name, info=self._info(name, session))

    def _values(self, name: str) -> dict[str, Any]:
        chosen = apply_preset(name, self._service.defaults)
        return {setting.key: setting.of(chosen) for setting in leaves() if setting.key in preset_keys()}

    def _explain(self, request: gr.Request, name: str) -> Any:
        return gr.update(info=self._info(name, self._sessions.of(request.session_hash)))

    def _info(self, name: str, session: Session) -> str:
        """What a preset means, and how long it takes here, once this machine has run one."""
        times = measured_times(
            History(), self._service.engine, self._service.defaults, max(1, len(session.photos))
        )
        seconds = times[name]
        return PRESETS[name].help + (f" About {fragments.clock(seconds)} here." if seconds else "")
