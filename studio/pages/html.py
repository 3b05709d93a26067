"""HTML on the page, and the clicks in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

# Gradio patches new HTML into the old one node by node, which would take the canvas out of a viewer and restart no
# video. `live` replaces its content as a whole, and only when it changes. One listener hears every click on
# something with data-act, whose data then reach Python as one event.
_LIVE = """
const show = () => { element.firstElementChild.innerHTML = props.value || ''; };
show();
watch('value', show);
const tell = (data) => trigger('select', data);
element.addEventListener('click', (event) => {
  const source = event.target.closest('[data-act]');
  if (source && element.contains(source)) tell({...source.dataset});
});
element.addEventListener('act', (event) => tell(event.detail));
"""


def html(content: str = "", **where: Any) -> gr.HTML:
    """HTML that is patched when it changes: for text and progress."""
    return gr.HTML(content, padding=False, **where)


def live(content: str = "", **where: Any) -> gr.HTML:
    """HTML that is replaced when it changes: for viewers, videos and buttons. `on_act` listens to its clicks."""
    return gr.HTML(content, padding=False, html_template="<div></div>", js_on_load=_LIVE, **where)


def on_act(component: gr.HTML, function: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> Any:
    """Call `function(request, data, *inputs)` when something with data-act is clicked in a `live` component.

    data: the element's data attributes, {"act": "remove", "id": "..."}; strings that anybody may have made up.
    Clicks in quick succession are all heard, while Gradio would drop one that comes before the last is answered; they
    may be heard in another order.
    """

    def heard(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
        data = event._data if isinstance(event._data, dict) else {}
        return function(request, {str(key): value for key, value in data.items()}, *values)

    quiet = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}
    return component.select(heard, inputs, outputs, **quiet, **options)


def scroll_to(id: str) -> str:
    """A script that brings an element into sight if it lies below the fold, as it does on a phone."""
    return (
        f"() => setTimeout(() => {{ const it = document.getElementById('{id}');"
        " if (it?.getBoundingClientRect().top > 0.8 * innerHeight) it.scrollIntoView({behavior: 'smooth'}); }, 150)"
    )
