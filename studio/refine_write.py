"""The last stages of a refinement: pictures before and after, other lights, and every file of the result."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvdiffrec import pictures
from nvdiffrec.asset import Asset
from nvdiffrec.hdr import write_hdr
from nvdiffrec.optimise import RefineResult, ViewScore
from nvdiffrec.registration import Registration
from nvdiffrec.result import pbr_mesh
from nvdiffrec.views import Views
from studio.engine import ASSETS
from studio.events import CAMERAS, MESH, VIEWS
from studio.fingerprint import code_version
from studio.refine_events import AFTER, BEFORE, COMPARISON, ENVIRONMENT, RELIT, RefinedView
from studio.refine_job import KIND, RefineJob
from studio.refine_settings import RefineSettings
from studio.refine_stages import Report
from studio.report import device_record, sha256, versions, write_json
from studio.stages import video_bytes
from trellis.export.gltf import write_glb
from trellis.renderers.camera_formats import to_transforms
from trellis.renderers.cameras import turntable

SKIES = ASSETS / "hdri"
_SIZE_IN_NAME = "_512"  # of the sky's files


@dataclass(frozen=True, eq=False)
class Pictures:
    """Of every placed view, in order, each [H, W, 3] uint8: the photograph on white, the asset before and after."""

    photos: list[np.ndarray]
    before: list[np.ndarray]
    after: list[np.ndarray]


def compare(
    registration: Registration, asset: Asset, result: RefineResult, settings: RefineSettings, report: Report
) -> Pictures:
    """Render the asset as it came and as it is now into every view."""
    report(0, 2)
    views = registration.views
    photos = pictures.photographs(views)
    before = pictures.renders(asset, views.cameras, settings.turntable)
    report(1, 2)
    after = before
    if result.helped:
        after = pictures.renders(result.asset, result.cameras, settings.turntable, result.exposures)
    report(2, 2)
    return Pictures(photos, before, after)


def relight(result: RefineResult, settings: RefineSettings, report: Report) -> dict[str, bytes]:
    """Turntables (MP4) under every sky, by its name. Raises EncoderError if ffmpeg is missing or failed."""
    if not settings.video_frames:
        return {}
    skies = sorted(SKIES.glob("*.hdr"))
    cameras = turntable(settings.video_frames, size=settings.video_size)
    films, of = {}, len(skies) * len(cameras)
    report(0, of)
    for number, sky in enumerate(skies):
        frames = []
        for frame in pictures.relit_frames(result.asset, pictures.load_environment(sky), cameras):
            frames.append(frame)
            report(number * len(cameras) + len(frames), of)
        films[sky.stem.removesuffix(_SIZE_IN_NAME)] = video_bytes(frames)
    return films


def write_asset(
    folder: Path, job: RefineJob, result: RefineResult, registration: Registration, shown: Pictures,
    films: Mapping[str, bytes],
) -> None:  # fmt: skip
    """Write every file but run.json into an empty folder."""
    if result.helped:
        write_glb(folder / MESH, pbr_mesh(result.asset))
    else:
        shutil.copyfile(job.asset, folder / MESH)
    names = _names(registration.views)
    # Estimates stay estimates, however much they have been corrected.
    origin = "VGGT, corrected" if registration.views.predicted else None
    write_json(folder / CAMERAS, {"frame": "gltf", "predicted_by": origin, **to_transforms(result.cameras, names)})
    if result.helped and result.asset.environment is not None:
        write_hdr(folder / ENVIRONMENT, result.asset.environment.permute(1, 2, 0).numpy())
    _write_views(folder, registration.views, names)
    for name, images in ((BEFORE, shown.before), (AFTER, shown.after)):
        (folder / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number:03d}.png")
    pictures.write_picture(folder / COMPARISON, pictures.sheet([shown.photos, shown.before, shown.after]))
    (folder / RELIT).mkdir()
    for name, film in films.items():
        (folder / RELIT / f"{name}.mp4").write_bytes(film)


def table(registration: Registration, result: RefineResult, folder: Path) -> tuple[RefinedView, ...]:
    """A line for every view, those that were left out too; `folder` is where the pictures will be."""
    scores = iter(zip(result.before, result.after, _names(registration.views), strict=True))
    lines = []
    for placement in registration.placements:
        line = {"name": placement.name, "placed": placement.placed, "held_out": False,
                "confidence": placement.confidence, "residual": placement.residual}  # fmt: skip
        if placement.placed:
            before, after, file = next(scores)
            number = Path(file).name
            line.update(
                held_out=before.held_out, iou_before=before.iou, iou_after=after.iou, psnr_before=before.object_psnr,
                psnr_after=after.object_psnr, photo=folder / file, before=folder / BEFORE / number,
                after=folder / AFTER / number,
            )  # fmt: skip
        lines.append(RefinedView(**line))
    return tuple(lines)


def run_record(
    *,
    job: RefineJob,
    checkpoint: str | None,
    device: Any,
    result: RefineResult,
    registration: Registration,
    lines: Sequence[RefinedView],
    folder: Path,
    seconds: Mapping[str, float],
    cached: Sequence[str],
    peak_bytes: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The content of run.json; `folder` holds the finished files."""
    similarity = registration.similarity
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        "kind": KIND,
        "format": 1,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": job.settings.seed,
        "settings": job.settings.model_dump(mode="json"),
        "asset": {"name": job.asset.name, "sha256": sha256(job.asset)},
        "cameras_predicted": registration.views.predicted,
        "camera_network": checkpoint if job.cameras is None else None,
        "registration": {
            "rotation": similarity.rotation.tolist(),
            "scale": similarity.scale,
            "shift": similarity.shift.tolist(),
        },
        "helped": result.helped,
        "message": result.message,
        "cancelled": result.cancelled,
        "views": [_line_record(line, folder) for line in lines],
        "mean": {
            name: {"before": _means(result.before, held_out), "after": _means(result.after, held_out)}
            for name, held_out in (("held_out", True), ("training", False))
        },
        "files": files,
        "notes": list(notes),
        "device": device_record(device),
        "backends": {"mesh_rasterisation": {"name": "numba z-buffer (this package)", "licence": "Apache-2.0"}},
        "versions": versions(),
        "code": code_version(),
        "seconds": {
            **{name: round(value, 3) for name, value in seconds.items()},
            "total": round(sum(seconds.values()), 3),
        },  # fmt: skip
        "cached": list(cached),
        "peak_memory_bytes": {"rss": peak_bytes},
    }


def _line_record(line: RefinedView, folder: Path) -> dict[str, Any]:
    values = asdict(line)
    for name in ("photo", "before", "after"):
        values[name] = None if values[name] is None else values[name].relative_to(folder).as_posix()
    values["file"] = values.pop("photo")
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}


def _means(scores: Sequence[ViewScore], held_out: bool) -> dict[str, float] | None:
    chosen = [score for score in scores if score.held_out == held_out]
    if not chosen:
        return None
    fields = {"psnr": "object_psnr", "psnr_of_picture": "psnr", "iou": "iou"}
    return {name: round(float(np.mean([getattr(score, field) for score in chosen])), 4)
            for name, field in fields.items()}  # fmt: skip


def _names(views: Views) -> list[str]:
    return [f"{VIEWS}/{number:03d}.png" for number in range(len(views))]


def _write_views(folder: Path, views: Views, names: Sequence[str]) -> None:
    (folder / VIEWS).mkdir()
    for name, image, mask in zip(names, views.images, views.masks, strict=True):
        planes = np.concatenate([image.numpy(), mask.numpy()]).transpose(1, 2, 0)
        Image.fromarray((planes * 255 + 0.5).astype(np.uint8), "RGBA").save(folder / name)
