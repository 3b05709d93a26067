"""The whole story, as one visitor lives through it, with the network cut (see `conftest`)."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path

import trimesh
from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    colours_in,
    download,
    drag,
    picture,
    press,
    set_number,
    turn_to,
    wait_for_model,
    wait_for_photos,
)
from PIL import ImageChops

LIGHT = next((Path(__file__).resolve().parents[2] / "assets/hdri").glob("*.hdr"))


def test_from_four_photos_to_a_refined_and_compared_model(page, photos, tmp_path):
    add_photos(page, photos)
    _see_cameras_and_leave_one_photo_out(page)
    _generate(page)
    _bake_again(page)
    _look_at_everything(page)
    _download(page, tmp_path)
    _refine(page, tmp_path)
    _compare(page, tmp_path)


def _see_cameras_and_leave_one_photo_out(page) -> None:
    press(page, "#check-cameras")
    page.wait_for_selector("#cameras-view[data-state=ready]", timeout=WAIT)
    assert page.locator(".view-cards li").count() == 4
    page.click(".view-cards li:nth-child(4) [data-act=drop]")
    wait_for_photos(page, 3)


def _generate(page) -> None:
    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    assert "3 photos" in page.inner_text(".status.done")
    assert colours_in(page, "#model canvas") > 20
    _turn(page, "#model")
    for look in ("Wireframe", "Splats"):
        page.click(f"#model .viewer-bar label >> text={look}")
        page.wait_for_selector(f"#model[data-look={look.lower()}]", timeout=WAIT)
    page.click("#model .viewer-bar label >> text=Sunset")
    page.wait_for_selector("#model[data-light=Sunset]", timeout=WAIT)
    page.set_input_files("#model .own-light", LIGHT)
    page.wait_for_selector("#model[data-light=Own]", timeout=WAIT)


def _turn(page, viewer: str) -> None:
    """Drag a viewer's canvas; its pixels must change."""
    still = picture(page, f"{viewer} canvas")
    frames = page.get_attribute(viewer, "data-frames")
    drag(page, f"{viewer} canvas", 120)
    page.wait_for_function(f"document.querySelector('{viewer}').dataset.frames > {frames}", timeout=WAIT)
    assert ImageChops.difference(still, picture(page, f"{viewer} canvas")).getbbox() is not None


def _bake_again(page) -> None:
    page.click("#rebake-panel > button")
    set_number(page, "#rebake-texture_size", 768)
    before = page.get_attribute("#model", "mesh")
    press(page, "#rebake")
    page.wait_for_selector(f"#model[data-state=ready]:not([mesh='{before}'])", timeout=WAIT)
    repeated = re.search(r"(\d+) of 11 steps did not have to be repeated", page.inner_text(".status.done"))
    assert int(repeated.group(1)) >= 6  # nothing was sampled again


def _look_at_everything(page) -> None:
    turn_to(page, "#result-tabs", "Turntable")
    page.wait_for_function("document.querySelector('#turntable')?.readyState >= 2", timeout=WAIT)
    width, height = page.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('#turntable'))")
    assert width == 2 * height  # colour beside normals
    turn_to(page, "#result-tabs", "Photos")
    page.wait_for_selector("#photographs studio-slider img.after", timeout=WAIT)
    assert page.locator("#photographs studio-slider").count() == 3
    turn_to(page, "#result-tabs", "Check")
    page.wait_for_selector("#checks >> text=What the photos show of it", timeout=WAIT)


def _download(page, folder: Path) -> None:
    turn_to(page, "#result-tabs", "Files")
    glb = download(page, "#download-mesh", folder / "mesh.glb")
    mesh = trimesh.load(glb, force="mesh")
    assert len(mesh.faces) > 0 and mesh.visual.material.baseColorTexture.size == (768, 768)
    record = json.loads(download(page, "#download-run", folder / "run.json").read_text())
    assert record["settings"]["texture_size"] == 768 and len(record["views"]) == 3
    with zipfile.ZipFile(download(page, "#download-colmap", folder / "colmap.zip")) as project:
        assert {"sparse/0/cameras.txt", "sparse/0/images.txt", "images/002.png"} <= set(project.namelist())


def _refine(page, folder: Path) -> None:
    """Twenty steps on the model of the Reconstruct page."""
    turn_to(page, "#pages", "Refine")
    set_number(page, "#refine-steps", 20)
    page.click("#refine-settings > button")
    turn_to(page, "#refine-settings", "Files")
    set_number(page, "#refine-texture_size", 256)
    set_number(page, "#refine-video_frames", 2)
    set_number(page, "#refine-video_size", 64)
    press(page, "#refine-start")
    page.wait_for_selector("#refine-status .curves polyline", timeout=WAIT)  # the loss, while it runs
    verdict = page.wait_for_selector("#refine-status >> text=/^Refin(ed|ing did not help)$/", timeout=WAIT).inner_text()
    page.wait_for_selector("#refine-views studio-slider img.after", timeout=WAIT)
    assert page.locator("#refine-views figure").count() == 3
    turn_to(page, "#refine-tabs", "3D model")
    page.wait_for_selector("#refined-model[data-state=ready]", timeout=WAIT)
    _turn(page, "#refined-model")
    _try_broken_lights(page, folder)
    turn_to(page, "#refine-tabs", "Other lights")
    page.wait_for_function(
        "[...document.querySelectorAll('#refine-lights video')].filter((v) => v.readyState >= 2).length === 3",
        timeout=WAIT,
    )
    turn_to(page, "#refine-tabs", "Files")
    glb = download(page, "#refined-mesh", folder / "refined.glb")
    assert len(trimesh.load(glb, force="mesh").faces) > 0
    unchanged = glb.read_bytes() == (folder / "mesh.glb").read_bytes()
    assert unchanged == (verdict != "Refined")  # what did not help changes nothing


def _try_broken_lights(page, folder: Path) -> None:
    """A file that is no light says so in one sentence, and changes nothing."""
    before = page.get_attribute("#refined-model", "data-light")
    for name, content in (("no.hdr", b"no light"), ("torn.hdr", LIGHT.read_bytes()[:2000])):
        (folder / name).write_bytes(content)
        page.set_input_files("#refined-model .own-light", folder / name)
        note = page.wait_for_selector("#refined-model .viewer-note", timeout=WAIT)
        assert note.inner_text() == "That is no light: an equirectangular Radiance file (.hdr) is needed."
        assert page.get_attribute("#refined-model", "data-light") == before
        note.click()
        page.wait_for_selector("#refined-model .viewer-note", state="detached", timeout=WAIT)
    page.set_input_files("#refined-model .own-light", LIGHT)
    page.wait_for_selector("#refined-model[data-light=Own]", timeout=WAIT)


def _compare(page, folder: Path) -> None:
    """Two textures, and one of them opened as the model of the Reconstruct page."""
    turn_to(page, "#pages", "Compare")
    for number, choice in ((1, "Texture size"), (2, "Nothing else")):
        page.click(f"#axis-{number} input")
        page.click(f"#axis-{number} [role=option] >> text={choice}")
    page.fill("#values-1 textarea, #values-1 input", "512, 768")
    press(page, "#compare-start")
    page.wait_for_selector("#compare-status >> text=2 of 2 models compared", timeout=WAIT)
    page.wait_for_function(
        "[...document.querySelectorAll('#compare-grid video')].filter((v) => v.readyState >= 2).length === 2",
        timeout=WAIT,
    )
    assert page.locator("#compare-grid .bargain").count() == 1
    rows = list(csv.DictReader(download(page, "#compare-csv", folder / "figures.csv").open()))
    assert [row["texture_size"] for row in rows] == ["512", "768"] and all(float(row["psnr_db"]) > 0 for row in rows)
    sheet = download(page, "#compare-html", folder / "sheet.html").read_text()
    assert sheet.count("data:video/mp4;base64,") == 2 and not re.search(r"https?://", sheet)

    # One that cannot be made leaves it there.
    page.fill("#values-1 textarea, #values-1 input", "many")
    press(page, "#compare-start")
    page.wait_for_selector("#compare-status .stopped >> text=but 'many' came", timeout=WAIT)
    page.wait_for_selector("#compare-start:not([disabled])", timeout=WAIT)
    assert page.locator("#compare-grid video").count() == 2 and page.is_visible("#compare-html")

    page.click("#compare-grid .cell:nth-child(2) [data-act=open]")
    page.wait_for_selector("#result-tabs >> visible=true", timeout=WAIT)
    turn_to(page, "#result-tabs", "Files")
    page.wait_for_function("document.querySelector('#link a')?.href", timeout=WAIT)
    glb = download(page, "#download-mesh", folder / "cell.glb")
    assert trimesh.load(glb, force="mesh").visual.material.baseColorTexture.size == (768, 768)
    turn_to(page, "#pages", "History")
    page.wait_for_selector("ul.history li:nth-child(3)", timeout=WAIT)
    assert page.locator("ul.history li").count() == 3  # the model and the two of the comparison
