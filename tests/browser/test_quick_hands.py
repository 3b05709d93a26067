"""Somebody faster than the network, and one visitor's page in two tabs."""

from __future__ import annotations

import json

from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    close_page,
    download,
    drag,
    open_page,
    press,
    set_number,
    turn_to,
    wait_for_model,
    wait_for_photos,
)


def test_nothing_that_is_done_before_the_server_answers_is_lost(page, photos, tmp_path):
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions",
                 {"offline": False, "latency": 500, "downloadThroughput": -1, "uploadThroughput": -1})  # fmt: skip
    for pair in (photos[:2], photos[2:]):  # the second while the first is not taken in yet
        page.set_input_files("#photos input[type=file]", pair)
        page.wait_for_function("!document.querySelector('#photos .file-preview, #photos .uploading')", timeout=WAIT)
        page.wait_for_selector("#photos input[type=file]", state="attached", timeout=WAIT)
    wait_for_photos(page, 4)

    page.click("#settings > button")
    set_number(page, "#setting-seed", 7)
    for name in ("Draft", "Best", "Draft"):
        page.click(f"#preset label >> text={name}")
    press(page, "#generate")
    page.wait_for_selector("#generate[disabled]", timeout=WAIT)
    page.click("#strip [data-act=clear]")  # the job has its photos all the same
    wait_for_photos(page, 0)
    wait_for_model(page)
    turn_to(page, "#result-tabs", "Files")
    record = json.loads(download(page, "#download-run", tmp_path / "run.json").read_text())
    assert len(record["views"]) == 4
    asked = record["settings"]
    assert (asked["seed"], asked["structure"]["steps"], asked["texture_size"], asked["video_frames"]) == (7, 2, 512, 30)


def test_what_is_painted_stays_until_its_photo_goes(page, photos):
    add_photos(page, photos[:3])
    page.click("#strip li:nth-child(1) [data-act=mask]")
    page.wait_for_selector("studio-mask[data-state=ready]", timeout=WAIT)
    drag(page, "studio-mask canvas", 60, 60)
    page.evaluate("document.querySelector('studio-mask').mine = true")
    page.click("#strip li:nth-child(3) [data-act=remove]")
    wait_for_photos(page, 2)
    add_photos(page, photos[3:], 3)
    assert page.evaluate("document.querySelector('studio-mask').mine")
    page.click("#strip li:nth-child(1) [data-act=remove]")
    page.wait_for_selector("studio-mask", state="detached", timeout=WAIT)


def test_both_tabs_of_a_visitor_show_what_came_out(page, browser, server, photos):
    add_photos(page, photos[:2])
    choose_quick_settings(page, frames=60, size=256)
    key = page.evaluate("sessionStorage.getItem('reconstudio')")
    other = open_page(browser, server)
    other.evaluate("(key) => sessionStorage.setItem('reconstudio', key)", key)
    other.reload(timeout=WAIT)
    wait_for_photos(other, 2)
    other.errors.clear()  # Gradio's client complains of the stream that the reload cut off
    press(page, "#generate")
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    # If it has not noticed by itself, it joins in, and starts no second job.
    other.evaluate("document.getElementById('generate').click()")
    for tab in (page, other):
        wait_for_model(tab)
    turn_to(other, "#pages", "History")
    other.wait_for_selector("ul.history li", timeout=WAIT)
    assert other.locator("ul.history li").count() == 1
    close_page(other)
