"""Bar b: what refining adds to assets and cameras that a checkpoint made itself.

`python -m benchmarks.refine_own OBJECT.glb... --environment SKY.hdr [--work FOLDER]`: photographs each object from
--views places, reconstructs it with the checkpoint, refines the result, and judges both by the views that refining
held out. What is in --work already (a reconstruction; a row of the table) is not made again, so the command may be
interrupted and given more objects.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.refine_objects import load_object, photograph
from nvdiffrec.asset_files import load_asset
from nvdiffrec.optimise import ViewScore, score_asset
from nvdiffrec.view_files import load_views
from studio.engine import Engine, load_engine
from studio.events import MESH, RUN
from studio.reconstruct import reconstruct
from studio.refine_job import make_refine_job
from studio.refine_runner import run_refine
from studio.refine_settings import RefineSettings
from studio.settings import make_settings
from trellis.errors import InputError
from trellis.renderers.camera_formats import from_transforms
from trellis.renderers.cameras import Cameras, orbit

GAIN_DB, GAIN_IOU, SHARE = 2.0, 0.03, 0.8  # the bar, and of how many objects it is asked
_SIZE = 512
_ROW = "row.json"
_UNFILMED = {"video_frames": 0}  # videos tell nothing about the bar


def main() -> None:
    """Refine every object and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path, help="GLB files with one textured mesh")
    parser.add_argument("--environment", type=Path, required=True, help="Radiance HDR file to light them with")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("refine-work"), help="folder for what is made")
    parser.add_argument("--checkpoint", help="default the embedded one")
    parser.add_argument("--device", default="cpu", help="of the networks")
    parser.add_argument("--steps", type=int, help="this and the next two: see `studio refine`")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--geometry")
    parser.add_argument("--again", action="store_true", help="refine once more what has a row already")
    arguments = parser.parse_args()
    engine = load_engine(arguments.checkpoint, arguments.device, print)
    given = {name: getattr(arguments, name) for name in ("steps", "resolution", "geometry")}
    settings = make_settings({**given, **_UNFILMED}, RefineSettings())
    rows = []
    for file in arguments.objects:
        kept = arguments.work / file.stem / _ROW
        if kept.is_file() and not arguments.again:
            rows.append(Row(**json.loads(kept.read_text())))
        else:
            rows.append(run_object(file, arguments.environment, engine, settings, arguments.views, arguments.work))
            kept.write_text(json.dumps(asdict(rows[-1])))
        print(rows[-1], flush=True)
    print(summary(rows))


@dataclass(frozen=True)
class Row:
    """One object. psnr (dB, over the object), iou: means of the held-out views for the asset with the cameras that the
    checkpoint made, for the same asset once the cameras are placed around it, and refined. angle: median error of the
    cameras' relative rotations in degrees (before, after). seconds: of refining, wall clock. failure: why not."""

    name: str
    psnr: tuple[float, float, float] = (math.nan,) * 3
    iou: tuple[float, float, float] = (math.nan,) * 3
    angle: tuple[float, float] = (math.nan,) * 2
    helped: bool = False
    seconds: float = math.nan
    failure: str = ""

    def reached(self, start: int) -> bool:
        """Whether the gain is what is asked: over the asset as it came (0), or with its cameras placed (1)."""
        gains = self.psnr[2] - self.psnr[start], self.iou[2] - self.iou[start]
        return self.helped and gains[0] >= GAIN_DB and gains[1] >= GAIN_IOU

    @property
    def worse(self) -> bool:
        return self.psnr[2] < max(self.psnr) or self.iou[2] < max(self.iou) - 0.005

    def __str__(self) -> str:
        if self.failure:
            return f"{self.name:32s} {self.failure}"
        notes = [", reached" if self.reached(0) else "", " twice" if self.reached(0) and self.reached(1) else "",
                 "" if self.helped else ", unchanged", ", worse" if self.worse else ""]  # fmt: skip
        return (
            f"{self.name:32s} {' -> '.join(f'{v:5.2f}' for v in self.psnr)} dB, "
            f"IoU {' -> '.join(f'{v:.3f}' for v in self.iou)}, "
            f"cameras {self.angle[0]:4.1f} -> {self.angle[1]:4.1f} degrees, {self.seconds:4.0f} s{''.join(notes)}"
        )


def run_object(file: Path, environment: Path, engine: Engine, settings: RefineSettings, views: int, work: Path) -> Row:
    """Photograph an object, reconstruct it (unless `work` holds that already), and refine the result."""
    folder = work / file.stem
    asset, texture = load_object(file)
    truth = walk_around(views)
    if not (folder / "own" / RUN).is_file():
        _save(photograph(asset, texture, environment, truth), folder / "photos")
        photos = sorted((folder / "photos").glob("*.png"))
        try:
            unfilmed = make_settings(_UNFILMED, engine.defaults)
            for _ in reconstruct(photos, unfilmed, folder / "own", engine.pipeline):
                pass
        except InputError as error:
            return Row(file.stem, failure=f"not reconstructed: {error}")
    try:
        refined = run_refine(make_refine_job(folder / "own", settings, folder / "refined"), engine)
    except InputError as error:
        return Row(file.stem, failure=f"not refined: {error}")
    placed = [index for index, view in enumerate(refined.views) if view.placed]
    judges = [index for index in placed if refined.views[index].held_out] or placed
    came = _as_it_came(folder / "own", settings)
    lines = [refined.views[index] for index in judges]
    return Row(
        file.stem,
        (_mean(came[i].object_psnr for i in judges), _mean(v.psnr_before for v in lines),
         _mean(v.psnr_after for v in lines)),
        (_mean(came[i].iou for i in judges), _mean(v.iou_before for v in lines), _mean(v.iou_after for v in lines)),
        (_turned(_cameras(folder / "own")[placed], truth[placed]), _turned(_cameras(refined.folder), truth[placed])),
        refined.helped,
        refined.seconds,
    )  # fmt: skip


def _as_it_came(folder: Path, settings: RefineSettings) -> tuple[ViewScore, ...]:
    """How well the asset of a run reproduces the run's views with the run's own cameras."""
    asset = load_asset(folder / MESH, settings.texture_size)
    return score_asset(asset, load_views(folder).scaled(settings.resolution))


def summary(rows: list[Row]) -> str:
    """The bar over all objects."""
    done = [row for row in rows if not row.failure]
    if not done:
        return "No object was refined."
    lines = []
    for start, what in enumerate(("as they came", "with their cameras placed")):
        count = sum(row.reached(start) for row in done)
        psnr = np.median([row.psnr[2] - row.psnr[start] for row in done])
        iou = np.median([row.iou[2] - row.iou[start] for row in done])
        lines.append(
            f"{count} of {len(rows)} objects gained {GAIN_DB} dB and {GAIN_IOU} of IoU over the assets {what} "
            f"({count / len(rows):.0%}, asked {SHARE:.0%}); median gain {psnr:.2f} dB and {iou:.3f}."
        )
    lines.append(
        f"{sum(row.worse for row in done)} got worse, {sum(not row.helped for row in done)} came back unchanged, "
        f"{len(rows) - len(done)} failed."
    )
    return "\n".join(lines)


def walk_around(count: int) -> Cameras:
    """As a person takes pictures: once around, from changing heights, the first from the front."""
    k = torch.arange(count)
    elevation = 0.2 + 0.3 * (k % 2) + 0.1 * torch.sin(2.4 * k)
    return orbit(k / count * 2 * math.pi, elevation, radius=2.4, fov=32.0, size=_SIZE)


def _turned(cameras: Cameras, truth: Cameras) -> float:
    """Median angle in degrees between the relative rotations of all pairs of views."""
    first, second = torch.triu_indices(len(truth), len(truth), offset=1)
    relative = [c.rotations[first] @ c.rotations[second].transpose(1, 2) for c in (cameras, truth)]
    product = relative[0].double() @ relative[1].double().transpose(1, 2)
    cosine = (product.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).median())


def _cameras(folder: Path) -> Cameras:
    return from_transforms(json.loads((folder / "transforms.json").read_text()))[0]


def _save(views, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, mask) in enumerate(zip(views.images, views.masks, strict=True)):
        pixels = torch.cat([image, mask]).permute(1, 2, 0).numpy()
        Image.fromarray((pixels * 255 + 0.5).astype(np.uint8), "RGBA").save(folder / f"{number:03d}.png")


def _mean(values) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
