"""The Reconstruct page as a person meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import trimesh
from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    close_page,
    colours_in,
    download,
    drag,
    open_page,
    picture,
    press,
    set_number,
    wait_for_model,
    wait_for_photos,
)
from PIL import Image, ImageChops


@pytest.fixture
def page(browser, server) -> Iterator:
    """A fresh visitor; fails the test afterwards if the page's console had errors."""
    page = open_page(browser, server)
    yield page
    close_page(page)


def test_an_empty_page_says_what_to_do(page):
    assert page.is_visible("text=Your model will appear here")
    assert page.is_disabled("#cancel")
    press(page, "#generate")
    page.wait_for_selector(".status.stopped >> text=There are no views yet", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    assert page.is_visible("text=Your model will appear here")


def test_photos_are_ordered_removed_masked_and_looked_at(page, photos, tmp_path):
    blurred = tmp_path / "cut-off.png"
    Image.open(photos[0]).crop((40, 30, 90, 80)).save(blurred)
    add_photos(page, [*photos[:2], photos[0], str(blurred)])
    page.wait_for_selector("#strip li:nth-child(3) .badge >> text=Near-duplicate", timeout=WAIT)
    names = "[...document.querySelectorAll('#strip li img')].map(image => image.title)"
    assert page.evaluate(names) == ["photo-0.png", "photo-1.png", "photo-0.png", "cut-off.png"]

    page.click("#strip li:nth-child(2) [data-act=left]")
    page.wait_for_function(f"{names}[0] === 'photo-1.png'", timeout=WAIT)
    page.click("#strip li:nth-child(3) [data-act=remove]")
    wait_for_photos(page, 3)

    page.click("#strip li:nth-child(1) [data-act=mask]")
    page.wait_for_selector("studio-mask[data-state=ready]", timeout=WAIT)
    before = picture(page, "studio-mask canvas")
    drag(page, "studio-mask canvas", 60, 60)
    assert ImageChops.difference(before, picture(page, "studio-mask canvas")).getbbox() is not None
    page.click("studio-mask .mask-apply")
    page.wait_for_selector("#strip li:nth-child(1) .badge >> text=Masked", timeout=WAIT)
    wait_for_photos(page, 3)
    page.click("#strip [data-act=clear]")
    wait_for_photos(page, 0)


def test_a_bad_file_gets_a_sentence_and_an_earlier_model_stays(page, photos, tmp_path):
    add_photos(page, photos)
    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    (tmp_path / "bad.png").write_text("no picture")
    add_photos(page, [str(tmp_path / "bad.png")], 4)
    page.wait_for_selector("text='bad.png' is not an image that can be read", timeout=WAIT)

    # One that can be read but shows nothing: noted at once, and refused.
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "wall.png")
    add_photos(page, [str(tmp_path / "wall.png")], 5)
    assert "No object" in page.inner_text("#strip li:nth-child(5) .badge")
    press(page, "#generate")
    page.wait_for_selector(".status.stopped >> text='wall.png': No object stands out", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    assert page.is_visible("#model canvas")


def test_cancel_stops_a_job_and_the_next_one_runs(page, photos):
    add_photos(page, photos)
    choose_quick_settings(page, frames=240, size=512)
    press(page, "#generate")
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    page.click("#cancel")
    page.wait_for_selector(".status.stopped >> text=Cancelled", timeout=WAIT)
    set_number(page, "#setting-video_frames", 8)
    set_number(page, "#setting-video_size", 64)
    press(page, "#generate")
    wait_for_model(page)


def test_the_page_fits_a_phone(browser, server):
    page = open_page(browser, server, 390, 844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    close_page(page)


def test_the_whole_story_without_any_request_to_elsewhere(browser, server, photos, tmp_path):
    page = open_page(browser, server)
    outside: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else outside.append(r.url))

    add_photos(page, photos)
    press(page, "#check-cameras")
    page.wait_for_selector("#cameras-view[data-state=ready]", timeout=WAIT)
    assert page.locator(".view-cards li").count() == 4
    page.click(".view-cards li:nth-child(4) [data-act=drop]")
    wait_for_photos(page, 3)

    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    assert "3 photos" in page.inner_text(".status.done")
    still = picture(page, "#model canvas")
    assert colours_in(page, "#model canvas") > 20
    drag(page, "#model canvas", 120)
    page.wait_for_function("Number(document.querySelector('#model').dataset.frames) > 3", timeout=WAIT)
    assert ImageChops.difference(still, picture(page, "#model canvas")).getbbox() is not None
    for look in ("Wireframe", "Splats"):
        page.click(f"#model .viewer-bar label >> text={look}")
        page.wait_for_selector(f"#model[data-look={look.lower()}]", timeout=WAIT)
    page.click("#model .viewer-bar label >> text=Sunset")
    page.wait_for_selector("#model[data-light=Sunset]", timeout=WAIT)

    page.click("#rebake-panel > button")
    set_number(page, "#rebake-texture_size", 768)
    press(page, "#rebake")
    page.wait_for_selector(".status.done >> text=stages were there already", timeout=WAIT)
    page.wait_for_selector("#model[data-state=ready]", timeout=WAIT)

    page.click("#result-tabs button[role=tab] >> text=Turntable")
    page.wait_for_function("document.querySelector('#turntable')?.readyState >= 2", timeout=WAIT)
    width, height = page.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('#turntable'))")
    assert width == 2 * height  # colour beside normals
    page.click("#result-tabs button[role=tab] >> text=Photos and model")
    page.wait_for_selector("#photographs studio-slider img.after", timeout=WAIT)
    assert page.locator("#photographs studio-slider").count() == 3
    page.click("#result-tabs button[role=tab] >> text=Check")
    page.wait_for_selector("#checks >> text=What the photos show of it", timeout=WAIT)

    page.click("#result-tabs button[role=tab] >> text=Files")
    glb = download(page, "#download-mesh", tmp_path / "mesh.glb")
    mesh = trimesh.load(glb, force="mesh")
    assert len(mesh.faces) > 0 and mesh.visual.material.baseColorTexture.size == (768, 768)
    record = json.loads(download(page, "#download-run", tmp_path / "run.json").read_text())
    assert record["settings"]["texture_size"] == 768 and len(record["views"]) == 3

    assert outside == []
    close_page(page)
