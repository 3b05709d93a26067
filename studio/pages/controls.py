"""Sliders and switches made from the settings models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from studio.settings import Setting, Settings, leaves, make_settings


class SettingControls:
    """Gradio controls for settings of one kind.

    Create controls inside a layout with `add`; `components` then lists them all, `settings` turns their values, in
    that order, into settings, and `values_of` does the reverse.

    Args:
        defaults: what the controls show at first, and the kind of settings.
        prefix: of the controls' ids on the page.
    """

    def __init__(self, defaults: Settings, prefix: str = "setting") -> None:
        self._defaults, self._prefix = defaults, prefix
        self._settings = {setting.key: setting for setting in leaves(type(defaults))}
        self._controls: dict[str, list[gr.components.Component]] = {}

    def add(self, *keys: str) -> None:
        """Place the controls of some settings here."""
        for key in keys:
            setting = self._settings[key]
            self._controls[key] = _controls(setting, setting.of(self._defaults), self._prefix)

    def __getitem__(self, key: str) -> gr.components.Component:
        """The (first) control of a setting."""
        return self._controls[key][0]

    @property
    def keys(self) -> list[str]:
        """The settings, in the order of `components`."""
        return list(self._controls)

    @property
    def components(self) -> list[gr.components.Component]:
        return [control for controls in self._controls.values() for control in controls]

    def of(self, *keys: str) -> list[gr.components.Component]:
        """The components of some settings, which need not be intervals."""
        return [self[key] for key in keys]

    def values_of(self, settings: Settings) -> list[Any]:
        """What the components show for some settings, in the order of `components`."""
        values: list[Any] = []
        for key in self._controls:
            value = _shown(self._settings[key], self._settings[key].of(settings))
            values += value if self._settings[key].is_interval else [value]
        return values

    def settings(self, values: Sequence[Any]) -> Settings:
        """Raises InputError for a value outside its range. An emptied field keeps its default."""
        remaining = iter(values)
        chosen: dict[str, Any] = {}
        for key, controls in self._controls.items():
            read = [_meant(self._settings[key], next(remaining)) for _ in controls]
            chosen[key] = tuple(read) if len(read) > 1 else read[0]
        return make_settings(chosen, self._defaults)


# What a switch shows that may be left to the studio.
_WORDS = {None: "Automatic", True: "Yes", False: "No"}


def _may_be_open(setting: Setting) -> bool:
    return setting.type is bool and setting.optional


def _shown(setting: Setting, value: Any) -> Any:
    return _WORDS[value] if _may_be_open(setting) else value


def _meant(setting: Setting, shown: Any) -> Any:
    if _may_be_open(setting):
        return next((value for value, word in _WORDS.items() if word == shown), None)
    if setting.optional and shown == 0 and setting.low > 0:
        return None  # what an empty number field sends
    return shown


def _controls(setting: Setting, value: Any, prefix: str) -> list[gr.components.Component]:
    info = f"{setting.help} ({setting.technical})" if setting.technical else setting.help
    label = f"{setting.title} ({setting.unit})" if setting.unit else setting.title
    common = {"info": info, "elem_id": f"{prefix}-{setting.key}", "interactive": True}
    if _may_be_open(setting):
        return [gr.Radio(list(_WORDS.values()), value=_WORDS[value], label=label, **common)]
    if setting.type is bool:
        return [gr.Checkbox(value, label=label, **common)]
    if setting.choices:
        return [gr.Radio([(word.capitalize(), word) for word in setting.choices], value=value, label=label, **common)]
    if setting.is_interval:
        high_id = f"{common['elem_id']}-high"
        return [
            _slider(setting, value[0], f"{label}: lower time", common),
            _slider(setting, value[1], f"{label}: upper time", {**common, "elem_id": high_id, "info": None}),
        ]
    if setting.optional or setting.high > 1e6:  # a slider has no empty place, and none for each of a million values
        whole = {"precision": 0, "step": 1} if setting.type is int else {}
        empty = {"placeholder": "Not given"} if setting.optional else {}
        return [gr.Number(value, label=label, **whole, **empty, **common)]
    return [_slider(setting, value, label, common)]


def _slider(setting: Setting, value: float, label: str, common: dict[str, Any]) -> gr.Slider:
    return gr.Slider(setting.low, setting.high, value=value, step=setting.step, label=label, **common)
