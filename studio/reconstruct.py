"""The reconstruction job: photographs in, a folder of files out, with live progress and a way to stop.

The folder it fills:

    mesh.glb          textured mesh
    gaussian.ply      3D Gaussian splats
    turntable.mp4     colour beside normals
    transforms.json   the camera of each view, for the images in views/
    views/000.png     the views as the networks saw them: cut out, centred, square
    run.json          how it was made; written last, so its presence says that the folder is complete

All of them share the glTF frame (y up).
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from studio import stages
from studio.inputs import View, as_views
from studio.report import PeakMemory, run_record, write_json
from studio.settings import ReconstructSettings
from studio.stages import STAGES, PreparedView
from trellis.errors import InputError
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline
from trellis.renderers.camera_formats import to_transforms
from trellis.renderers.cameras import Cameras

MESH, SPLATS, VIDEO, CAMERAS, RUN, VIEWS = (
    "mesh.glb", "gaussian.ply", "turntable.mp4", "transforms.json", "run.json", "views",
)  # fmt: skip

_HEARTBEAT = 0.5  # seconds between repeated messages while a step takes longer
_MESSAGES = {stage.name: stage.message for stage in STAGES}


class Cancelled(Exception):  # noqa: N818 (it is an outcome, not an error)
    """The job was stopped on request; it left no files."""


@dataclass(frozen=True)
class Progress:
    """Where a job is: `step` of `of` in `stage`, `seconds` after its start."""

    stage: str
    step: int
    of: int
    message: str
    seconds: float


@dataclass(frozen=True)
class Result:
    """The finished files, and how long they took in all."""

    folder: Path
    settings: ReconstructSettings
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def mesh(self) -> Path:
        return self.folder / MESH

    @property
    def gaussian(self) -> Path:
        return self.folder / SPLATS

    @property
    def turntable(self) -> Path:
        return self.folder / VIDEO

    @property
    def transforms(self) -> Path:
        return self.folder / CAMERAS

    @property
    def run(self) -> Path:
        return self.folder / RUN

    @property
    def views(self) -> list[Path]:
        return sorted((self.folder / VIEWS).iterdir())


def reconstruct(
    views: Iterable[str | PathLike | Image.Image | View],
    settings: ReconstructSettings,
    out_dir: str | PathLike,
    pipeline: TrellisVGGTTo3DPipeline,
    *,
    cancel: threading.Event | None = None,
    checkpoint: str | None = None,
) -> Iterator[Progress | Result]:
    """Reconstruct the object that the views show; yields Progress at least twice a second, and a Result at the end.

    The work happens in a thread of its own. Files appear in `out_dir` only when all of them are finished; whatever run
    was there before stays until then.

    Args:
        views: 1 to 32 images, image files, or one folder of them; the first one defines the front.
        settings: see `studio.settings`.
        out_dir: folder for the files; made if it is missing.
        pipeline: the networks.
        cancel: set it to stop the job within one sampler step. Closing the generator does the same.
        checkpoint: what to call the networks in run.json.

    Raises:
        InputError: the views or the folder cannot be used, or no object came out of the views.
        Cancelled: `cancel` was set.
    """
    views = as_views(views)
    job = _Job(views, settings.with_drawn_seed(), Path(out_dir), pipeline, cancel or threading.Event(), checkpoint)
    thread = threading.Thread(target=job.run, name="reconstruction", daemon=True)
    thread.start()
    try:
        latest: Progress | None = None
        while True:
            try:
                message = job.messages.get(timeout=_HEARTBEAT)
            except queue.Empty:
                if latest is not None:
                    yield Progress(latest.stage, latest.step, latest.of, latest.message, job.elapsed())
                continue
            if isinstance(message, BaseException):
                raise message
            yield message
            if isinstance(message, Result):
                return
            latest = message
    finally:
        job.abandoned = True  # of no effect on a finished job
        thread.join()


class _Job:
    """One reconstruction, run by a worker thread, telling its progress, result or exception through `messages`."""

    def __init__(
        self,
        views: list[View],
        settings: ReconstructSettings,
        out_dir: Path,
        pipeline: TrellisVGGTTo3DPipeline,
        cancel: threading.Event,
        checkpoint: str | None,
    ) -> None:
        self.messages: queue.SimpleQueue[Progress | Result | BaseException] = queue.SimpleQueue()
        self.abandoned = False
        self._cancel = cancel
        self._views, self._settings, self._out_dir = views, settings, out_dir
        self._pipeline, self._checkpoint = pipeline, checkpoint
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def run(self) -> None:
        """Do the work. Whatever happens ends up in `messages`, because nobody else watches this thread."""
        try:
            with PeakMemory(self._pipeline.device) as memory, _staging(self._out_dir) as staging:
                counts = self._fill(staging, memory)
                self._publish(staging)
            self.messages.put(Result(self._out_dir, self._settings, self.elapsed(), counts))
        except BaseException as error:
            self.messages.put(error)

    def _fill(self, folder: Path, memory: PeakMemory) -> dict[str, int]:
        """Run all stages and write all files into `folder`; returns how large things came out."""
        pipeline, settings = self._pipeline, self._settings
        prepared = self._stage("prepare", stages.prepare, self._views, pipeline)
        conditions = self._stage("cameras", stages.cameras, prepared, pipeline)
        coords = self._stage("structure", stages.structure, conditions, settings, pipeline)
        slat = self._stage("latent", stages.latent, conditions, coords, settings, pipeline)
        gaussian, decoded = self._stage("decode", stages.decode, slat, pipeline)
        dense, atlas = self._stage("mesh", stages.mesh, decoded, settings)
        asset = self._stage("bake", stages.bake, dense, atlas, gaussian, settings)
        self._stage("video", stages.video, gaussian, decoded, folder / VIDEO)

        counts = {
            "views": len(prepared),
            "voxels": len(coords),
            "splats": len(gaussian),
            "decoded_triangles": len(decoded.faces),
            "triangles": len(asset.faces),
        }
        started = time.monotonic()
        self._report("write", 0, 3)
        asset.export(folder / MESH)
        self._report("write", 1, 3)
        gaussian.save_ply(folder / SPLATS, frame="gltf")
        self._report("write", 2, 3)
        view_files = save_views(prepared, folder)
        write_json(folder / CAMERAS, camera_record(conditions.cameras, view_files, pipeline.camera_frame))
        self._seconds["write"] = time.monotonic() - started
        record = run_record(
            pipeline=pipeline,
            checkpoint=self._checkpoint,
            settings=settings,
            views=prepared,
            view_files=view_files,
            files=[MESH, SPLATS, VIDEO, CAMERAS, *view_files],
            seconds=self._seconds,
            memory=memory,
            counts=counts,
        )
        write_json(folder / RUN, record)
        self._report("write", 3, 3)
        return counts

    def _stage(self, name: str, function: Any, *inputs: Any) -> Any:
        started = time.monotonic()
        output = function(*inputs, lambda step, of: self._report(name, step, of))
        self._seconds[name] = time.monotonic() - started
        return output

    def _report(self, stage: str, step: int, of: int) -> None:
        if self._cancel.is_set() or self.abandoned:
            raise Cancelled
        self.messages.put(Progress(stage, step, of, _MESSAGES[stage], self.elapsed()))

    def _publish(self, staging: Path) -> None:
        """Move the finished files into place; run.json goes first and comes back last."""
        target = self._out_dir
        (target / RUN).unlink(missing_ok=True)
        shutil.rmtree(target / VIEWS, ignore_errors=True)
        for name in (VIEWS, MESH, SPLATS, VIDEO, CAMERAS, RUN):
            os.replace(staging / name, target / name)


def save_views(prepared: list[PreparedView], folder: Path) -> list[str]:
    """Write the prepared views as views/000.png and so on; returns these names."""
    (folder / VIEWS).mkdir()
    names = [f"{VIEWS}/{number:03d}.png" for number in range(len(prepared))]
    for name, view in zip(names, prepared, strict=True):
        view.image.save(folder / name)
    return names


def camera_record(cameras: Cameras, view_files: list[str], camera_frame: str) -> dict[str, Any]:
    """The content of transforms.json.

    Cameras in the object frame are written in the glTF frame, like the mesh. Those in the frame of the first view are
    not registered to the asset: they keep their own axes and scale, and the record says so.
    """
    if camera_frame == "object":
        return {"frame": "gltf", **to_transforms(cameras, view_files, frame="gltf")}
    return {"frame": "first view, not registered to the asset", **to_transforms(cameras, view_files, frame="object")}


@contextmanager
def _staging(out_dir: Path) -> Iterator[Path]:
    """A hidden folder inside `out_dir` for unfinished files.

    It is gone afterwards; after a failure so are the folders made for it, unless somebody else has put files there.
    """
    made = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out_dir))
    except OSError as error:
        raise InputError(f"Nothing can be written to '{out_dir}': {error.strerror or error}.") from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
