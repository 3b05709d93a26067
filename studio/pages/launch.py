"""The studio as a web server."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from studio.engine import ASSETS
from studio.events import JobError
from studio.pages import files, fragments
from studio.pages.api import Api
from studio.pages.compare import WORK as COMPARISON
from studio.pages.compare import ComparePage
from studio.pages.follow import refused
from studio.pages.history import HistoryPage
from studio.pages.hosting import Hosting, hosting
from studio.pages.pulse import pulse, route
from studio.pages.reconstruct import WORK as RECONSTRUCTION
from studio.pages.reconstruct import ReconstructPage
from studio.pages.refine import WORK as REFINEMENT
from studio.pages.refine import RefinePage
from studio.pages.sessions import Session, Sessions
from studio.pages.theme import theme
from studio.service import Service
from trellis.errors import InputError

_HOUR = 3600
# The tab remembers which visitor it belongs to, so that a reload finds photos, job and result again.
_RECALL = "() => [sessionStorage.getItem('reconstudio') || '']"
_REMEMBER = "(key) => { sessionStorage.setItem('reconstudio', key); }"


_OPTIONS = """It takes no options. GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say at which address, and
`python -m studio serve --help` lists what can be chosen: checkpoint, device, and what does the work on it. The README
has everything else."""


def main(description: str, refine_only: bool = False) -> None:
    """What `app.py` and `app_refine.py` do: serve, or end with a sentence that says why not."""
    argparse.ArgumentParser(description=description, epilog=_OPTIONS).parse_args()
    try:
        serve(refine_only=refine_only)
    except (InputError, JobError) as error:
        sys.exit(f"The studio cannot start. {error}")


def build(service: Service, sessions: Sessions, host: Hosting | None = None, refine_only: bool = False) -> gr.Blocks:
    """The page, without a server."""
    host = host or Hosting()
    private: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    # The page copies uploads into the visitor's own folder; a call from a program waits in the queue with Gradio's.
    uploads = max(host.keep, _HOUR)
    with gr.Blocks(title="Reconstruction studio", delete_cache=(600, uploads), analytics_enabled=False) as page:
        gr.HTML(fragments.HEADER, padding=False)
        key = gr.Textbox(visible="hidden", label="Session", elem_id="session-key")
        attached = page.load(_attach(sessions), key, key, js=_RECALL, **private)
        # After a long absence only what was shown goes: a page loaded anew would open at its first tab.
        gone = pulse().select(_begin_again(sessions), None, key, **private)
        for event in (attached, gone):
            event.then(None, key, None, js=_REMEMBER, **private)
        if refine_only:
            refine = RefinePage(service, sessions, alone=True)
            parts = [refine]
        else:
            with gr.Tabs(elem_id="pages") as pages:
                with gr.Tab("Reconstruct", id="reconstruct"):
                    reconstruct = ReconstructPage(service, sessions)
                with gr.Tab("Refine", id="refine"):
                    refine = RefinePage(service, sessions)
                with gr.Tab("Compare", id="compare"):
                    compare = ComparePage(service, sessions, reconstruct, pages)
                with gr.Tab("History", id="history") as history_tab:
                    history = HistoryPage(sessions, reconstruct, pages, service.defaults)
            parts = [reconstruct, refine, compare]
            reconstruct.fill_controls(attached)
            gone.then(history.refresh, None, history.list, **private)
            history_tab.select(history.refresh, None, history.list, trigger_mode="always_last", **private)
        for part in parts:
            for event in (attached, gone):
                part.on_load(event)
        refine.fill_controls(attached)
        refine.forget_uploads(gone)
        Api(service, sessions, refine_only, host.mcp)
        page.unload(_detach(sessions))
    return page.queue(default_concurrency_limit=16)


def _attach(sessions: Sessions) -> Callable[..., str]:
    def attach(request: gr.Request, key: str) -> str:
        session = sessions.attach(request.session_hash or "", key)
        if key and session.key != key:
            _say_removed(session, sessions.keep)
        return session.key

    return attach


def _begin_again(sessions: Sessions) -> Callable[..., str]:
    def begin_again(request: gr.Request) -> str:
        session = sessions.of(request.session_hash)
        _say_removed(session, sessions.keep)
        return session.key

    return begin_again


def _say_removed(session: Session, keep: float) -> None:
    """Say on each page why it is empty, until something else is done there."""
    away = f"This page was away for more than {fragments.span(keep)}, or the server was started anew"
    removed = fragments.Removed(f"{away}. What was on it has been removed: please add the photos again.")
    with session.lock:
        if not session.busy:
            session.works |= {work: refused(removed) for work in (RECONSTRUCTION, REFINEMENT, COMPARISON)}


def _detach(sessions: Sessions) -> Callable[..., None]:
    def detach(request: gr.Request) -> None:
        sessions.detach(request.session_hash)

    return detach


def serve(
    checkpoint: str | None = None,
    device: str | None = None,
    refine_only: bool = False,
    backends: Mapping[str, str] | None = None,
) -> None:
    """Load the networks, then serve the studio until interrupted; the first, second and last as for `Service`.

    The address is http://127.0.0.1:7860 (the next free port if that one is taken), or as GRADIO_SERVER_NAME and
    GRADIO_SERVER_PORT say; `studio.pages.hosting` lists what else the environment decides. Raises InputError if the
    networks cannot be loaded, or the environment means nothing.
    """

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    signal.signal(signal.SIGTERM, _interrupt)  # so that a stopped container also closes the server and its files
    host = hosting()
    sessions = Sessions(host.keep, host.grace)
    service = Service(
        checkpoint, [device], capacity=host.queue, per_user=host.queue_each, say=say, backends=backends,
        gpu_seconds=host.gpu_seconds,
    )  # fmt: skip
    closing = threading.Event()
    threading.Thread(target=sessions.tidy_until, args=(closing,), name="tidying", daemon=True).start()
    try:
        with service:
            _serve(build(service, sessions, host, refine_only), sessions, host, say)
    finally:
        closing.set()


def _serve(page: gr.Blocks, sessions: Sessions, host: Hosting, say: Callable[[str], None]) -> None:
    _, address, _ = page.launch(
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=_has_display(),
        auth=list(host.logins) or None,
        max_file_size=f"{host.upload_mb}mb",
        allowed_paths=[str(ASSETS / "examples")],
        app_kwargs={"routes": [*files.routes(sessions.shelf), route(sessions)]},
        mcp_server=host.mcp,
        theme=theme(),
        css_paths=ASSETS / "style.css",
        head=files.script_tags(),
        footer_links=[],
        ssr_mode=False,
    )
    say(f"The studio is open at {address} (Ctrl-C closes it).")
    page.block_thread()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _has_display() -> bool:
    """Whether there is a desktop to open a browser window on."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
