"""Cameras corrected by hand: before there is a model, and beside it."""

from __future__ import annotations

import json
import re

from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    download,
    picture,
    press,
    set_number,
    turn_to,
    wait_for_model,
)
from PIL import ImageChops


class Editor:
    """The editor of cameras in one part of the page."""

    def __init__(self, page, part: str) -> None:
        self.page, self.part = page, part

    def wait(self) -> None:
        self.page.wait_for_selector(f"{self.part} studio-camera-editor[data-state=ready]", timeout=WAIT)

    def value(self, key: str) -> float:
        return float(self.page.input_value(f"{self.part} [type=number][data-key={key}]"))

    def set(self, key: str, value: float) -> None:
        set_number(self.page, f"{self.part} .camera-number:has([data-key={key}])", value)

    def press(self, act: str) -> None:
        self.page.click(f"{self.part} [data-do={act}]")

    def edited(self) -> list[str]:
        return self.page.locator(f"{self.part} .camera-choice .edited").all_inner_texts()


def test_a_camera_is_corrected_before_and_after_there_is_a_model(page, photos, tmp_path):
    add_photos(page, photos)
    press(page, "#check-cameras")
    page.wait_for_selector("#cameras-view[data-state=ready]", timeout=WAIT)
    found = _correct_before_there_is_a_model(page)

    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    assert "The camera of photo 2 was set by hand" in page.inner_text(".status.done")
    turn_to(page, "#result-tabs", "Cameras")
    editor = Editor(page, "#run-cameras")
    editor.wait()
    assert editor.edited() == ["2"]
    page.click("#run-cameras .camera-choice label:has-text('2')")
    assert editor.value("azimuth") == found + 12
    assert f"found: {found:g}" in page.inner_text("#run-cameras .camera-row:has([data-key=azimuth])")
    assert re.search(r"Outlines agree: \d+%", page.inner_text("#run-cameras figcaption"))
    record = _report(page, tmp_path / "first.json")
    assert record["views"][1]["camera"]["found"] and record["views"][0]["camera"] is None

    # Taken back, and another one corrected instead: written again, and nothing sampled.
    turn_to(page, "#result-tabs", "Cameras")
    editor.press("all")
    page.click("#run-cameras .camera-choice label:has-text('3')")
    editor.set("roll", 30)
    assert editor.edited() == ["3"]
    before = page.get_attribute("#model", "mesh")
    press(page, "#use-cameras")
    turn_to(page, "#result-tabs", "3D model")
    page.wait_for_selector(f"#model[data-state=ready]:not([mesh='{before}'])", timeout=WAIT)
    status = page.inner_text(".status.done")
    assert "The camera of photo 3 was set by hand" in status
    repeated = re.search(r"(\d+) of 11 steps did not have to be repeated", status)
    assert int(repeated.group(1)) == 5  # what is painted from the photos is painted and filmed again
    again = _report(page, tmp_path / "again.json")
    assert [bool(view["camera"]) for view in again["views"]] == [False, False, True, False]
    assert again["files"]["gaussian.ply"] != record["files"]["gaussian.ply"]
    assert again["files"]["transforms.json"] != record["files"]["transforms.json"]

    turn_to(page, "#result-tabs", "Cameras")
    page.set_viewport_size({"width": 390, "height": 700})
    page.wait_for_selector("#run-cameras .camera-rows >> visible=true", timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.wait_for_function("document.querySelectorAll('#result-tabs > .tab-wrapper [role=tab]').length === 6")
    turn_to(page, "#result-tabs", "Files")  # not folded away into a menu


def test_what_can_be_undone_outlasts_the_panel_which_leaving_out_a_photo_draws_anew(page, photos):
    add_photos(page, photos)
    press(page, "#check-cameras")
    page.wait_for_selector("#cameras-view[data-state=ready]", timeout=WAIT)
    editor = Editor(page, "#cameras")
    page.click("#cameras .view-cards li:nth-child(2) [data-edit]")
    editor.wait()
    found = editor.value("azimuth")
    editor.set("azimuth", found + 12)
    editor.set("distance", 1.5)
    page.evaluate("document.querySelector('#cameras studio-camera-editor').drawnBefore = true")
    page.click("#cameras .view-cards li:nth-child(4) [data-act=drop]")
    page.wait_for_function("!document.querySelector('#cameras studio-camera-editor').drawnBefore", timeout=WAIT)
    editor.wait()
    page.click("#cameras .camera-choice label:has-text('2')")
    assert editor.value("distance") == 1.5 and editor.edited() == ["2"]
    editor.press("undo")
    assert editor.value("distance") != 1.5 and editor.value("azimuth") == found + 12
    editor.press("undo")
    assert editor.edited() == [] and editor.value("azimuth") == found and page.is_disabled("#cameras [data-do=undo]")


def _correct_before_there_is_a_model(page) -> float:
    """Move the second camera by 12 degrees; returns where it was."""
    editor = Editor(page, "#cameras")
    page.click("#cameras .view-cards li:nth-child(2) [data-edit]")
    editor.wait()
    assert page.is_checked("#cameras .camera-choice [value='1']") and editor.edited() == []
    found, outline = editor.value("azimuth"), picture(page, "#cameras studio-camera-editor canvas")
    pyramids = picture(page, "#cameras-view canvas")
    editor.set("azimuth", found + 50)
    assert editor.edited() == ["2"]
    page.wait_for_timeout(300)  # two frames to draw in
    assert ImageChops.difference(outline, picture(page, "#cameras studio-camera-editor canvas")).getbbox() is not None
    assert ImageChops.difference(pyramids, picture(page, "#cameras-view canvas")).getbbox() is not None
    editor.set("distance", 1.5)
    editor.press("undo")
    editor.press("undo")
    assert editor.edited() == [] and editor.value("azimuth") == found and page.is_disabled("#cameras [data-do=undo]")

    # By the keyboard alone: from the number of the photo to the first slider, and along it.
    page.focus("#cameras .camera-choice [value='1']")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.key") == "azimuth"
    page.keyboard.press("ArrowRight")
    assert editor.value("azimuth") > found - 0.5 and editor.edited() == ["2"]
    editor.press("reset")
    assert editor.value("azimuth") == found and editor.edited() == []

    editor.set("fov", 999)  # is no field of view
    assert editor.value("fov") < 120 and editor.edited() == []
    page.evaluate(
        """document.querySelector('#cameras studio-camera-editor').dispatchEvent(new CustomEvent('act', {bubbles: true,
        detail: {act: 'cameras', frames: '[{"w": 1, "h": 1, "fl_x": NaN}, null, null, null]', at: `${Date.now()}`}}))"""
    )
    page.wait_for_selector(".status.stopped >> text=needs a finite number as fl_x", timeout=WAIT)
    editor.set("azimuth", found + 12)
    return found


def _report(page, file) -> dict:
    turn_to(page, "#result-tabs", "Files")
    return json.loads(download(page, "#download-run", file).read_text())
