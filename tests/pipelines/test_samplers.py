"""The Euler sampler against the recorded schedules, steps and call counts, and its checks."""

from __future__ import annotations

import pytest
import torch
from golden_io import assert_close, load_golden

from trellis.errors import InputError
from trellis.modules.sparse import SparseTensor
from trellis.pipelines.samplers import FlowEulerGuidanceIntervalSampler, Guidance, GuidanceParams


class Toy:
    """The closed-form velocity of the fixture, counting its calls per time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x, t, cond):
        self.times.append(float(t[0]))
        if torch.is_tensor(x):
            shape = (-1, x.shape[1]) + (1,) * (x.ndim - 2)
            c, time = cond.view(shape), t.view(-1, *(1,) * (x.ndim - 1))
            return torch.tanh(0.7 * x + 0.3 * c) * (0.5 + 0.5 * torch.cos(time / 300)) - 0.2 * x
        batch = x.coords[:, 0].long()
        c, time = (sum(cond) / len(cond))[batch], t[batch, None]
        feats = torch.tanh(0.7 * x.feats + 0.3 * c) * (0.5 + 0.5 * torch.cos(time / 300)) - 0.2 * x.feats
        return x.replace(feats)


def load_case(case: str):
    golden = load_golden("sampler")
    if case == "sparse":
        noise = SparseTensor(golden.inputs["sp_feats"], golden.inputs["coords"])
        cond = [golden.inputs["sp_cond_0"], golden.inputs["sp_cond_1"]]
        negative = [torch.zeros_like(c) for c in cond]
    else:
        noise, cond = golden.inputs["noise"], golden.inputs["cond"]
        negative = torch.zeros_like(cond)
    sampler = FlowEulerGuidanceIntervalSampler(golden.config["sigma_min"])
    return golden, sampler, noise, cond, negative


def values(x):
    return x.feats if isinstance(x, SparseTensor) else x


CASES = ["dense", "dense_norescale", "sparse"]


@pytest.mark.parametrize("case", CASES)
def test_matches_recorded_steps(case):
    golden, sampler, noise, cond, negative = load_case(case)
    toy = Toy()
    result = sampler.sample(toy, noise, cond, negative, keep_steps=True, **golden.config[case])
    assert_close(values(result.samples), golden.outputs[f"{case}_samples"])
    assert len(result.pred_x_t) == golden.config[case]["steps"]
    for k, (x, x_0) in enumerate(zip(result.pred_x_t, result.pred_x_0, strict=True)):
        assert_close(values(x_0), golden.outputs[f"{case}_x0_{k}"])
        if f"{case}_x_{k}" in golden.outputs:
            assert_close(values(x), golden.outputs[f"{case}_x_{k}"])
    distinct = list(dict.fromkeys(toy.times))
    assert_close(torch.tensor(distinct), golden.outputs[f"model_t_{case}"])
    calls = [[k, toy.times.count(t)] for k, t in enumerate(distinct)]
    assert calls == golden.outputs[f"calls_{case}"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_both_branches_in_one_call_give_the_same(case):
    golden, sampler, noise, cond, negative = load_case(case)
    toy = Toy()
    if case == "sparse":
        guidance = Guidance(cond, negative, [torch.cat(pair) for pair in zip(cond, negative, strict=True)])
    else:
        guidance = Guidance(cond, negative, torch.cat([cond, negative]))
    steps = list(sampler.iterate(toy, noise, lambda _: guidance, GuidanceParams(**golden.config[case])))
    assert_close(values(steps[-1].x), golden.outputs[f"{case}_samples"])
    assert len(toy.times) == len(steps), "one call a step"


def test_each_step_may_have_its_own_condition():
    seen = []

    def model(x, t, cond):
        seen.append(cond)
        return torch.zeros_like(x)

    params = GuidanceParams(steps=5, cfg_strength=1.0)
    sampler = FlowEulerGuidanceIntervalSampler()
    list(sampler.iterate(model, torch.zeros(1, 1, 2), lambda step: Guidance(step % 2, None), params))
    assert seen == [0, 1, 0, 1, 0]


def test_schedules_are_exact_in_double_precision():
    golden = load_golden("sampler")
    for steps, rescale_t in golden.config["schedules"]:
        expected = golden.outputs[f"t_{steps}_{int(rescale_t)}"]
        actual = torch.from_numpy(FlowEulerGuidanceIntervalSampler.schedule(steps, rescale_t))
        torch.testing.assert_close(actual, expected, atol=1e-15, rtol=0)
    assert 0.6 in FlowEulerGuidanceIntervalSampler.schedule(12, 3.0).tolist(), "the guided step at the interval's end"


@pytest.mark.parametrize(("strength", "used"), [(1.0, 2.0), (0.0, 5.0)])
def test_a_strength_of_one_or_zero_needs_one_call_a_step(strength, used):
    seen = []

    def model(x, t, cond):
        seen.append(cond)
        return torch.zeros_like(x)

    FlowEulerGuidanceIntervalSampler().sample(model, torch.zeros(1, 1, 2), 2.0, 5.0, steps=3, cfg_strength=strength)
    assert seen == [used] * 3


def test_a_callback_interrupts_between_steps():
    toy, indices = Toy(), []

    def stop_after_second(step):
        indices.append(step.index)
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FlowEulerGuidanceIntervalSampler().sample(
            toy, torch.zeros(1, 4, 2), torch.zeros(1, 4), torch.zeros(1, 4), steps=9, cfg_strength=1.0,
            callback=stop_after_second,
        )
    assert indices == [0, 1] and len(toy.times) == 2


def test_sampling_outside_training_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    sampler = FlowEulerGuidanceIntervalSampler()
    result = sampler.sample(lambda x, t, c: weight * x, torch.ones(1, 1, 2), None, None, steps=2, cfg_strength=1.0)
    assert not result.samples.requires_grad and torch.is_grad_enabled()


def test_a_constant_prediction_survives_the_rescaling():
    result = FlowEulerGuidanceIntervalSampler().sample(
        lambda x, t, c: torch.zeros_like(x), torch.zeros(1, 1, 3), 0, 0, steps=2, cfg_strength=3.0, guidance_rescale=0.5
    )
    assert torch.equal(result.samples, torch.zeros(1, 1, 3))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"steps": True},
        {"steps": 10**9},
        {"rescale_t": 0},
        {"cfg_strength": float("nan")},
        {"guidance_rescale": 1.5},
        {"cfg_interval": (0.9, 0.1)},
        {"cfg_interval": 3},
        {"cfg_interval": ["a", 1]},
        {"cfg_stregnth": 2.0},
    ],
)
def test_bad_parameters_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        GuidanceParams.from_overlay({"steps": 4}, bad)


def test_later_layers_win():
    merged = GuidanceParams.from_overlay({"steps": 25, "cfg_strength": 5.0}, None, {"steps": 4})
    assert (merged.steps, merged.cfg_strength) == (4, 5.0)
