"""A refinement as HTML: its course while it runs, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from studio.pages import fragments
from studio.pages.files import COLMAP, address, light_addresses, light_order, light_title
from studio.pages.result_view import colmap_row
from studio.refine_events import Refined, RefinedView, RefineProgress
from studio.refine_stages import STAGES

_WIDTH, _HEIGHT = 560, 120  # of a curve, in units of its picture
_MAX_POINTS = 280

_FILES = (
    ("mesh", "mesh.glb", "Refined model (GLB)", "With base colour, roughness, metallic and relief as far as fitted."),
    ("transforms", "transforms.json", "Cameras (JSON)", "Where the photos were taken from, after the fit."),
    ("environment", "environment.hdr", "Light (HDR)", "The light that was found in the photos."),
    ("comparison", "comparison.png", "Comparison (PNG)", "Photos, model before, model after, on one sheet."),
    ("run", "run.json", "Report (JSON)", "Settings, scores per photo, versions and times."),
)


def running(
    progress: RefineProgress,
    losses: Sequence[tuple[int, float]],
    scores: Sequence[tuple[int, float]],
    previews: Mapping[str, bytes],
) -> str:
    """The stages, the curves so far and the latest picture."""
    curves = ""
    if len(losses) > 1:
        last = progress.of if progress.stage == "optimise" else losses[-1][0]
        curves = (
            '<div class="curves"><figure><figcaption>Difference to the photos (loss)</figcaption>'
            f'{curve(losses, last)}</figure>'
        )
        if scores:
            title = f"Agreement with the judging photos: {scores[-1][1]:.2f} dB"
            curves += f"<figure><figcaption>{title}</figcaption>{curve(scores, last, 1.0, dots=True)}</figure>"
        curves += "</div>"
    return fragments.running(progress, previews, STAGES) + curves


def curve(points: Sequence[tuple[int, float]], last: int, least: float = 0.0, dots: bool = False) -> str:
    """A line over steps 0 to `last`, scaled to its own range, but to no less than `least`."""
    step = max(1, len(points) // _MAX_POINTS)
    points = [*points[::step], points[-1]]
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = max(high - low, least) or 1.0
    low = (low + high - span) / 2

    def place(at: int, value: float) -> str:
        return f"{_WIDTH * at / max(last, 1):.1f},{8 + (_HEIGHT - 16) * (1 - (value - low) / span):.1f}"

    places = [place(at, value) for at, value in points]
    marks = "".join(f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in (p.split(",") for p in places)) if dots else ""
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="From {points[0][1]:.3g} to '
        f'{points[-1][1]:.3g}" preserveAspectRatio="none"><polyline points="{" ".join(places)}"/>{marks}</svg>'
    )


def result(refined: Refined, key: str) -> dict[str, str]:
    """Pieces of the page: "verdict", "model", "views", "lights", "files"."""
    version = f"{refined.run.stat().st_mtime_ns:x}"

    def at(file: Path) -> str:
        return address(key, file.relative_to(refined.folder).as_posix(), version)

    viewer = (
        f'<studio-viewer id="refined-model" mesh="{at(refined.mesh)}" cameras="{at(refined.transforms)}" '
        f'photos="{address(key)}" lights="{light_addresses()}" label="The refined model in 3D"></studio-viewer>'
        '<p class="hint">Choose a light above the model, or bring your own: <b>Own light</b> opens an HDR file.</p>'
    )
    lights = "".join(
        f'<figure><video src="{at(refined.relit[name])}" autoplay loop muted playsinline '
        f'aria-label="Under the light {escape(light_title(name))}"></video>'
        f"<figcaption>{escape(light_title(name))}</figcaption></figure>"
        for name in sorted(refined.relit, key=light_order)
    )
    rows = []
    for id, name, title, what in _FILES:
        file = refined.folder / name
        if file.is_file():
            rows.append(
                f'<li><a id="refined-{id}" href="{at(file)}" download="{name}">{title}</a>'
                f"<span>{fragments.size(file.stat().st_size)}</span><p>{what}</p></li>"
            )
        if id == "transforms" and file.is_file():
            rows.append(colmap_row("refined", at(refined.folder / COLMAP)))
    wall = f'<studio-wall class="lights">{lights}</studio-wall>'
    return {
        "verdict": _verdict(refined),
        "model": viewer,
        "views": _views(refined, at),
        "lights": wall if lights else fragments.hint("No lights were filmed."),
        "files": f'<ul class="files">{"".join(rows)}</ul>',
    }


def _verdict(refined: Refined) -> str:
    title = "Refined" if refined.helped else "Refining did not help"
    if refined.cancelled:
        title += ", stopped early"
    sentences = [refined.message, *refined.notes]
    if not refined.helped:
        sentences.append("The model below is the one that came in, unchanged.")
        return fragments.stopped(title, sentences)
    return fragments.said(title, sentences)


def _views(refined: Refined, at: Callable[[Path], str]) -> str:
    cards = "".join(_view(number, view, at) for number, view in enumerate(refined.views, start=1))
    return (
        '<p class="hint">Drag the line in each picture: before on the left, after on the right, the photo above. '
        f'A photo that judges taught the fit nothing.</p><div class="sliders">{cards}</div>'
    )


def _view(number: int, view: RefinedView, at: Callable[[Path], str]) -> str:
    name = f"{number}. {escape(view.name)}"
    if not view.placed or view.before is None or view.after is None or view.photo is None:
        return (
            f'<figure><div class="pending">Left out: its camera could not be placed around the model '
            f"(confidence {view.confidence:.0%}).</div><figcaption><b>{name}</b></figcaption></figure>"
        )
    judge = ""
    if view.held_out:
        judge = '<span class="badge calm" title="Held out: it taught the fit nothing">Judges</span>'
    psnr = f"{view.psnr_before:.1f} &rarr; <b>{view.psnr_after:.1f} dB</b>"
    iou = f"{view.iou_before:.0%} &rarr; {view.iou_after:.0%} outline"
    return (
        f'<figure><img class="photo" src="{at(view.photo)}" alt="{name}, the photo">'
        f'<studio-slider before="{at(view.before)}" after="{at(view.after)}" before-label="Before" '
        'after-label="After"></studio-slider>'
        f'<figcaption><b>{name} {judge}</b></figcaption><p class="hint">{psnr} &middot; {iou}</p></figure>'
    )
