"""Small pieces of HTML: headings, the progress display, the empty state."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from studio.events import Progress, Result
from studio.stages import STAGES

HEADER = """
<header class="masthead">
  <h1>Reconstruction studio</h1>
  <p>A handful of photos of one object in, a textured 3D model out.</p>
</header>
"""

EMPTY = """
<div class="empty">
  <svg viewBox="0 0 48 48" width="56" height="56" aria-hidden="true" fill="none" stroke="currentColor"
       stroke-width="1.6" stroke-linejoin="round">
    <path d="M24 5 41 14.5v19L24 43 7 33.5v-19z"/><path d="M7 14.5 24 24l17-9.5M24 24v19"/>
  </svg>
  <h2>Your model will appear here</h2>
  <ol>
    <li>Add photos of one object on the left, or pick an example.</li>
    <li>Press <b>Generate</b>.</li>
    <li>Turn the model with the mouse, and download it.</li>
  </ol>
  <p>Best are 4 to 8 photos from all around, with the whole object in each and a plain background.
     The first photo becomes the front.</p>
</div>
"""

IDLE = ""


def step_heading(number: int, text: str) -> str:
    """A numbered heading."""
    return f'<h2 class="step"><span>{number}</span>{escape(text)}</h2>'


def waiting() -> str:
    """Asked for, not started."""
    return _panel("busy", "Waiting for a free place ...", "", _stages(-1))


def stopping() -> str:
    """Asked to stop, which happens after the current step."""
    return _panel("busy", "Stopping ...", "", "")


def running(progress: Progress) -> str:
    """The stages, with the current one's message, step and the time so far."""
    index = next(i for i, stage in enumerate(STAGES) if stage.name == progress.stage)
    share = progress.step / progress.of if progress.of else 0.0
    step = f"{progress.step} of {progress.of}" if progress.of > 1 else ""
    bar = f'<div class="bar"><div style="width:{100 * share:.1f}%"></div></div>'
    return _panel("busy", f"{progress.message} ...", _join(step, clock(progress.seconds)), bar + _stages(index))


def finished(result: Result) -> str:
    """What came out."""
    counts = result.counts
    facts = _join(
        f"{counts['views']} {'photo' if counts['views'] == 1 else 'photos'}",
        f"{counts['triangles']:,} triangles",
        f"{counts['splats']:,} splats",
        f"seed {result.settings.seed}",
    )
    return _panel("done", "Finished", _join(clock(result.seconds)), f"<p>{facts}</p>")


def stopped(title: str, sentences: Iterable[str]) -> str:
    """Why there is no new result; an earlier one stays on the page."""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return _panel("stopped", title, "", lines)


def clock(seconds: float) -> str:
    """75 as "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _panel(kind: str, title: str, aside: str, body: str) -> str:
    return (
        f'<section class="status {kind}"><div class="line"><strong role="status">{escape(title)}</strong>'
        f'<span class="aside">{aside}</span></div>{body}</section>'
    )


def _stages(current: int) -> str:
    items = []
    for index, stage in enumerate(STAGES):
        state = "past" if index < current else "now" if index == current else "later"
        mark = ' aria-current="step"' if state == "now" else ""
        items.append(f'<li class="{state}"{mark}>{escape(stage.title)}</li>')
    return f'<ol class="stages">{"".join(items)}</ol>'


def _join(*parts: str) -> str:
    return " &middot; ".join(part for part in parts if part)
