"""The loaded networks that every door uses: which checkpoint, on which device, warmed up and ready."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from studio.settings import ReconstructSettings, defaults_of_checkpoint
from trellis.errors import InputError

if TYPE_CHECKING:
    import torch

    from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline
    from trellis.representations.mesh import MeshExtractResult

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
MINI = ASSETS / "mini"
CHECKPOINT_VARIABLE = "RECONSTUDIO_CHECKPOINT"


@dataclass(frozen=True, eq=False)
class Engine:
    """One loaded pipeline, the name of its checkpoint, and the settings that checkpoint recommends."""

    pipeline: TrellisVGGTTo3DPipeline
    checkpoint: str | None
    defaults: ReconstructSettings

    @cached_property
    def environment(self) -> str:
        """A hash of networks, code, libraries and machine: what, beside a job, decides every bit of its outcome."""
        import torch

        from studio import backends
        from studio.fingerprint import environment_key

        device = self.pipeline.device
        names = {need: candidate.name for need, candidate in backends.chosen(device).items()}
        networks = {**self.weights, "fixed settings": repr(self.pipeline.fixed_settings)}
        return environment_key(networks, device.type, torch.get_num_threads(), names)

    @cached_property
    def pace(self) -> str:
        """A hash of networks and machine, under which the history of run times is kept."""
        import torch

        from studio.fingerprint import pace_key

        return pace_key(self.weights, self.pipeline.device.type, torch.get_num_threads())

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 of every weight file, by network."""
        from studio.report import weight_record

        return {name: entry["sha256"] for name, entry in weight_record(self.pipeline.report).items()}


def chosen_checkpoint(checkpoint: str | None = None) -> str:
    """The checkpoint to load: the one named, else that of RECONSTUDIO_CHECKPOINT, else the embedded one.

    Raises InputError if the embedded one is asked for and is not there.
    """
    checkpoint = checkpoint or os.environ.get(CHECKPOINT_VARIABLE)
    if checkpoint:
        return checkpoint
    if not (MINI / "pipeline.json").is_file():
        raise InputError(
            "The embedded networks, assets/mini, are missing from this copy of the studio: fetch a complete copy, or "
            f"name another checkpoint with --checkpoint or {CHECKPOINT_VARIABLE}."
        )
    return str(MINI)


def load_engine(
    checkpoint: str | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda message: None,
    backends: Mapping[str, str] | None = None,
) -> Engine:
    """Load the networks and compile the renderers' kernels, so that no request has to wait for either.

    Args:
        checkpoint: a folder or a Hugging Face repository; None for `chosen_checkpoint`.
        device: "cpu", "cuda" or the like; None takes a GPU if there is one.
        say: told what happens, sentence by sentence.
        backends: by need, the name of what is to do that part of the work; see `trellis.backends`.

    Raises:
        InputError: there is no such checkpoint, device or backend, or the checkpoint is incomplete or damaged.
    """
    from studio.backends import choose

    started = time.monotonic()
    place = _device(device)
    choose(place, backends or {})
    engine = load_networks(checkpoint, device, say)
    if place.type != "cpu":
        from trellis.pipelines.warm_up import warm_up as warm_up_networks

        say("Compiling the networks' kernels (up to a minute on the very first start) ...")
        used = ", ".join(f"{need} {candidate.name}" for need, candidate in warm_up_networks(engine.pipeline).items())
        say(f"What does the work: {used.replace('_', ' ')}.")
    say(f"Preparing the renderers (some 20 seconds on the very first start) on {place} ...")
    warm_up()
    say(f"Ready after {time.monotonic() - started:.0f} s.")
    return engine


def load_networks(
    checkpoint: str | None = None, device: str | None = None, say: Callable[[str], None] = lambda message: None
) -> Engine:
    """Load the networks and nothing else: no backend is chosen and no kernel runs. For the rest see `load_engine`."""
    checkpoint = chosen_checkpoint(checkpoint)
    say(f"Loading the networks from {checkpoint} ...")
    pipeline = _load_pipeline(checkpoint, _device(device))
    defaults = defaults_of_checkpoint(
        pipeline.sparse_structure_sampler_params,
        pipeline.slat_sampler_params,
        pipeline.structure_candidates,
        pipeline.camera_frame,
    )
    return Engine(pipeline, checkpoint, defaults)


def warm_up() -> None:
    """Compile, or load from disk, all kernels that a reconstruction runs."""
    from trellis.export import ExportOptions, export_mesh
    from trellis.export.distance import surface_distance
    from trellis.export.surface import surface_of
    from trellis.renderers import gaussian_raster, mesh_raster

    mesh_raster.warm_up()
    gaussian_raster.warm_up()
    cube = _cube()
    export_mesh(cube, simplify=0.0, texture_size=16, options=ExportOptions(num_views=2, view_resolution=32))
    surface_distance(surface_of(cube), surface_of(cube), samples=8)


def _cube() -> MeshExtractResult:
    """A small coloured cube: the least that export can be run on."""
    import torch

    from trellis.representations.mesh import MeshExtractResult

    corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=torch.float32)
    quads = torch.tensor([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return MeshExtractResult(corners / 2 - 0.25, faces, corners.repeat(1, 2))


def _device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; InputError if it is not there."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails an assertion here
        raise InputError(f"The device {name!r} is not available on this machine; use cpu.") from error


def _load_pipeline(checkpoint: str, device: torch.device) -> TrellisVGGTTo3DPipeline:
    from trellis.pipelines import TrellisVGGTTo3DPipeline

    return TrellisVGGTTo3DPipeline.from_pretrained(checkpoint, device=device)
