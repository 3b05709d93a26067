"""What a person does on the page, as functions on a Playwright page."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

WAIT = 120_000  # milliseconds; generous, for machines that do other things as well

# A page that closes drops its event stream, which is logged as an error, harmlessly.
HARMLESS = ("queue/data", "ERR_ABORTED", "heartbeat")


def open_page(browser, address: str, width: int = 1280, height: int = 800, apart: bool = False):
    """A visitor's page; `page.errors` collects what its console complains of, and requests to any other host.

    It is a tab of one browser, which has the scripts compiled after the first page; or that of a browser `apart`, of
    which many need their own, because a browser keeps no more than six connections to a host.
    """
    shared = browser.contexts[0] if browser.contexts and not apart else browser.new_context()
    page = shared.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.errors = []
    own = urlsplit(address).netloc
    page.on("request", lambda request: _note_stranger(page, request.url, own))
    page.on("websocket", lambda socket: _note_stranger(page, socket.url, own))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address, timeout=WAIT)
    page.wait_for_selector("#generate", timeout=WAIT)
    page.wait_for_function("sessionStorage.getItem('reconstudio')", timeout=WAIT)  # the server knows this visitor
    return page


def _note_stranger(page, address: str, own: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("data", "blob", "about") and parts.netloc != own:
        page.errors.append(f"The page asked another host: {address}")


def close_page(page) -> None:
    """Close it; its console must have been quiet, and nothing been asked of another host."""
    page.close()
    errors = [error for error in page.errors if not any(part in error for part in HARMLESS)]
    assert not errors, errors


def add_photos(page, files: list, count: int | None = None) -> None:
    """Upload files and wait until `count` photos (default: all) have been looked at."""
    page.set_input_files("#photos input[type=file]", files)
    wait_for_photos(page, len(files) if count is None else count)


def wait_for_photos(page, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('#strip li.looked').length === count"
        " && document.querySelectorAll('#strip li').length === count",
        arg=count,
        timeout=WAIT,
    )


def press(page, selector: str) -> None:
    """Click a button as soon as it can be clicked."""
    page.wait_for_selector(f"{selector}:not([disabled])", timeout=WAIT)
    page.click(selector)


def turn_to(page, tabs: str, title: str) -> None:
    """Open a tab by its title."""
    page.click(f"{tabs} button[role=tab] >> text={title}")


def set_number(page, selector: str, value: float) -> None:
    """Type a number, not faster than hands: Gradio gives a control its value a frame or two after showing it."""
    field = page.wait_for_selector(f"{selector} input[type=number]", timeout=WAIT)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    field.fill(str(value))
    page.keyboard.press("Tab")


def choose_quick_settings(page, frames: int = 8, size: int = 64) -> None:
    """The shortest turntable, which takes most of the time with tiny networks."""
    page.click("#settings > button")
    turn_to(page, "#settings", "Model file")
    set_number(page, "#setting-texture_size", 512)
    set_number(page, "#setting-video_frames", frames)
    set_number(page, "#setting-video_size", size)


def wait_for_model(page) -> None:
    page.wait_for_selector(".status.done >> text=Finished", timeout=WAIT)
    page.wait_for_selector("#model[data-state=ready]", timeout=WAIT)


def picture(page, selector: str) -> Image.Image:
    return Image.open(io.BytesIO(page.locator(selector).screenshot(timeout=WAIT))).convert("RGB")


def colours_in(page, selector: str) -> int:
    """How many different colours a screenshot of an element has."""
    image = picture(page, selector)
    return len(image.getcolors(maxcolors=image.width * image.height))


def drag(page, selector: str, right: int, down: int = 0) -> None:
    """Drag from the middle of an element."""
    box = page.locator(selector).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=4)
    page.mouse.up()


def download(page, selector: str, target: Path) -> Path:
    with page.expect_download(timeout=WAIT) as coming:
        page.click(selector)
    coming.value.save_as(target)
    return target
