"""The refinement loop: coarse to fine over the views, with progress, held-out scores, cancelling and resuming."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvdiffrec.asset import Asset
from nvdiffrec.fit import Fit, FitOptions
from nvdiffrec.losses import on_white, psnr, silhouette_iou
from nvdiffrec.views import Views
from trellis.errors import InputError
from trellis.files import replacing
from trellis.renderers.cameras import Cameras

_HOLD_OUT_FROM = 6  # views; with fewer, every one is needed
_HOLD_OUT_EVERY = 8
_LEAST_GAIN = 0.05  # dB that a refinement must bring to count as one
_MOST_LOSS = 0.005  # of the silhouettes' IoU that it may cost
_ALIGN_EVERY, _ALIGN_STEPS = 4, 2  # rounds over the views between two alignments of a camera, and steps of each
_FIRST_SIZES, _FIRST_STEPS = (0.125, 0.25, 0.5, 1.0), 4  # parts of the resolution before the first step
_STATE_FORMAT = "nvdiffrec-state-2"


@dataclass(frozen=True)
class RefineSettings:
    """steps: one view each. resolution: longest image side; the first `coarse` part of the steps sees half of it.
    evaluate_every: steps between scores, previews and saved states. seed: of the order of the views. device: where the
    loop runs; on a GPU the renderer takes that GPU's backend."""

    steps: int = 400
    resolution: int = 256
    coarse: float = 0.4
    evaluate_every: int = 50
    seed: int = 0
    device: str = "cpu"
    fit: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.resolution < 8 or self.evaluate_every < 1 or not 0 <= self.coarse <= 1:
            raise InputError(
                "A refinement needs at least 1 step, 8 pixels a side, 1 step between scores, and a coarse part from 0 "
                f"to 1, but got {self.steps}, {self.resolution}, {self.evaluate_every} and {self.coarse}."
            )


@dataclass(frozen=True)
class ViewScore:
    """psnr: dB on white over the whole picture; object_psnr: over the object in either; iou: of the silhouettes."""

    name: str
    psnr: float
    object_psnr: float
    iou: float
    held_out: bool


@dataclass(frozen=True, eq=False)
class Progress:
    """After `step` of `of`. With a new evaluation: `score` (mean object PSNR in dB of the held-out views, or of all if
    none is held out) and `preview`, [H, W, 3] sRGB of one view."""

    step: int
    of: int
    loss: float
    score: float | None = None
    preview: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RefineResult:
    """The best state seen.

    Attributes:
        asset, cameras: refined, or exactly the input if `helped` is False.
        helped: whether the refined asset agrees better with the views that judge.
        message: the same as a sentence.
        before, after: scores per view.
        cancelled: the loop was stopped before its last step.
        exposures: [N] factor on the light that reached the sensor in each view, None if not fitted.
    """

    asset: Asset
    cameras: Cameras
    helped: bool
    message: str
    before: tuple[ViewScore, ...]
    after: tuple[ViewScore, ...]
    cancelled: bool = False
    exposures: Tensor | None = None


def held_out_views(count: int) -> list[int]:
    """Which of `count` views only judge: every eighth from the fourth on if there are six or more, else none."""
    return list(range(3, count, _HOLD_OUT_EVERY)) if count >= _HOLD_OUT_FROM else []


def refine(
    views: Views,
    asset: Asset,
    settings: RefineSettings | None = None,
    *,
    baseline: tuple[Asset, Cameras] | None = None,
    cancel: threading.Event | None = None,
    state_file: str | PathLike[str] | None = None,
) -> Iterator[Progress | RefineResult]:
    """Fit an asset to views; yields `Progress` after every step and a `RefineResult` at the end.

    Args:
        views: in the frame of the asset.
        baseline: asset and cameras that the result is judged against, and that come back if it is no better; None for
            `asset` and those of `views`. For a start that was made anew, such as one of another topology.
        cancel: once set, the loop ends after the running step with the best state so far.
        state_file: a .safetensors file that is written at every evaluation and when cancelled; if it exists already and
            belongs to the same input and settings, the run goes on from there and ends as if never interrupted.

    Raises:
        InputError: fewer than two views, nothing to fit, or a state file of another run.
    """
    settings = settings or RefineSettings()
    if len(views) < 2:
        raise InputError("One view cannot tell shape from picture; at least two views are needed to refine.")
    run = _Run(views, asset, settings, baseline or (asset, views.cameras))
    first = run.resume(Path(state_file)) if state_file is not None else 0
    cancelled = False
    for step in range(first + 1, settings.steps + 1):
        loss = run.step(step)
        cancelled = cancel is not None and cancel.is_set()
        evaluated = step % settings.evaluate_every == 0 or step == settings.steps or cancelled
        score, preview = run.evaluate() if evaluated else (None, None)
        if evaluated and state_file is not None:
            run.save(Path(state_file), step)
        yield Progress(step, settings.steps, loss, score, preview)
        if cancelled:
            break
    yield run.result(cancelled)


class _Run:
    """What a loop carries from step to step."""

    def __init__(self, views: Views, asset: Asset, settings: RefineSettings, baseline: tuple[Asset, Cameras]) -> None:
        if settings.fit.cameras is None:
            settings = replace(settings, fit=replace(settings.fit, cameras=views.predicted))
        self.settings = settings
        self.start, self.baseline = asset, baseline
        asset, views = asset.to(settings.device), views.to(settings.device)
        self.views = views.scaled(settings.resolution)
        self.coarse_views = views.scaled(max(8, settings.resolution // 2))
        self.held_out = held_out_views(len(views))
        self.training = [i for i in range(len(views)) if i not in self.held_out]
        self.judges = self.held_out or self.training
        self.fit = Fit(asset, self.views.cameras, settings.fit)
        if not self.fit.fits_anything:
            raise InputError("Nothing is to be fitted: choose at least one of shape, colours, light and cameras.")
        self.before = score_asset(
            baseline[0].to(settings.device),
            views.with_cameras(baseline[1].to(settings.device)).scaled(settings.resolution),
            settings.fit.turntable,
        )
        self.best_score = -float("inf")
        self.best = self.fit.snapshot()

    def step(self, step: int) -> float:
        settings = self.settings
        fine = step > settings.coarse * settings.steps
        views = self.views if fine else self.coarse_views
        index, round_number = self._turn(self.training, step - 1)
        if settings.fit.cameras and step == 1:
            self._align_first()
        elif settings.fit.cameras and round_number % _ALIGN_EVERY == 0:
            self.fit.align(views, index, _ALIGN_STEPS)
            if (step - 1) % len(self.training) == 0:
                # Held-out cameras follow at the same pace, or the score would measure them instead of the asset.
                for other in self.held_out:
                    self.fit.align(views, other, _ALIGN_STEPS)
        loss = self.fit.loss(views, index)
        if loss.requires_grad:  # not where cameras alone are fitted
            loss.backward()
        if self.held_out and settings.fit.exposure and step % max(1, len(self.training) // len(self.held_out)) == 0:
            self.fit.exposure_loss(views, self._turn(self.held_out, step)[0]).backward()
        self.fit.step(step / settings.steps)
        return float(loss.detach())

    def _align_first(self) -> None:
        """Move every camera before wrong ones smear the colours; first in small pictures, in which they see far."""
        for part in _FIRST_SIZES:
            views = self.views.scaled(max(8, round(part * self.settings.resolution)))
            for index in range(len(views)):
                self.fit.align(views, index, _FIRST_STEPS)

    def _turn(self, indices: list[int], step: int) -> tuple[int, int]:
        """Every index once per round, in an order that depends on seed and round alone, so that a run can resume; and
        the round."""
        round_number, place = divmod(step, len(indices))
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + round_number)
        return indices[int(torch.randperm(len(indices), generator=generator)[place])], round_number

    def evaluate(self) -> tuple[float, Tensor]:
        scores = score_views(self.fit, self.views, self.held_out)
        score = self._judged(scores)
        if score > self.best_score:
            self.best_score, self.best = score, self.fit.snapshot()
        with torch.no_grad():
            preview = on_white(self.fit.image(self.judges[0], self.fit.prepared(), self.views.cameras))
        return score, preview.cpu()

    def result(self, cancelled: bool) -> RefineResult:
        self.fit.restore(self.best)
        after = score_views(self.fit, self.views, self.held_out)
        helped, numbers = verdict(self.before, after)
        if helped:
            asset, cameras = (part.to("cpu") for part in self.fit.result())
            full = Cameras.from_normalised(
                cameras.extrinsics, cameras.normalised_intrinsics, self.baseline[1].image_size
            )
            exposures = self.fit.exposures().detach().cpu() if self.settings.fit.exposure else None
            message = f"Refining helped: {numbers}."
            return RefineResult(asset, full, True, message, self.before, after, cancelled, exposures)
        message = f"Refining did not help ({numbers}); the asset and its cameras are unchanged."
        return RefineResult(*self.baseline, False, message, self.before, self.before, cancelled)

    def _judged(self, scores: tuple[ViewScore, ...]) -> float:
        return _mean(scores[index].object_psnr for index in self.judges)

    def _identity(self) -> str:
        """What a state belongs to; the vertices' sum stands for the asset, the images' for the views."""
        geometry = self.start.geometry
        numbers = [float(geometry.vertices.double().sum()), float(sum(i.double().sum() for i in self.views.images))]
        shape = [len(geometry.vertices), len(geometry.faces), len(self.views), self.start.material.base_color.shape[-1]]
        return json.dumps([_STATE_FORMAT, asdict(self.settings), shape, [round(n, 3) for n in numbers]])

    def save(self, file: Path, step: int) -> None:
        tensors = {f"now.{name}": value for name, value in self.fit.snapshot().items()}
        tensors.update({f"best.{name}": value.clone() for name, value in self.best.items()})
        tensors.update({f"optimiser.{name}": value for name, value in self.fit.optimiser_tensors().items()})
        metadata = {"identity": self._identity(), "step": str(step), "best_score": repr(self.best_score)}
        with replacing(file) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)

    def resume(self, file: Path) -> int:
        """Take over a saved state if there is one; returns the steps it had done."""
        if not file.exists():
            return 0
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(f"'{file.name}' is not a saved refinement; remove it to start over.") from error
        if metadata.get("identity") != self._identity():
            raise InputError(
                f"'{file.name}' belongs to other views, another asset or other settings; remove it to start over."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.fit.restore(part("now."))
        self.fit.load_optimiser_tensors(part("optimiser."))
        self.best, self.best_score = part("best."), float(metadata["best_score"])
        return int(metadata["step"])


def verdict(before: Sequence[ViewScore], after: Sequence[ViewScore]) -> tuple[bool, str]:
    """Whether the views that judge (those held out, or all if none is) are reproduced better, and by how much."""
    judges = [index for index, score in enumerate(before) if score.held_out] or list(range(len(before)))
    kind = "held-out" if before[judges[0]].held_out else "training"
    (old, new), (old_iou, new_iou) = (
        [_mean(getattr(scores[index], field) for index in judges) for scores in (before, after)]
        for field in ("object_psnr", "iou")
    )
    numbers = f"from {old:.1f} to {new:.1f} dB and silhouettes from {old_iou:.3f} to {new_iou:.3f} on the {kind} views"
    return new >= old + _LEAST_GAIN and new_iou >= old_iou - _MOST_LOSS, numbers


def score_asset(
    asset: Asset, views: Views, turntable: bool = False, exposures: Tensor | None = None
) -> tuple[ViewScore, ...]:
    """How well an asset reproduces views as it is shown elsewhere: in its own light if it has one, else unlit."""
    plain = FitOptions(geometry=False, material=False, light=False, turntable=turntable)
    fit = Fit(asset, views.cameras, plain)
    if exposures is not None:
        fit.parameters["exposures"] = exposures.log()
    return score_views(fit, views, held_out_views(len(views)))


@torch.no_grad()
def score_views(fit: Fit, views: Views, held_out: list[int]) -> tuple[ViewScore, ...]:
    """How well each view is reproduced."""
    prepared = fit.prepared()
    scores = []
    for index, name in enumerate(views.names):
        image, target = fit.image(index, prepared, views.cameras), views.linear(index)
        region = (image[..., 3] > 0.5) | (target[..., 3] > 0.5)
        shown, wanted = on_white(image), on_white(target)
        scores.append(
            ViewScore(
                name,
                psnr(shown, wanted),
                psnr(shown, wanted, region),
                silhouette_iou(image[..., 3], target[..., 3]),
                index in held_out,
            )
        )
    return tuple(scores)


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
