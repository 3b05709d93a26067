"""A page whose computer sleeps, for longer and for less than the server keeps what nobody comes for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
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


class Line:
    """The line between a browser and the server: what a sleeping laptop has cut until it wakes."""

    def __init__(self, server: str) -> None:
        self._server = urlsplit(server).port
        self._whole = True
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._server))
                self._ends |= {near, far}
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        self._ends.discard(one)
        one.close()


@pytest.fixture
def line(server: str) -> Iterator[Line]:
    line = Line(server)
    yield line
    line.close()


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
    time.sleep(2)  # Gradio's client waits forever if its stream breaks between the last answer and its end
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
    page.errors.clear()
    close_page(page)
    for folder in _folders(server_folder) - before:
        _wait_until_gone(folder)
