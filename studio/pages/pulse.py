"""The pulse of a page: it says that it is still there, and hears whether what it shows is.

Gradio's stream that does the former ends for good when the connection does, as when a laptop sleeps or changes
networks. And a call through Gradio that fails loads the page anew, at its first tab; a beat that fails is nothing.
"""

from __future__ import annotations

import gradio as gr
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from studio.pages.sessions import Sessions

_GONE = "gone"
# Every ten seconds, in a tab that nobody sees about once a minute, and at once when it is looked at again. The key goes
# in a header, for addresses are written into logs.
_BEAT = f"""
const beat = async () => {{
  const key = sessionStorage.getItem('reconstudio');
  if (!key) return;
  const answer = await fetch('studio-pulse', {{headers: {{'X-Session': key}}, cache: 'no-store'}}).catch(() => null);
  if (answer?.ok && await answer.text() === '{_GONE}') trigger('select', {{}});
}};
setInterval(beat, 10000);
document.addEventListener('visibilitychange', beat);
"""


def pulse() -> gr.HTML:
    """What makes the page beat; its select event comes when the page's session has gone."""
    return gr.HTML(visible="hidden", js_on_load=_BEAT)


def route(sessions: Sessions) -> Route:
    """Where the server hears it."""

    async def heard(request: Request) -> Response:
        return PlainTextResponse("there" if sessions.touch(request.headers.get("x-session", "")) else _GONE)

    return Route("/studio-pulse", heard)
