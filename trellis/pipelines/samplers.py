"""Euler sampling of a rectified flow with classifier-free guidance inside a time interval.

The flow runs from noise at t = 1 to data at t = 0: x_t = (1 - t) x_0 + (s + (1 - s) t) noise with s = `sigma_min`, and
the network predicts the velocity v = dx/dt = (1 - s) noise - x_0 (Lipman et al., "Flow Matching for Generative
Modeling", 2022; Liu et al., "Flow Straight and Fast", 2022). Guidance: Ho & Salimans, "Classifier-Free Diffusion
Guidance", 2022; the interval: Kynkäänniemi et al., 2024; the rescaling: Lin et al., "Common Diffusion Noise Schedules
and Sample Steps Are Flawed", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from trellis.errors import InputError

# A dense tensor [B, C, ...] or a SparseTensor (feats [N, C], coords [N, 4] with the batch index first).
Sample = Any
Condition = Any

MAX_STEPS = 1000


@dataclass(frozen=True)
class GuidanceParams:
    """What a sampling call may choose.

    steps: number of Euler steps, 1 to 1000.
    rescale_t: r > 0 in t = r u / (1 + (r - 1) u); above 1 spends more of the steps near the noise.
    cfg_strength: w in v = w v_pos + (1 - w) v_neg; 1 is the plain conditional prediction, 0 the unconditional one.
    cfg_interval: (low, high) times, both included, between which guidance acts; outside w = 1.
    guidance_rescale: g in [0, 1], how far the spread of the guided clean sample is pulled back to the unguided one's.
    """

    steps: int = 50
    rescale_t: float = 1.0
    cfg_strength: float = 3.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"steps must be a whole number from 1 to {MAX_STEPS}, but it is {self.steps!r}.")
        for name in ("rescale_t", "cfg_strength", "guidance_rescale"):
            if not _is_number(getattr(self, name)):
                raise InputError(f"{name} must be a finite number, but it is {getattr(self, name)!r}.")
        if self.rescale_t <= 0:
            raise InputError(f"rescale_t must be above 0, but it is {self.rescale_t!r}.")
        if not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale must lie between 0 and 1, but it is {self.guidance_rescale!r}.")
        interval = self.cfg_interval
        pair = isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_is_number, interval))
        if not pair or interval[0] > interval[1]:
            raise InputError(f"cfg_interval must be two times (low, high) with low <= high, but it is {interval!r}.")
        object.__setattr__(self, "cfg_interval", (float(interval[0]), float(interval[1])))

    @classmethod
    def from_overlay(cls, *layers: dict[str, Any] | None) -> GuidanceParams:
        """Build from dictionaries laid over one another, key by key; later ones win.

        Raises InputError for a name that no sampler knows.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged.update(layer or {})
        unknown = sorted(set(merged) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise InputError(f"Unknown sampler parameter {unknown[0]!r}; the known ones are {known}.")
        return cls(**merged)


@dataclass(frozen=True)
class Guidance:
    """The conditions of one step.

    both: the two stacked along the batch, positive first; if given, a guided step calls the model once with both.
    """

    positive: Condition
    negative: Condition
    both: Condition | None = None

    @property
    def conditions(self) -> list[Condition]:
        """All of them, in the order of the constructor."""
        return [self.positive, self.negative, *([] if self.both is None else [self.both])]


@dataclass(frozen=True)
class SamplerStep:
    """One Euler step: `x` after it, and `x_0`, the clean sample the network expected at time `t`."""

    index: int
    of: int
    t: float
    t_next: float
    x: Sample
    x_0: Sample


@dataclass
class SamplerResult:
    """The final sample; per step the states and predicted clean samples, if they were asked for."""

    samples: Sample
    pred_x_t: list[Sample] = field(default_factory=list)
    pred_x_0: list[Sample] = field(default_factory=list)


class FlowEulerGuidanceIntervalSampler:
    """Euler steps along the predicted velocity, guided while the time lies in an interval.

    sigma_min enters only the conversion between velocity and clean sample, not the steps.
    """

    def __init__(self, sigma_min: float = 1e-5) -> None:
        self.sigma_min = float(sigma_min)

    @staticmethod
    def schedule(steps: int, rescale_t: float = 1.0) -> np.ndarray:
        """Times from 1 to 0, `steps + 1` of them, in float64.

        The precision is part of the definition: the 12-step schedule with rescale_t 3 has a step at exactly 0.6 in
        float64, the usual lower end of the guidance interval, which float32 may miss.
        """
        u = np.linspace(1, 0, steps + 1)
        return rescale_t * u / (1 + (rescale_t - 1) * u)

    @torch.no_grad()
    def iterate(
        self,
        model: Callable[..., Sample],
        noise: Sample,
        guidance: Callable[[int], Guidance],
        params: GuidanceParams,
    ) -> Iterator[SamplerStep]:
        """Yield one SamplerStep after each Euler step; stop iterating to interrupt.

        model: `model(x, t, condition)` with t = 1000 * time, float32 [B], returning a velocity shaped like x.
        noise: the state at t = 1, dense [B, C, ...] or sparse.
        guidance: maps the step index to its conditions.
        """
        times = self.schedule(params.steps, params.rescale_t).tolist()
        low, high = params.cfg_interval
        x = noise
        for index, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
            strength = params.cfg_strength if low <= t <= high else 1.0
            velocity = self._velocity(model, x, t, guidance(index), strength, params.guidance_rescale)
            x_0 = _like(x, self._velocity_to_clean(_data(x), t, velocity))
            x = _like(x, _data(x) - (t - t_next) * velocity)
            yield SamplerStep(index, params.steps, t, t_next, x, x_0)

    def sample(
        self,
        model: Callable[..., Sample],
        noise: Sample,
        cond: Condition,
        neg_cond: Condition,
        *,
        callback: Callable[[SamplerStep], None] | None = None,
        keep_steps: bool = False,
        **params: Any,
    ) -> SamplerResult:
        """Run all steps under one condition; `params` are the fields of GuidanceParams.

        callback is called after every step; an exception it raises ends the sampling. keep_steps fills the lists of the
        result, which otherwise stay empty.
        """
        result = SamplerResult(noise)
        guidance = Guidance(cond, neg_cond)
        for step in self.iterate(model, noise, lambda _: guidance, GuidanceParams.from_overlay(params)):
            result.samples = step.x
            if keep_steps:
                result.pred_x_t.append(step.x)
                result.pred_x_0.append(step.x_0)
            if callback is not None:
                callback(step)
        return result

    def _velocity(
        self, model: Callable[..., Sample], x: Sample, t: float, guidance: Guidance, strength: float, rescale: float
    ) -> torch.Tensor:
        if strength == 1:
            return _predict(model, x, t, guidance.positive)
        if strength == 0:
            return _predict(model, x, t, guidance.negative)
        if guidance.both is None:
            v_positive = _predict(model, x, t, guidance.positive)
            v_negative = _predict(model, x, t, guidance.negative)
        else:
            v_positive, v_negative = _predict(model, _twice(x), t, guidance.both).chunk(2)
        guided = strength * v_positive + (1 - strength) * v_negative
        if rescale > 0:
            state = _data(x)
            clean_positive = self._velocity_to_clean(state, t, v_positive)
            clean_guided = self._velocity_to_clean(state, t, guided)
            # The clamp only matters for constant predictions, where 0/0 would poison the sample.
            ratio = _spread(x, clean_positive) / _spread(x, clean_guided).clamp_min(1e-30)
            clean = rescale * (clean_guided * ratio) + (1 - rescale) * clean_guided
            guided = self._clean_to_velocity(state, t, clean)
        return guided

    def _velocity_to_clean(self, x: torch.Tensor, t: float, velocity: torch.Tensor) -> torch.Tensor:
        s = self.sigma_min
        return (1 - s) * x - (s + (1 - s) * t) * velocity

    def _clean_to_velocity(self, x: torch.Tensor, t: float, clean: torch.Tensor) -> torch.Tensor:
        s = self.sigma_min
        return ((1 - s) * x - clean) / (s + (1 - s) * t)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _predict(model: Callable[..., Sample], x: Sample, t: float, condition: Condition) -> torch.Tensor:
    """The predicted velocity, for a sparse x its features."""
    batch = x.shape[0]  # of both kinds of sample
    return _data(model(x, torch.full((batch,), 1000 * t, dtype=torch.float32, device=_data(x).device), condition))


def _is_sparse(x: Sample) -> bool:
    return not torch.is_tensor(x)


def _data(x: Sample) -> torch.Tensor:
    return x.feats if _is_sparse(x) else x


def _like(x: Sample, data: torch.Tensor) -> Sample:
    return x.replace(data) if _is_sparse(x) else data


def _twice(x: Sample) -> Sample:
    """Two copies along the batch. Those of a sparse sample share one coordinate set and its tables over all steps."""
    if not _is_sparse(x):
        return torch.cat([x, x])
    sites = x.sites.cached("twice", lambda: type(x).cat([x, x]).sites)
    return type(x)(torch.cat([x.feats, x.feats]), sites=sites)


def _spread(x: Sample, data: torch.Tensor) -> torch.Tensor:
    """Standard deviation of `data` per sample of x, shaped to multiply `data`.

    As in the reference, dense samples use the unbiased estimate, sparse ones the population value over voxels and
    channels.
    """
    if not _is_sparse(x):
        return data.std(dim=tuple(range(1, data.ndim)), keepdim=True)
    spread = x.replace(data).std()  # [B, 1]
    return spread if len(spread) == 1 else spread[x.sites.batch_index]
