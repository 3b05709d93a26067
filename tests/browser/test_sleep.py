"""A page whose computer sleeps, for longer and for less than the server keeps what nobody comes for."""

from __future__ import annotations

import time
from pathlib import Path

from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    close_page,
    open_page,
    press,
    turn_to,
    wait_for_model,
    wait_for_photos,
)

KEEP = 21  # as the server under test is told


def _look_again(page) -> None:
    """What a browser says when its tab is looked at again; a page beats then, and so every ten seconds."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def _folders(server_folder: Path) -> set[Path]:
    return set(server_folder.glob("tmp/reconstudio-*/*"))


def _wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + WAIT / 1000
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not folder.exists()


def test_a_short_sleep_loses_nothing_and_a_long_one_says_so(browser, line, server_folder, photos):
    before = _folders(server_folder)
    page = open_page(browser, line.address)
    add_photos(page, photos[:2])
    (folder,) = _folders(server_folder) - before
    time.sleep(2)  # nothing is on the line: a call that is cut off loads the page anew
    line.cut()
    time.sleep(2)
    line.mend()
    time.sleep(KEEP + 8)  # awake again, and looked at without a click
    assert folder.exists()
    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    turn_to(page, "#pages", "History")
    page.wait_for_selector("ul.history li", timeout=WAIT)

    line.cut()
    _wait_until_gone(folder)
    line.mend()
    _look_again(page)
    page.wait_for_selector("#history .empty", timeout=WAIT)
    for tab, status in (("Refine", "#refine-status"), ("Compare", "#compare-status"), ("Reconstruct", "#status")):
        turn_to(page, "#pages", tab)
        page.wait_for_selector(f"{status} >> text=away for more than 21 seconds", timeout=WAIT)
    wait_for_photos(page, 0)
    assert page.is_visible("#empty") and not page.is_visible("#result")
    assert page.locator("[src*=studio-files], [href*=studio-files], [href*='?run=']").count() == 0
    assert page.input_value("#setting-video_frames input[type=number]") == "8"  # the settings are kept

    page.errors.clear()  # the browser complained of the line
    add_photos(page, photos[:2])
    assert not page.is_visible("#status")
    (folder,) = _folders(server_folder) - before
    line.cut()
    _wait_until_gone(folder)
    line.mend()
    page.reload(timeout=WAIT)  # as browsers do with tabs that they had put away
    page.wait_for_selector("#status >> text=Away for too long", timeout=WAIT)
    page.click("#settings > button")
    turn_to(page, "#settings", "Model file")
    assert page.input_value("#setting-video_frames input[type=number]") == "8"  # as the tab has kept them
    page.errors.clear()
    close_page(page)
    for folder in _folders(server_folder) - before:
        _wait_until_gone(folder)
