"""Small pieces of HTML: headings, the progress display, the empty state."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape

from studio.events import Cancelled, JobError, Progress, Queued, Result
from studio.inputs import sentences_of
from studio.stages import STAGES, Stage
from trellis.errors import InputError

HEADER = """
<header class="masthead">
  <h1>Reconstruction studio</h1>
  <p>A handful of photos of one object in, a textured 3D model out.</p>
</header>
"""


class Removed(InputError):
    """What a page showed is no longer there."""


_CUBE = """<svg viewBox="0 0 48 48" width="56" height="56" aria-hidden="true" fill="none" stroke="currentColor"
  stroke-width="1.6" stroke-linejoin="round">
  <path d="M24 5 41 14.5v19L24 43 7 33.5v-19z"/><path d="M7 14.5 24 24l17-9.5M24 24v19"/></svg>"""


def empty(title: str, steps: Iterable[str], hint: str = "") -> str:
    """What to do where nothing is yet. `steps` and `hint` are HTML."""
    items = "".join(f"<li>{step}</li>" for step in steps)
    return f'<div class="empty">{_CUBE}<h2>{escape(title)}</h2><ol>{items}</ol><p>{hint}</p></div>'


EMPTY = empty(
    "Your model will appear here",
    (
        "Add photos of one object, or pick an example.",
        "Press <b>Generate</b>. <b>Check cameras</b> first shows, in seconds, how the photos fit together.",
        "Turn the model with the mouse, and download it.",
    ),
    "Best are 4 to 8 photos from all around, with the whole object in each and a plain background. "
    "The first photo becomes the front.",
)

IDLE = ""


def step_heading(number: int, text: str) -> str:
    """A numbered heading."""
    return f'<h2 class="step"><span>{number}</span>{escape(text)}</h2>'


def heading(text: str, hint: str = "") -> str:
    """A heading, and a sentence below it."""
    return f'<h2 class="plain">{escape(text)}</h2>' + (f'<p class="hint">{escape(hint)}</p>' if hint else "")


def hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def waiting() -> str:
    """Asked for, not started."""
    return _panel("busy", "Waiting for a free place ...", "", _stages(STAGES, -1))


def stopping() -> str:
    """Asked to stop, which happens after the current step."""
    return _panel("busy", "Stopping ...", "", "")


def queued(event: Queued, stages: tuple[Stage, ...] = STAGES) -> str:
    """In the queue."""
    others = "" if not event.ahead else f"{event.ahead} {'job' if event.ahead == 1 else 'jobs'} before yours"
    return _panel("busy", "Waiting for a free place ...", others, _stages(stages, -1))


def running(
    progress: Progress,
    previews: Mapping[str, bytes] | None = None,
    stages: tuple[Stage, ...] = STAGES,
) -> str:
    """The stages, with the current one's message, step, the time so far and the time left, and the pictures so far."""
    index = next(i for i, stage in enumerate(stages) if stage.name == progress.stage)
    share = progress.step / progress.of if progress.of else 0.0
    step = f"{progress.step} of {progress.of}" if progress.of > 1 else ""
    left = "" if progress.remaining is None else f"about {clock(progress.remaining)} left"
    bar = (
        f'<div class="bar" role="progressbar" aria-label="{escape(progress.message)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}"><div style="width:{100 * share:.1f}%"></div></div>'
    )
    aside = _join(step, clock(progress.seconds), left)
    return _panel("busy", f"{progress.message} ...", aside, bar + _stages(stages, index) + _pictures(previews, stages))


def batch(title: str, done: int, of: int, progress: Progress | None) -> str:
    """Where several jobs are, and the one that runs."""
    share = (done + (progress.step / progress.of * 0.9 if progress and progress.of else 0.0)) / of
    bar = (
        f'<div class="bar" role="progressbar" aria-label="{escape(title)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><div style="width:{100 * share:.1f}%"></div></div>'
    )
    what = f"<p>{escape(progress.message)} ...</p>" if progress else ""
    return _panel("busy", f"{title} ...", "", bar + what)


def finished(result: Result) -> str:
    """What came out."""
    counts = result.counts
    facts = _join(
        f"{counts['views']} {'photo' if counts['views'] == 1 else 'photos'}",
        f"{counts['triangles']:,} triangles",
        f"{counts['splats']:,} splats",
        f"seed {result.settings.seed}",
    )
    steps = f"{len(result.cached)} of {len(STAGES)} steps"
    reused = f"<p>{steps} did not have to be repeated.</p>" if result.cached else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    return _panel("done", "Finished", _join(clock(result.seconds)), f"<p>{facts}</p>{reused}{notes}")


def said(title: str, sentences: Iterable[str] = ()) -> str:
    """Something that ended well, in other words."""
    return _panel("done", title, "", "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences))


def stopped(title: str, sentences: Iterable[str]) -> str:
    """Why there is no new result; an earlier one stays on the page."""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return _panel("stopped", title, "", lines)


def ending(error: BaseException | None) -> str:
    """Why a job ended without a result."""
    if isinstance(error, Cancelled):
        return stopped("Cancelled", [])
    if isinstance(error, Removed):
        return stopped("Away for too long", [str(error)])
    if isinstance(error, InputError):
        return stopped("That did not work", sentences_of(error))
    if isinstance(error, JobError):
        return stopped("Something went wrong", [str(error)])
    return stopped("Something went wrong", ["The studio failed. Please try again; the server's log says more."])


def alerts(sentences: Iterable[str]) -> str:
    """Sentences about files that were left out."""
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="alerts" role="alert">{lines}</ul>' if lines else ""


def clock(seconds: float) -> str:
    """75 as "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def span(seconds: float) -> str:
    """A length of time in words: 3600 as "an hour", 5400 as "2 hours"."""
    units = (86_400, "a day"), (3600, "an hour"), (60, "a minute"), (1, "a second")
    length, unit = next((unit for unit in units if seconds >= unit[0]), units[-1])
    count = max(1, round(seconds / length))
    return unit if count == 1 else f"{count} {unit.partition(' ')[2]}s"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.1f} MB" if count >= 2**20 else f"{max(1, round(count / 1024))} kB"


def data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _panel(kind: str, title: str, aside: str, body: str) -> str:
    return (
        f'<section class="status {kind}"><div class="line"><strong role="status">{escape(title)}</strong>'
        f'<span class="aside">{aside}</span></div>{body}</section>'
    )


def _stages(stages: tuple[Stage, ...], current: int) -> str:
    items = []
    for index, stage in enumerate(stages):
        state = "past" if index < current else "now" if index == current else "later"
        mark = ' aria-current="step"' if state == "now" else ""
        items.append(f'<li class="{state}"{mark}>{escape(stage.title)}</li>')
    return f'<ol class="stages">{"".join(items)}</ol>'


def _pictures(previews: Mapping[str, bytes] | None, stages: tuple[Stage, ...]) -> str:
    """What has formed so far, the latest last."""
    shown = [(stage.title, previews[stage.name]) for stage in stages if previews and stage.name in previews]
    figures = "".join(
        f'<figure><img src="{data_url(jpeg)}" alt="{escape(title)} so far"><figcaption>{escape(title)}</figcaption>'
        "</figure>"
        for title, jpeg in shown
    )
    return f'<div class="previews">{figures}</div>' if figures else ""


def _join(*parts: str) -> str:
    return " &middot; ".join(part for part in parts if part)
