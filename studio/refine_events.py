"""What a refinement tells while it runs, and what it ends in. All of it crosses process borders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from studio.events import CAMERAS, MESH, RUN, VIEWS, AssetFolder, Progress
from studio.refine_settings import RefineSettings

ENVIRONMENT, RELIT, BEFORE, AFTER, COMPARISON = "environment.hdr", "relit", "before", "after", "comparison.png"
# Everything that a refinement may leave in its folder.
WRITTEN = (MESH, CAMERAS, ENVIRONMENT, RELIT, VIEWS, BEFORE, AFTER, COMPARISON, RUN)


@dataclass(frozen=True)
class RefineProgress(Progress):
    """Where a refinement is; `stage` is a name from `studio.refine_stages.STAGES`.

    Attributes:
        loss: of the latest step of "optimise", else None.
        psnr: mean over the object of the held-out views (of all views if there are fewer than six), in dB, whenever it
            has been measured anew; the preview then shows one of them.
    """

    loss: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class RefinedView:
    """A photograph's line in the table.

    Attributes:
        name: as the job named it.
        placed: whether its camera could be placed around the asset; if not, it was left out.
        held_out: it judged the result and taught it nothing.
        confidence: of its camera's placement, in [0, 1].
        residual: mean distance of the outlines after placing, in percent of the picture's side.
        iou_before, iou_after: of the silhouettes; None for a view that was left out.
        psnr_before, psnr_after: over the object, in dB; None likewise.
        photo, before, after: pictures of one size, in the result's folder; None likewise.
    """

    name: str
    placed: bool
    held_out: bool
    confidence: float
    residual: float
    iou_before: float | None = None
    iou_after: float | None = None
    psnr_before: float | None = None
    psnr_after: float | None = None
    photo: Path | None = None
    before: Path | None = None
    after: Path | None = None


@dataclass(frozen=True)
class Refined(AssetFolder):
    """The finished files, and whether refining helped.

    Attributes:
        helped: if not, `mesh` is the asset as it came, byte by byte.
        message: whether and by how much, in a sentence.
        cancelled: it was stopped early; this is the best state until then.
        relit: turntables under other lights, by the name of the light; none if it was cancelled.
        cached: the stages that did not have to run.
        notes: sentences about the result, such as which view was left out.
    """

    folder: Path
    settings: RefineSettings
    seconds: float
    helped: bool
    message: str
    cancelled: bool
    views: tuple[RefinedView, ...]
    relit: dict[str, Path]
    cached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def environment(self) -> Path | None:
        """The light that was found in the photographs, as HDR; None if it was not asked for, or nothing helped."""
        file = self.folder / ENVIRONMENT
        return file if file.is_file() else None

    @property
    def comparison(self) -> Path:
        """One sheet: the photographs, the asset before, and after."""
        return self.folder / COMPARISON
