"""A real Chromium in front of a real server: `python app.py` with a tiny checkpoint, on a free port of this machine.

The network is cut for both: the browser finds no host but this machine, and whatever the server asks of another host
goes to a proxy that answers nothing and remembers that it was asked.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser_line import Line
from browser_steps import close_page, open_page
from tiny_checkpoint import tiny_views, write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server under test keeps everything that it writes."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "tmp").mkdir()
    return folder


@pytest.fixture(scope="session")
def asked_of_others() -> Iterator[tuple[str, list[str]]]:
    """(address, requests) of the proxy: the first line of whatever came."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # closed
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    asked.append(connection.recv(4096).partition(b"\r\n")[0].decode(errors="replace"))

        threading.Thread(target=hang_up, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked


@pytest.fixture(scope="session")
def server(server_folder: Path, asked_of_others: tuple[str, list[str]]) -> Iterator[str]:
    """The address of a running studio."""
    folder = server_folder
    proxy, asked = asked_of_others
    checkpoint = write_tiny_checkpoint(folder / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "RECONSTUDIO_CHECKPOINT": str(checkpoint),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "TMPDIR": str(folder / "tmp"),
        **{f"{kind}_proxy": proxy for kind in ("http", "https", "all")},
        "no_proxy": "127.0.0.1,localhost",
        "RECONSTUDIO_CACHE": str(folder / "cache"),
        "RECONSTUDIO_GRACE": "20",
        "RECONSTUDIO_KEEP": "21",
        "RECONSTUDIO_MCP": "1" if find_spec("mcp") else "",
        "RECONSTUDIO_HISTORY": str(folder / "history.jsonl"),
    }
    environment.pop("HF_HUB_OFFLINE", None)  # it must not even try
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(address, process, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "Traceback" not in (folder / "log").read_text()
    assert list((folder / "tmp").glob("reconstudio-*")) == []  # nothing is left behind
    assert asked == []


def _wait_for(address: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"The studio did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser():
    """Chromium, or an honest skip."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; `apt-get install chromium` to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator:
    """Show with a failed test what its pages said in the end."""
    report = yield
    if call.when == "call" and report.failed and "browser" in getattr(item, "funcargs", {}):
        for context in item.funcargs["browser"].contexts:
            for page in context.pages:
                with suppress(Exception):  # it may be the page that failed
                    report.sections.append((f"page {page.url}", f"{page.inner_text('body')}\n{page.errors}"))
    return report


@pytest.fixture
def page(browser, server: str) -> Iterator:
    """A fresh visitor; fails the test afterwards if the page's console had errors."""
    page = open_page(browser, server)
    yield page
    close_page(page)


@pytest.fixture
def line(server: str) -> Iterator[Line]:
    """What stands between a browser and the server, for pages opened at its address."""
    line = Line(server)
    yield line
    line.close()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Four photos as files."""
    files = []
    for number, view in enumerate(tiny_views(4, size=128)):
        files.append(str(tmp_path / f"photo-{number}.png"))
        view.save(files[-1])
    return files
