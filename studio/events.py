"""What a job tells while it runs, and how it can end. All of it crosses process borders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.settings import ReconstructSettings

MESH, SPLATS, VIDEO, CAMERAS, RUN, VIEWS, PHOTOS = (
    "mesh.glb", "gaussian.ply", "turntable.mp4", "transforms.json", "run.json", "views", "photos",
)  # fmt: skip
COVERAGE_MAP, COVERAGE_MESH, COVERAGE_VIDEO, COVERAGE_DATA, RENDERS, EXPORTS = (
    "coverage.png", "coverage.glb", "coverage.mp4", "coverage.npz", "renders", "exports",
)  # fmt: skip
# Everything that a run may leave in its folder.
WRITTEN = (
    MESH, SPLATS, VIDEO, CAMERAS, VIEWS, PHOTOS, COVERAGE_MAP, COVERAGE_MESH, COVERAGE_VIDEO, COVERAGE_DATA, RENDERS,
    EXPORTS, RUN,
)  # fmt: skip


class Cancelled(Exception):  # noqa: N818 (it is an outcome, not an error)
    """The job was stopped on request; it left no files."""


class JobError(Exception):
    """The job failed through no fault of its input.

    Attributes:
        kind: "memory" (there was too little of it), "worker" (its process died), or "bug".
        details: for the log, such as a traceback.
    """

    def __init__(self, sentence: str, kind: str = "bug", details: str = "") -> None:
        super().__init__(sentence)
        self.kind, self.details = kind, details


@dataclass(frozen=True)
class Queued:
    """The job waits; `ahead` others come first."""

    ahead: int


@dataclass(frozen=True)
class Note:
    """Something worth knowing that is no progress, in one sentence."""

    message: str


@dataclass(frozen=True)
class Progress:
    """Where a job is.

    Attributes:
        stage: a name from `studio.stages.STAGES`.
        step, of: `step` of `of` are done.
        message: what is going on, for a person.
        seconds: since the job began.
        remaining: seconds it will probably take from here, judged by earlier jobs on this machine; None if unknown.
        preview: a JPEG of at most 256 pixels a side, or None. One comes at the end of "prepare" (the views),
            "structure" (the voxels), "decode" and "paint" (the splats) and "bake" (the texture), from the cache too.
        cached: the stage's output was there already.
    """

    stage: str
    step: int
    of: int
    message: str
    seconds: float
    remaining: float | None = None
    preview: bytes | None = field(default=None, repr=False)
    cached: bool = False


@dataclass(frozen=True)
class FoundView:
    """A view whose camera has been found.

    Attributes:
        name: as the job named it.
        picture: the cut-out view, a JPEG of at most 256 pixels a side.
        mask: what belongs to the object in it, a grey PNG of 256 pixels a side.
        cut_out_by: "alpha", "rembg" or "grabcut".
        notes: what may be wrong with the photograph, see `studio.quality`.
        trust: in the camera's place, from 0 to 1, see `studio.trust`; None if it could not be judged.
    """

    name: str
    picture: bytes = field(repr=False)
    mask: bytes = field(repr=False)
    cut_out_by: str
    notes: tuple[dict[str, Any], ...]
    trust: float | None = None


@dataclass(frozen=True)
class CamerasFound:
    """The end of a job that stops once the cameras are known. It has written no files.

    Attributes:
        job: its id.
        views: in the order of the job; view k belongs to frame k of `transforms`.
        transforms: what transforms.json would hold. Its "frame" is "gltf" if the cameras stand around the asset to
            come, which then lies within [-0.5, 0.5]^3; `trellis.renderers.camera_formats.from_transforms` reads it.
        seconds: they took.
        cached: the stages that did not have to run.
        notes: sentences about the job.
    """

    job: str
    views: tuple[FoundView, ...]
    transforms: dict[str, Any] = field(repr=False)
    seconds: float
    cached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class AssetFolder:
    """What every finished folder holds."""

    folder: Path

    @property
    def mesh(self) -> Path:
        return self.folder / MESH

    @property
    def transforms(self) -> Path:
        return self.folder / CAMERAS

    @property
    def run(self) -> Path:
        return self.folder / RUN


@dataclass(frozen=True)
class Result(AssetFolder):
    """The finished files, and how long they took in all.

    Attributes:
        cached: the stages that did not have to run.
        notes: sentences about the result (settings that were lowered to fit the memory, and so on).
    """

    folder: Path
    settings: ReconstructSettings
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gaussian(self) -> Path:
        return self.folder / SPLATS

    @property
    def turntable(self) -> Path | None:
        """The video, unless none was asked for or there was no ffmpeg."""
        file = self.folder / VIDEO
        return file if file.is_file() else None

    @property
    def views(self) -> list[Path]:
        return sorted((self.folder / VIEWS).iterdir())
