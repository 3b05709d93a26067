"""The last two stages: check the asset against the photographs, and write every file of the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from studio import agreement, coverage, stages
from studio.engine import Engine
from studio.events import (
    CAMERAS,
    COVERAGE_DATA,
    COVERAGE_MAP,
    COVERAGE_MESH,
    COVERAGE_VIDEO,
    EXPORTS,
    MESH,
    PHOTOS,
    RENDERS,
    RUN,
    SPLATS,
    VIDEO,
    VIEWS,
)
from studio.job import Job
from studio.recipe import Recipe
from studio.report import photo_name, run_record, sha256, write_json
from studio.view_cameras import ViewCamera
from trellis.export.bundle import export_files
from trellis.export.health import mesh_health
from trellis.renderers.camera_formats import to_transforms
from trellis.renderers.cameras import Cameras

if TYPE_CHECKING:
    from studio.runner import Run


def write_files(run: Run, recipe: Recipe, film: bytes, job: Job, engine: Engine, folder: Path) -> dict[str, int]:
    """Run the stages "report" and "write" of a job; returns how large things came out. film: MP4, empty for none."""
    settings, frame = run.plan.settings, recipe.camera_frame
    prepared = recipe["prepare"].value()
    cameras = recipe.cameras()
    coords = recipe["structure"].value()
    gaussian, decoded = recipe["paint"].value(), recipe["decode"].value()[1]
    asset = recipe["bake"].value()
    registered = frame == "object"
    quality = run.timed(
        "report",
        partial(_check, asset, recipe["mesh"].value().hausdorff, gaussian, cameras if registered else None, prepared,
                settings, bool(film), folder),
    )  # fmt: skip

    def write(report: stages.Report) -> list[str]:
        report(0, 4)
        asset.export(folder / MESH)
        quality["mesh"]["file_bytes"] = (folder / MESH).stat().st_size
        report(1, 4)
        gaussian.save_ply(folder / SPLATS, frame="gltf")
        if film:
            (folder / VIDEO).write_bytes(film)
        report(2, 4)
        view_files = _save_views(prepared, folder)
        write_json(folder / CAMERAS, camera_record(cameras, view_files, frame, recipe.stated))
        # Of the usual files, a mesh of the real size is the one that would be missed.
        formats = (*job.formats, "glb") if settings.longest_side else job.formats
        if formats:
            export_files(
                folder / EXPORTS, asset, gaussian, cameras if registered else None,
                [f"../{name}" for name in view_files], formats, settings.longest_side,
            )  # fmt: skip
        report(3, 4)
        return view_files

    run.timed("write", write)
    started = time.monotonic()
    counts = {
        "views": len(prepared),
        "voxels": len(coords),
        "splats": len(gaussian),
        "decoded_triangles": len(decoded.faces),
        "triangles": len(asset.faces),
    }
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    run.seconds["write"] += time.monotonic() - started
    record = run_record(
        engine=engine,
        settings=settings,
        asked=job.settings,
        views=prepared,
        photographs=recipe.photographs,
        camera_frame=frame,
        cameras=recipe.camera_records(),
        files=files,
        seconds=run.seconds,
        cached=run.cached,
        peaks=run.memory_record(),
        counts=counts,
        quality=quality,
        notes=run.notes,
    )
    write_json(folder / RUN, record)
    run.report("write", 4, 4)
    return counts


def _check(
    asset: Any, hausdorff: float, gaussian: Any, cameras: Cameras | None, prepared: list[Any], settings: Any,
    filmed: bool, folder: Path, report: stages.Report,
) -> dict[str, Any]:  # fmt: skip
    """Measure the asset; pictures go to the folder. Without registered cameras only the mesh can be looked at."""
    total = len(prepared) + 2
    report(0, total)
    health = mesh_health(asset, hausdorff=hausdorff)
    state = {**health.as_dict(), "concerns": health.concerns}
    quality: dict[str, Any] = {"mesh": state, "agreement": None, "coverage": None}
    if cameras is not None:
        compared = agreement.compare(asset, gaussian, cameras, prepared, lambda step, of: report(step, total))
        (folder / RENDERS).mkdir()
        for number, comparison in enumerate(compared):
            comparison.render.save(folder / RENDERS / f"{number:03d}.png")
        quality["agreement"] = agreement.summary(compared)
        covered = coverage.measure(asset, cameras, prepared)
        report(total - 1, total)
        Image.fromarray(covered.picture).save(folder / COVERAGE_MAP)
        replace(asset, texture=covered.picture).export(folder / COVERAGE_MESH)
        np.savez_compressed(folder / COVERAGE_DATA, classes=covered.classes, seen_by=covered.seen_by)
        if filmed:
            # A quarter of the turntable's frames at half its size: a map of colours needs no more.
            frames = coverage.turntable_frames(asset, covered, max(2, settings.video_frames // 4), _side(settings))
            (folder / COVERAGE_VIDEO).write_bytes(stages.video_bytes(frames))
        quality["coverage"] = {"shares": covered.shares, "observed_by_view": covered.by_view,
                               "colors": {name: list(color) for name, color in coverage.COLORS.items()}}  # fmt: skip
    report(total, total)
    return quality


def _side(settings: Any) -> int:
    return max(64, settings.video_size // 2)


def view_names(count: int) -> list[str]:
    """Where the prepared views of a run lie in its folder."""
    return [f"{VIEWS}/{number:03d}.png" for number in range(count)]


def _save_views(prepared: list[stages.PreparedView], folder: Path) -> list[str]:
    """Write the prepared views, and what there is of them in more pixels; returns the names of the former."""
    (folder / VIEWS).mkdir()
    names = view_names(len(prepared))
    for number, (name, view) in enumerate(zip(names, prepared, strict=True)):
        view.image.save(folder / name)
        if view.sharp is not None:
            (folder / PHOTOS).mkdir(exist_ok=True)
            view.sharp.save(folder / photo_name(number), compress_level=1)
    return names


def camera_record(
    cameras: Cameras, view_files: list[str], camera_frame: str, stated: Sequence[ViewCamera | None]
) -> dict[str, Any]:
    """The content of transforms.json. stated: per view the camera that a person states, or None.

    Cameras in the object frame are written in the glTF frame, like the mesh. Those in the frame of the first view are
    not registered to the asset: they keep their own axes and scale, and the record says so. A refinement corrects
    cameras that were predicted, and trusts those of which all were stated.
    """
    count = sum(camera is not None for camera in stated)
    predicted_by = None if count == len(stated) else f"VGGT, {count} of {len(stated)} stated" if count else "VGGT"
    if camera_frame == "object":
        origin = {"frame": "gltf", "predicted_by": predicted_by}
        if any(camera and camera.aligned for camera in stated):
            origin["aligned_to"] = "VGGT"
        return {**origin, **to_transforms(cameras, view_files, frame="gltf")}
    origin = {"frame": "first view, not registered to the asset", "predicted_by": predicted_by}
    return {**origin, **to_transforms(cameras, view_files, frame="object")}
