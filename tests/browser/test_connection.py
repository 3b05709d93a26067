"""A page whose connection is slow or breaks while the server ends its stream of answers."""

from __future__ import annotations

import re
import time

from browser_line import Line
from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    close_page,
    open_page,
    press,
    turn_to,
    wait_for_model,
)


def test_a_late_farewell_loses_no_answer(browser, line, photos):
    line.slow_farewell = 0.5
    page = open_page(browser, line.address)
    add_photos(page, photos[:2])
    choose_quick_settings(page)
    press(page, "#generate")  # two calls, the second right after the first is answered
    wait_for_model(page)
    close_page(page)


def test_a_connection_that_breaks_before_the_farewell_leaves_a_page_that_works(browser, line, photos):
    page = open_page(browser, line.address)
    line.slow_farewell = 3
    seen = line.farewells
    add_photos(page, photos[:2])
    _wait_for_farewell(line, seen)
    line.cut()
    page.wait_for_timeout(1000)
    line.slow_farewell = 0
    line.mend()
    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    page.errors.clear()  # the browser complained of the line
    close_page(page)


def test_an_answer_that_overtakes_the_word_that_its_call_is_taken_leaves_no_stream_open(browser, server, photos):
    def take_late(route) -> None:
        answer = route.fetch()
        time.sleep(2)
        route.fulfill(response=answer)

    page = open_page(browser, server)
    streams = []
    page.on("request", lambda request: streams.append(request) if "/queue/data" in request.url else None)
    for event in ("requestfinished", "requestfailed"):
        page.on(event, lambda request: streams.remove(request) if request in streams else None)
    add_photos(page, photos[:2])
    press(page, "#generate")
    page.wait_for_selector("#cancel:not([disabled])", timeout=WAIT)  # its stream is read for as long as it runs
    page.route(re.compile("/queue/join"), take_late, times=1)
    turn_to(page, "#pages", "History")
    page.wait_for_selector("#history .empty", timeout=WAIT)
    page.unroute_all()
    turn_to(page, "#pages", "Reconstruct")
    wait_for_model(page)
    deadline = time.monotonic() + 10
    while streams and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert not streams
    close_page(page)


def _wait_for_farewell(line: Line, seen: int) -> None:
    deadline = time.monotonic() + WAIT / 1000
    while line.farewells == seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert line.farewells > seen
