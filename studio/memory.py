"""Will it fit? Predicted peak memory of every stage against what is free, and what to do if it does not.

The ladder, one rung after another until the job fits:

1. as asked;
2. on a GPU, keep there only the networks of the running stage (slower, same result);
3. in pieces: few views at a time through DINOv2, and the guided and the plain half of a sampling step one after the
   other (slower; equal up to rounding);
4. a smaller turntable, then a smaller texture;
5. refuse, with a sentence that says how many views would fit.

It is climbed before the job starts, with as many voxels as a full shell of the grid has, and again once the voxels are
known. Predictions count the arrays that a stage holds at its widest point, from the shapes of the networks. They are
meant to be right within a factor of two; `run.json` records beside them what was measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import nn

from studio.events import JobError
from studio.settings import ReconstructSettings
from studio.stages import CHUNK, STAGES
from trellis.modules import launch_graph
from trellis.pipelines.image_preparation import SHARP_SIDE
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline

# The networks that each stage runs; "image_cond_model" stays where it is, for the pipeline's device is its device.
NETWORKS = {
    "cameras": ("vggt", "sparse_structure_vggt_cond", "slat_vggt_cond"),
    "structure": ("sparse_structure_flow_model", "sparse_structure_decoder"),
    "latent": ("slat_flow_model",),
    "decode": ("slat_decoder_gs", "slat_decoder_mesh"),
}
_TITLES = {stage.name: stage.title for stage in STAGES}
_FLOAT = 4  # bytes
_BASE = 100 * 2**20  # kernels, temporary images, allocator slack: what even the smallest stage takes
_HEADROOM = 0.9  # of what is free may be planned with
_WIDE = 14  # copies of a transformer's activations alive inside a block: residual, norm, q, k, v, 4x hidden twice, out


@dataclass(frozen=True)
class Free:
    """bytes: what may be used. kind: "memory" or "GPU memory"."""

    bytes: int
    kind: str = "memory"


def free(device: torch.device) -> Free:
    """What is free now: of the GPU, or of the machine within the limit of this process's control group."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Free(torch.cuda.mem_get_info(device)[0] + unused, "GPU memory")
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return Free(available)
    return Free(available if limit == "max" else min(available, max(int(limit) - used, 0)))


@dataclass(frozen=True)
class Size:
    """How large a job is.

    Attributes:
        views: their number.
        pixels: of the largest photograph.
        voxels: occupied ones; None while that is not known.
    """

    views: int
    pixels: int = 0
    voxels: int | None = None


@dataclass(frozen=True)
class Plan:
    """How a job will be run.

    Attributes:
        settings: lowered ones, perhaps.
        offload: networks leave the GPU while they are not needed.
        chunked: in pieces, see `studio.stages`.
        notes: a sentence for each concession.
        predicted: bytes by stage.
    """

    settings: ReconstructSettings
    offload: bool
    chunked: bool
    notes: tuple[str, ...]
    predicted: dict[str, int]


def predict(
    pipeline: TrellisVGGTTo3DPipeline, settings: ReconstructSettings, size: Size, chunked: bool = False
) -> dict[str, int]:
    """Peak bytes of every stage beyond the loaded networks and what earlier stages have made."""
    vggt, dino, models = pipeline.vggt.aggregator, pipeline.image_cond_model, pipeline.models
    flow, latent_flow = models["sparse_structure_flow_model"], models["slat_flow_model"]
    tokens = size.views * ((pipeline.image_resolution // vggt.patch_size) ** 2 + 5)
    patches_of_view = (pipeline.image_resolution // dino.patch_size) ** 2 + 5
    patches = size.views * patches_of_view
    width = vggt.camera_token.shape[-1]
    levels = len({*models["sparse_structure_vggt_cond"].levels, *models["slat_vggt_cond"].levels})
    # Without better knowledge a full shell of the grid, which is more than nearly any object has.
    voxels = 6 * latent_flow.resolution**2 if size.voxels is None else size.voxels
    subdivisions = len(models["slat_decoder_mesh"].upsample) if "slat_decoder_mesh" in models else 0
    triangles = 4 * voxels * 4**subdivisions

    read_at_once = (min(CHUNK, size.views) if chunked else size.views) * patches_of_view
    reading = tokens * width * _WIDE + (levels + 1) * tokens * 2 * width + read_at_once * dino.embed_dim * _WIDE
    conditions = patches * latent_flow.cond_channels * 2
    grid = (flow.resolution // flow.patch_size) ** 3
    known = models["sparse_structure_vggt_cond"].multiview_cond_tokens.shape[1]
    flow_width = flow.input_layer.out_features
    halves = 1 if chunked else 2  # of a guided step, at once
    shape = halves * grid * flow_width * _WIDE + 2 * known * flow_width * len(flow.blocks)
    detail = (1 if pipeline.device.type == "cpu" else halves) * voxels * latent_flow.model_channels * _WIDE
    detail += 2 * patches * latent_flow.model_channels * len(latent_flow.blocks)
    splats = voxels * models["slat_decoder_gs"].num_gaussians if "slat_decoder_gs" in models else 0
    painters = size.views if settings.texture_source == "photographs" else 0

    def painting(points: int) -> int:
        """What each photograph shows of some points: a third of them, of each nine numbers. And itself, with alpha."""
        return painters * (3 * points + 4 * SHARP_SIDE**2)

    floats = {
        "prepare": 3 * size.pixels,  # 12 bytes: as read, with alpha, and turned upright or masked
        "cameras": reading + conditions,
        "structure": shape + conditions + 12 * latent_flow.resolution**3,
        "latent": detail + conditions,
        "decode": _decoding(models, voxels) + conditions,
        "paint": 60 * splats + 10 * triangles + painting(splats),
        "mesh": 40 * triangles,
        "bake": 12 * settings.texture_size**2 + 48 * 512**2 + 20 * triangles + painting(settings.texture_size**2),
        "video": 40 * settings.video_size**2,
        "report": 20 * pipeline.image_resolution**2 + 8 * settings.texture_size**2,
        "write": 8 * settings.texture_size**2,
    }
    floats["report"] += settings.video_frames // 4 * (settings.video_size // 2) ** 2  # the map's turntable
    return {stage: _BASE + int(count) * _FLOAT for stage, count in floats.items()}


def fit(
    pipeline: TrellisVGGTTo3DPipeline,
    settings: ReconstructSettings,
    size: Size,
    available: Free,
    stages: Sequence[str] = tuple(_TITLES),
    after: Plan | None = None,
) -> Plan:
    """The first rung of the ladder on which all of some stages fit, not below that of an earlier plan.

    Raises JobError of the kind "memory" if none does.
    """
    budget = int(available.bytes * _HEADROOM)
    for lowered, offload, chunked, notes in _rungs(settings, pipeline.device.type != "cpu"):
        if after is not None and (offload < after.offload or chunked < after.chunked):
            continue
        needs = predict(pipeline, lowered, size, chunked)
        predicted = {stage: needs[stage] for stage in needs if stage in stages}
        room = {stage: budget + (_movable(pipeline, stage) if offload else 0) for stage in predicted}
        if all(predicted[stage] <= room[stage] for stage in predicted):
            return Plan(lowered, offload, chunked, notes, predicted)
    stage = max(predicted, key=lambda stage: predicted[stage] - room[stage])
    fewer = next(
        (n for n in range(size.views - 1, 0, -1)
         if predict(pipeline, lowered, replace(size, views=n), chunked)[stage] <= room[stage]), 0,
    )  # fmt: skip
    advice = f"Up to {fewer} views would fit." if fewer else "Close other programs, or use a machine with more."
    raise JobError(
        f"There is too little {available.kind} for {size.views} views: the stage '{_TITLES[stage]}' needs about "
        f"{predicted[stage] / 2**30:.1f} GB, and {available.bytes / 2**30:.1f} GB are free. {advice}",
        "memory",
    )


def _rungs(
    settings: ReconstructSettings, on_gpu: bool
) -> Iterator[tuple[ReconstructSettings, bool, bool, tuple[str, ...]]]:
    """The settings as asked, then one concession more each time: (settings, offload, chunked, why)."""
    yield settings, False, False, ()
    notes: tuple[str, ...] = ()
    if on_gpu:
        notes = ("Networks leave the GPU while they are not needed, to fit into its memory; this takes longer.",)
        yield settings, True, False, notes
    notes = (*notes, "The work is done in smaller pieces to fit into memory; this takes longer.")
    yield settings, on_gpu, True, notes
    if settings.video_frames * settings.video_size**2 > 60 * 256**2:
        smaller = {"video_frames": min(settings.video_frames, 60), "video_size": min(settings.video_size, 256)}
        settings = settings.model_copy(update=smaller)
        notes = (*notes, "The turntable was made smaller to fit into memory.")
        yield settings, on_gpu, True, notes
    for side in (1024, 512):
        if settings.texture_size > side:
            settings = settings.model_copy(update={"texture_size": side})
            yield settings, on_gpu, True, (*notes, f"The texture was lowered to {side} pixels to fit into memory.")


def place(pipeline: TrellisVGGTTo3DPipeline, stage: str | None) -> None:
    """Keep only the networks of a stage on the pipeline's device (None: all of them)."""
    needed = None if stage is None else NETWORKS.get(stage, ())
    launch_graph.forget()  # recordings hold memory, and are of no use once the weights have moved
    networks = {**pipeline.models, "vggt": pipeline.vggt}
    leaving = {name for name in networks if needed is not None and name not in needed}
    for name in sorted(networks, key=lambda name: name not in leaving):  # they make room before others come
        networks[name].to("cpu" if name in leaving else pipeline.device)


def _movable(pipeline: TrellisVGGTTo3DPipeline, stage: str) -> int:
    """Bytes of the networks that a stage can do without."""
    networks = {**pipeline.models, "vggt": pipeline.vggt}
    return sum(_bytes(network) for name, network in networks.items() if name not in NETWORKS.get(stage, ()))


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def release() -> None:
    """Give memory that has been freed back to the system; glibc alone keeps it until it is asked."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's own error, torch's, or the message of its CPU allocator."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def explain(stage: str, device: torch.device) -> str:
    """One sentence for a stage that ran out of memory."""
    now = free(device)
    return (
        f"There was not enough {now.kind} for the stage '{_TITLES[stage]}' ({now.bytes / 2**30:.1f} GB are free now); "
        "use fewer views or a smaller texture, or close other programs."
    )


def _decoding(models: dict[str, nn.Module], voxels: int) -> int:
    """Floats of the wider decoder: the mesh's finest grid, with its 101 outputs per cube and the block before them."""
    splats = voxels * models["slat_decoder_gs"].model_channels * _WIDE if "slat_decoder_gs" in models else 0
    if "slat_decoder_mesh" not in models:
        return splats
    decoder = models["slat_decoder_mesh"]
    finest = decoder.out_layer.weight
    cubes = voxels * 8 ** len(decoder.upsample)
    return max(splats, cubes * (finest.shape[0] + 12 * finest.shape[1]))
