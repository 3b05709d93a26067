"""Many visitors at once, who do not see each other, and one who reloads the page."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    close_page,
    open_page,
    press,
    set_number,
    turn_to,
    wait_for_model,
    wait_for_photos,
)
from tiny_checkpoint import tiny_views

VISITORS = 8
CLICK_SECONDS = 20  # of the slowest click under any load; the page aims at one second, see benchmarks


def test_eight_visitors_are_all_served_in_turn_and_apart(browser, server, server_folder, photos, tmp_path):
    left_behind = _visit_and_leave(browser, server, server_folder, photos)
    pages = [open_page(browser, server, apart=True) for _ in range(VISITORS)]
    keys = [page.evaluate("sessionStorage.getItem('reconstudio')") for page in pages]
    assert len(set(keys)) == VISITORS
    for number, page in enumerate(pages):
        view = tiny_views(number + 1, size=64)[number]
        view.save(tmp_path / f"visitor-{number}.png")
        add_photos(page, [str(tmp_path / f"visitor-{number}.png")])
        choose_quick_settings(page, frames=2)
    for page in pages:
        press(page, "#generate")
    slowest = 0.0
    for page in pages:  # while all of them wait or run, every page still answers
        started = time.monotonic()
        turn_to(page, "#pages", "History")
        page.wait_for_selector("#history .empty, ul.history", timeout=WAIT)
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < CLICK_SECONDS
    links = []
    for page in pages:
        page.wait_for_selector("#status .done", state="attached", timeout=WAIT)
        turn_to(page, "#pages", "Compare")
        turn_to(page, "#pages", "History")
        page.wait_for_selector("ul.history li", timeout=WAIT)
        assert page.locator("ul.history li").count() == 1  # nobody else's
        links.append(page.get_attribute("ul.history li", "data-run"))
    assert len(set(links)) == VISITORS

    for number, key in enumerate(links):
        (view,) = httpx.get(f"{server}/studio-files/{key}/run.json").json()["views"]
        assert view["name"] == f"visitor-{number}.png"
    # Nothing but the whole key opens a run, and a key opens nothing beside its run.
    key = links[0]
    wrong = (f"{key[:-1]}/run.json", f"{key}/../run.json", f"{key}/%2e%2e/photos", f"{keys[1]}/run.json", f"{key}/")
    for path in wrong:
        assert httpx.get(f"{server}/studio-files/{path}", follow_redirects=True).status_code == 404
    for page in pages:
        close_page(page)
        page.context.close()

    deadline = time.monotonic() + WAIT / 1000
    while left_behind.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left_behind.exists()


def _visit_and_leave(browser, server: str, server_folder: Path, photos: list[str]) -> Path:
    """The folder of somebody who adds a photo and closes the page."""
    before = set(server_folder.glob("tmp/reconstudio-*/*"))
    page = open_page(browser, server)
    add_photos(page, photos[:1])
    (folder,) = set(server_folder.glob("tmp/reconstudio-*/*")) - before
    close_page(page)
    assert folder.exists()  # a reload would find it
    return folder


def test_a_reload_finds_the_settings_that_were_not_used_yet(page):
    page.click("#settings > button")
    turn_to(page, "#settings", "Model file")
    page.click("#preset label >> text=Draft")
    page.wait_for_selector("#preset input[value=draft]:checked", timeout=WAIT)
    set_number(page, "#setting-texture_size", 2048)
    page.wait_for_function("sessionStorage.getItem('reconstudio-settings')?.includes('2048')", timeout=WAIT)
    turn_to(page, "#pages", "Refine")
    set_number(page, "#refine-steps", 70)
    page.wait_for_function("sessionStorage.getItem('reconstudio-refine-settings')?.includes('70')", timeout=WAIT)
    page.reload(timeout=WAIT)
    page.wait_for_selector("#preset input[value=draft]:checked", timeout=WAIT)
    page.errors.clear()  # Gradio's client complains of the stream that the reload cut off
    page.click("#settings > button")
    turn_to(page, "#settings", "Model file")
    assert page.input_value("#setting-video_frames input[type=number]") == "30"
    assert page.input_value("#setting-texture_size input[type=number]") == "2048"
    turn_to(page, "#pages", "Refine")
    page.wait_for_function("document.querySelector('#refine-steps input[type=number]').value === '70'", timeout=WAIT)


def test_a_reload_in_mid_job_finds_photos_job_and_result_again(browser, server, photos):
    page = open_page(browser, server)
    add_photos(page, photos)
    choose_quick_settings(page, frames=240, size=512)
    press(page, "#generate")
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    page.reload(timeout=WAIT)
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    page.errors.clear()  # Gradio's client complains of the stream that the reload cut off
    wait_for_photos(page, 4)
    assert page.is_disabled("#generate")
    press(page, "#cancel")
    page.wait_for_selector(".status.stopped >> text=Cancelled", timeout=WAIT)

    page.click("#settings > button")
    turn_to(page, "#settings", "Model file")
    assert page.input_value("#setting-video_frames input[type=number]") == "240"  # the settings came back too
    set_number(page, "#setting-video_frames", 8)
    set_number(page, "#setting-video_size", 64)
    press(page, "#generate")
    wait_for_model(page)
    page.reload(timeout=WAIT)
    page.wait_for_selector("#model[data-state=ready]", timeout=WAIT)
    link = page.get_attribute("#link a", "href")

    # Whoever has the link sees the run, and nothing else of its maker.
    other = open_page(browser, f"{server}/{link}")
    other.wait_for_selector("#model[data-state=ready]", timeout=WAIT)
    assert other.locator("#strip li").count() == 0 and re.fullmatch(r"\?run=[\w-]{20,}", link)
    close_page(other)
    close_page(page)
