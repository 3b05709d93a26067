"""The page as a person meets it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator

import pytest
import trimesh
from PIL import Image

WAIT = 120_000  # milliseconds; generous, for machines that do other things as well

# Babylon.js tries WebGPU first, and a page that closes drops its event stream; both are logged as errors, harmlessly.
HARMLESS = ("WebGPU", "queue/data", "ERR_ABORTED")


@pytest.fixture
def page(browser, server) -> Iterator:
    """A fresh page of the studio; fails the test afterwards if the page's console had errors."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server)
    page.wait_for_selector("#generate", timeout=WAIT)
    yield page
    page.close()
    assert [error for error in errors if not any(part in error for part in HARMLESS)] == []


def upload(page, files: list[str]) -> None:
    page.set_input_files("#photos input[type=file]", files)


def generate(page, files: list[str]) -> None:
    upload(page, files)
    page.wait_for_function(f"document.querySelectorAll('#photos img').length >= {len(files)}", timeout=WAIT)
    page.click("#generate")


def test_an_empty_page_says_what_to_do(page):
    assert page.is_visible("text=Your model will appear here")
    assert page.is_disabled("#cancel")
    page.click("#generate")
    page.wait_for_selector(".status.stopped >> text=There are no views yet", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    assert page.is_visible("text=Your model will appear here")


def test_from_photos_to_a_downloaded_model_and_past_a_bad_file(page, photos, tmp_path):
    generate(page, photos)
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    assert page.is_disabled("#generate") and page.is_enabled("#cancel")
    page.wait_for_selector(".status.done", timeout=WAIT)
    assert "4 photos" in page.inner_text(".status.done")

    page.wait_for_function("document.querySelector('#turntable video')?.readyState >= 2", timeout=WAIT)
    width, height = page.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('#turntable video'))")
    assert width == 2 * height  # colour beside normals

    page.wait_for_selector("#model canvas", timeout=WAIT)
    page.wait_for_timeout(2000)  # the viewer draws some frames after it has appeared
    assert colours_in(page, "#model canvas") > 20

    with page.expect_download(timeout=WAIT) as download:
        page.click("#download-mesh")
    download.value.save_as(tmp_path / "mesh.glb")
    assert len(trimesh.load(tmp_path / "mesh.glb", force="mesh").faces) > 0
    with page.expect_download(timeout=WAIT) as download:
        page.click("#download-run")
    assert json.loads(download.value.path().read_text())["seed"] == 0

    # A bad file: a sentence, the other photos stay, and so does the result.
    (tmp_path / "bad.png").write_text("no picture")
    upload(page, [*photos[:2], str(tmp_path / "bad.png")])
    page.wait_for_selector("text='bad.png' is not an image that can be read", timeout=WAIT)
    assert page.is_visible("#model canvas") and page.is_visible("#turntable video")

    # One that can be read but shows nothing: the same.
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "wall.png")
    upload(page, [str(tmp_path / "wall.png")])
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    page.wait_for_timeout(1000)
    page.click("#generate")
    page.wait_for_selector(".status.stopped >> text='wall.png': No object stands out", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    page.wait_for_timeout(500)
    assert "No object stands out" in page.inner_text(".status.stopped")
    assert page.is_visible("#model canvas") and page.is_visible("#turntable video")


def colours_in(page, selector: str) -> int:
    """How many different colours a screenshot of an element has."""
    image = Image.open(io.BytesIO(page.locator(selector).screenshot(timeout=WAIT))).convert("RGB")
    return len(image.getcolors(maxcolors=image.width * image.height))


def test_cancel_stops_a_job_and_the_next_one_runs(page, photos):
    page.click("#settings > button")
    page.fill("#setting-structure_steps input[type=number]", "50")
    page.keyboard.press("Tab")
    generate(page, photos)
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    page.click("#cancel")
    page.wait_for_selector(".status.stopped >> text=Cancelled", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    page.click("#generate")
    page.wait_for_selector(".status.done", timeout=WAIT)


def test_a_job_that_waits_for_another_can_be_cancelled_too(browser, server, page, photos):
    other = browser.new_page()
    other.goto(server)
    other.wait_for_selector("#generate", timeout=WAIT)
    other.click("#settings > button")
    for key in ("structure", "latent"):
        other.click(f"button[role=tab] >> text={'Shape' if key == 'structure' else 'Detail'}")
        other.fill(f"#setting-{key}_steps input[type=number]", "50")
    other.keyboard.press("Tab")
    generate(other, photos)
    other.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    generate(page, photos)
    page.wait_for_selector(".status.busy >> text=Waiting for a free place", timeout=WAIT)
    page.click("#cancel")
    page.wait_for_selector(".status.stopped >> text=Cancelled", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    assert other.query_selector(".status.done") is None
    other.wait_for_selector(".status.done", timeout=WAIT)
    assert page.is_visible(".status.stopped >> text=Cancelled")
    other.close()


def test_closing_the_page_stops_its_job_and_removes_its_files(browser, server, server_folder, photos):
    page = browser.new_page()
    page.goto(server)
    page.wait_for_selector("#generate", timeout=WAIT)
    before = set(server_folder.glob("tmp/reconstudio-*/*"))
    generate(page, photos)
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    (session,) = set(server_folder.glob("tmp/reconstudio-*/*")) - before
    page.close()
    deadline = time.monotonic() + WAIT / 1000
    while session.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not session.exists()


def test_the_page_fits_a_phone(browser, server):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(server)
    page.wait_for_selector("#generate", timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_nothing_is_fetched_from_elsewhere(browser, server):
    page = browser.new_page()
    outside: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else outside.append(r.url))
    page.goto(server)
    page.wait_for_selector("#generate", timeout=WAIT)
    page.wait_for_timeout(1000)
    page.close()
    assert outside == []
