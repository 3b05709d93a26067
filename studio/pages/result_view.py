"""A finished run as HTML: the viewer, the turntable, photographs against renders, the state of the mesh, the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studio.events import (
    CAMERAS,
    COVERAGE_DATA,
    COVERAGE_MAP,
    COVERAGE_VIDEO,
    EXPORTS,
    MESH,
    RENDERS,
    RUN,
    SPLATS,
    VIDEO,
)
from studio.pages import fragments
from studio.pages.camera_edits import editor
from studio.pages.files import COLMAP, address, light_addresses

# Formats that every run of the page writes beside the usual files.
FORMATS = ("obj", "stl", "spz")

_FILES = (  # (id, path, name for the visitor, what it is)
    ("mesh", MESH, "Model (GLB)", "Textured mesh. Opens in Blender, Windows 3D Viewer, game engines and browsers."),
    ("sized", f"{EXPORTS}/asset.glb", "Model in its real size (GLB)", "The same, as long as you said it is."),
    ("obj", f"{EXPORTS}/asset_obj.zip", "Model (OBJ)", "The same as OBJ, MTL and PNG, for older tools."),
    ("stl", f"{EXPORTS}/asset.stl", "For printing (STL)", "The surface alone, without colours."),
    ("gaussian", SPLATS, "Splats (PLY)", "3D Gaussian splats in the usual layout."),
    ("spz", f"{EXPORTS}/asset.spz", "Splats, small (SPZ)", "The same splats, compressed about tenfold."),
    ("video", VIDEO, "Turntable (MP4)", "Colour beside surface directions."),
    ("transforms", CAMERAS, "Cameras (JSON)", "Where each photo was taken from, in the NeRF convention."),
    ("coverage", COVERAGE_MAP, "Coverage map (PNG)", "Which texels were observed, inferred or invented."),
    ("coverage-data", COVERAGE_DATA, "Coverage data (NPZ)", "The same as arrays, with the views that saw each texel."),
    ("run", RUN, "Report (JSON)", "Settings, seed, scores, versions, times: enough to make the same model again."),
)
_CLASSES = (
    ("observed", "Observed", "at least one photo looks at it"),
    ("inferred", "Inferred", "next to what was observed, or seen at a flat angle"),
    ("invented", "Invented", "no photo shows it; the networks made it up"),
)


class ResultView:
    """The pieces of a page about one run.

    Args:
        key: of the run's folder on the shelf.
        folder: of a finished run.
    """

    def __init__(self, key: str, folder: Path) -> None:
        self._key, self._folder = key, folder
        self.record: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
        # A run may be baked again in its folder; browsers must then not show the files of before.
        self._version = (folder / RUN).stat().st_mtime_ns

    def model(self) -> str:
        """The viewer."""
        cameras = f'cameras="{self._at(CAMERAS)}" photos="{address(self._key)}"' if self.registered else ""
        return (
            f'<studio-viewer id="model" mesh="{self._at(MESH)}" splats="{self._at(SPLATS)}" {cameras} '
            f'lights="{light_addresses()}" label="The model in 3D"></studio-viewer>'
            '<p class="hint">Drag or use the arrow keys to turn, scroll to zoom, right-drag to move.</p>'
        )

    @property
    def registered(self) -> bool:
        """Whether the cameras stand around the model."""
        return self.record["camera_frame"] == "object"

    @property
    def view_names(self) -> list[str]:
        return [str(view["name"]) for view in self.record["views"]]

    def stated_cameras(self) -> list[dict[str, Any] | None]:
        """Of each view, the frame of the camera that was set by hand, if it was."""
        return [camera and camera["stated"] for camera in self._cameras]

    @property
    def _cameras(self) -> list[dict[str, Any] | None]:
        return [view.get("camera") for view in self.record["views"]]

    def cameras(self, edited: Sequence[dict[str, Any] | None] | None) -> str:
        """The model among its cameras, which can be set by hand.

        edited: those that have been set and not used yet; None for those that the run was made with.
        """
        if not self.registered:
            return fragments.hint("These networks do not place the photos around the model: nothing to correct.")
        found = [camera and (camera["found"] or camera["stated"]) for camera in self._cameras]
        return (
            f'<section class="cameras"><studio-viewer id="run-cameras-view" mesh="{self._at(MESH)}" framed '
            f'cameras="{self._at(CAMERAS)}" photos="{address(self._key)}" lights="{light_addresses()}" '
            'label="The model among the cameras of its photos"></studio-viewer>'
            f"{editor(address(self._key), self.stated_cameras() if edited is None else edited, found)}</section>"
        )

    def turntable(self) -> str:
        if not (self._folder / VIDEO).is_file():
            return fragments.hint("No turntable was filmed.")
        return (
            f'<video id="turntable" src="{self._at(VIDEO)}" autoplay loop muted playsinline controls '
            'aria-label="Turntable of the model"></video>'
            '<p class="hint">Colour on the left, surface direction (normals) on the right.</p>'
        )

    def photographs(self) -> str:
        """A slider per view."""
        agreement = self.record["quality"]["agreement"]
        if agreement is None:
            return fragments.hint("These networks do not place the photos around the model: nothing to compare.")
        mean = agreement["mean"]["mesh"]
        cards = []
        for number, (view, scores) in enumerate(zip(self.record["views"], agreement["views"], strict=True)):
            render = f"{RENDERS}/{number:03d}.png"
            cards.append(
                f'<figure><studio-slider before="{self._at(view["file"])}" after="{self._at(render)}" '
                'before-label="Photo" after-label="Model"></studio-slider>'
                f"<figcaption><b>{number + 1}. {escape(view['name'])}</b>"
                f"<span>{_scores(scores['mesh'])}</span></figcaption></figure>"
            )
        return (
            f'<p class="hint">Drag the line in each picture. On average: {_scores(mean)}.</p>'
            f'<div class="sliders">{"".join(cards)}</div>'
        )

    def checks(self) -> str:
        """Mesh health, and the map of what is known."""
        return self._coverage() + self._health()

    def files(self) -> str:
        """A link to everything, with its size."""
        rows = []
        for id, path, name, what in _FILES:
            file = self._folder / path
            if file.is_file():
                download = escape(Path(path).name)
                rows.append(
                    f'<li><a id="download-{id}" href="{self._at(path)}" download="{download}">{name}'
                    f"</a><span>{fragments.size(file.stat().st_size)}</span><p>{what}</p></li>"
                )
            if path == CAMERAS and file.is_file():
                rows.append(colmap_row("download", self._at(COLMAP)))
        return f'<ul class="files">{"".join(rows)}</ul>'

    def _at(self, path: str) -> str:
        return address(self._key, path, f"{self._version:x}")

    def _coverage(self) -> str:
        coverage = self.record["quality"]["coverage"]
        if coverage is None:
            return ""
        shares, colors = coverage["shares"], coverage["colors"]

        def paint(name: str) -> str:
            return "rgb({}, {}, {})".format(*colors[name])

        bar = "".join(
            f'<i style="width:{100 * shares[name]:.1f}%;background:{paint(name)}" '
            f'title="{title}: {shares[name]:.0%}"></i>'
            for name, title, _ in _CLASSES
        )
        legend = "".join(
            f'<li><i style="background:{paint(name)}"></i><b>{shares[name]:.0%} {title.lower()}</b> {what}</li>'
            for name, title, what in _CLASSES
        )
        film = ""
        if (self._folder / COVERAGE_VIDEO).is_file():
            film = (
                f'<video src="{self._at(COVERAGE_VIDEO)}" autoplay loop muted playsinline '
                'aria-label="Map of what is known, turning"></video>'
            )
        return (
            '<section class="coverage"><h3>What the photos show of it</h3>'
            f'<div class="shares" role="img" aria-label="{shares["observed"]:.0%} observed">{bar}</div>'
            f'<div class="beside">{film}<ul class="legend">{legend}</ul></div></section>'
        )

    def _health(self) -> str:
        mesh = self.record["quality"]["mesh"]
        concerns = mesh.get("concerns") or []
        verdict = (
            '<p class="good">Watertight and without faults.</p>'
            if mesh["watertight"] and not concerns
            else "".join(f'<p class="concern">{escape(concern)}</p>' for concern in concerns)
            or '<p class="good">No faults found.</p>'
        )
        facts = (
            ("Triangles", "faces after simplification", f"{mesh['faces']:,}"),
            ("Corners", "welded vertices", f"{mesh['vertices']:,}"),
            ("Pieces", "connected components", f"{mesh['components']:,}"),
            ("Closed", "watertight: every edge joins two faces that wind alike", "yes" if mesh["watertight"] else "no"),
            ("Open edges", "boundary edges", f"{mesh['boundary_edges']:,}"),
            ("Tangled edges", "non-manifold edges: more than two faces", f"{mesh['non_manifold_edges']:,}"),
            ("Turned faces", "faces that wind against their piece", f"{mesh['flipped_faces']:,}"),
            (
                "Moved by",
                "Hausdorff distance to the mesh before simplification, in parts of the frame's side",
                _parts(mesh["hausdorff"]),
            ),
            ("Texture", "base colour, pixels a side", f"{mesh['texture_size']:,}"),
            ("Texture in use", "share of the UV square that charts cover", f"{mesh['uv_coverage']:.0%}"),
            ("Texture charts", "UV islands", f"{mesh['charts']:,}"),
            ("Texture detail", "texels along the frame's side, from total areas", f"{mesh['texels_per_unit']:,.0f}"),
            ("File", "size of the GLB", fragments.size((self._folder / MESH).stat().st_size)),
        )
        items = "".join(f'<div title="{why}"><dt>{what}</dt><dd>{value}</dd></div>' for what, why, value in facts)
        return f'<section class="health"><h3>The mesh</h3>{verdict}<dl>{items}</dl></section>'


def colmap_row(prefix: str, at: str) -> str:
    """The line about the cameras for COLMAP in a list of files. `prefix`: of the link's id; `at`: its address."""
    return (
        f'<li><a id="{prefix}-colmap" href="{at}" download="{COLMAP}">Cameras (COLMAP)</a><span>ZIP</span>'
        "<p>COLMAP's text files, and the views that they belong to: opens in COLMAP, trains splats.</p></li>"
    )


def _parts(share: float | None) -> str:
    return "not measured" if share is None else f"{1000 * share:.1f} &permil;"


def _scores(scores: Mapping[str, float | None]) -> str:
    parts = []
    if scores.get("psnr") is not None:
        parts.append(f'<abbr title="Peak signal-to-noise ratio; higher is closer">{scores["psnr"]:.1f} dB</abbr>')
    if scores.get("iou") is not None:
        parts.append(f'<abbr title="Intersection over union of the outlines">{scores["iou"]:.0%} outline</abbr>')
    return " &middot; ".join(parts)
