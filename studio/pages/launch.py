"""The studio as a web server."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import gradio as gr

from studio.engine import ASSETS
from studio.pages import fragments, reconstruct
from studio.pages.sessions import Sessions
from studio.service import Service

MAX_UPLOAD = "256mb"  # a file; what the image reader accepts
MAX_WAITING = 16  # jobs
_HOUR = 3600


def build(service: Service, sessions: Sessions) -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title="Reconstruction studio", delete_cache=(_HOUR, 24 * _HOUR), analytics_enabled=False) as page:
        gr.HTML(fragments.HEADER, padding=False)
        reconstruct.build(service, sessions)

        def close(request: gr.Request) -> None:
            sessions.close(request.session_hash)

        page.unload(close)
    return page.queue(max_size=MAX_WAITING)


def serve(checkpoint: str | None = None, device: str | None = None) -> None:
    """Load the networks, then serve the studio until interrupted.

    The address is http://127.0.0.1:7860 (the next free port if that one is taken), or as GRADIO_SERVER_NAME and
    GRADIO_SERVER_PORT say. Raises InputError if the networks cannot be loaded.
    """

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    signal.signal(signal.SIGTERM, _interrupt)  # so that a stopped container also closes the server and its files
    sessions = Sessions()
    service = Service(checkpoint, [device], say=say)
    with service:
        _serve(build(service, sessions), sessions, say)


def _serve(page: gr.Blocks, sessions: Sessions, say: Callable[[str], None]) -> None:
    _, address, _ = page.launch(
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=_has_display(),
        max_file_size=MAX_UPLOAD,
        allowed_paths=[str(ASSETS / "examples"), str(sessions.folder)],
        theme=_theme(),
        css_paths=ASSETS / "style.css",
        footer_links=[],
        ssr_mode=False,
    )
    say(f"The studio is open at {address} (Ctrl-C closes it).")
    page.block_thread()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _theme() -> gr.themes.Base:
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=fonts,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_background_fill="white",
        block_info_text_color="*neutral_500",
        block_title_text_weight="600",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        color_accent="*primary_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_border_color="*primary_700",
        button_primary_border_color_hover="*primary_800",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_border_color="*neutral_300",
        button_border_width="1px",
    )


def _has_display() -> bool:
    """Whether there is a desktop to open a browser window on."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
