"""Steps of the structure's flow replayed as CUDA graphs: the same values, and a way back when something is wrong.

On a CPU a stand-in takes the place of the graph: it runs the recorded work again, on the same tensors.
"""

from __future__ import annotations

import logging
import weakref

import pytest
import torch
from tiny_checkpoint import tiny_views

from trellis import backends
from trellis.modules import launch_graph
from trellis.pipelines import TrellisVGGTTo3DPipeline

PARAMS = {"steps": 6, "cfg_strength": 3.0, "cfg_interval": (0.5, 1.0), "guidance_rescale": 0.5}
FORMS = 2  # of a step: guided and not
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_gpu = [pytest.mark.gpu, on_gpu]


class StandIn:
    """Runs the work at every replay. off: what is added to its result."""

    recorded, replayed, off = 0, 0, 0.0

    def __init__(self, work, device, pool=None):
        # Like a graph it keeps no network alive.
        self.network, self.arguments = weakref.ref(work.func), work.args
        self.pool, self.output = "pool", work()
        StandIn.recorded += 1

    def replay(self):
        self.output.copy_(self.network()(*self.arguments) + self.off)
        StandIn.replayed += 1


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def recorded(request, tiny_folder, monkeypatch):
    """A pipeline whose steps are recorded."""
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(tiny_folder, request.param)
    if request.param == "cpu":
        monkeypatch.setattr(launch_graph, "_Graph", StandIn)
    for name in ("recorded", "replayed"):
        monkeypatch.setattr(StandIn, name, 0)
    monkeypatch.setattr(launch_graph, "_failed", False)
    monkeypatch.setattr(backends, "_chosen", {})
    backends.choose(request.param)
    candidate = next(c for c in backends.NEEDS["launching"] if c.name == "cuda-graph")
    monkeypatch.setitem(backends._chosen, ("launching", request.param), (candidate, launch_graph))
    yield pipeline
    launch_graph.forget()


def conditions(pipeline, *sizes):
    return [pipeline.get_cond(tiny_views(size)).structure for size in sizes]


def plainly(pipeline, cond, seed=1):
    """The latent that steps launched one by one give."""
    assert backends.name_of("launching", pipeline.device) == "cuda-graph"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_graph, "_failed", True)
        return pipeline.sample_structure_latent(cond, seed, PARAMS)


def test_replayed_steps_give_what_plain_ones_give(recorded):
    """For the object that was recorded, for a second one, and for the first again."""
    first, second = conditions(recorded, 1, 2)
    for cond, seed in ((first, 1), (second, 2), (first, 1)):
        expected = plainly(recorded, cond, seed)
        actual = recorded.sample_structure_latent(cond, seed, PARAMS)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    assert not torch.equal(plainly(recorded, first), plainly(recorded, second))
    if recorded.device.type == "cpu":
        assert StandIn.recorded == FORMS  # once for all objects
        assert StandIn.replayed == 3 * PARAMS["steps"]  # those compared instead of the first ones


def test_it_is_recorded_anew_when_weights_have_moved(recorded):
    (cond,) = conditions(recorded, 1)
    flow = recorded.models["sparse_structure_flow_model"]
    before = recorded.sample_structure_latent(cond, 1, PARAMS)
    kept = launch_graph._kept[flow]
    flow.out_layer.weight.data = 2 * flow.out_layer.weight.data
    after = recorded.sample_structure_latent(cond, 1, PARAMS)
    assert launch_graph._kept[flow] is not kept
    assert torch.equal(after, plainly(recorded, cond)) or torch.allclose(after, plainly(recorded, cond), rtol=1e-3)
    assert not torch.allclose(before, after, rtol=1e-2)


def test_another_shape_of_the_condition_is_recorded_anew(recorded):
    (cond,) = conditions(recorded, 1)
    shorter = cond[:, : cond.shape[1] // 2]
    for tokens in (cond, shorter):
        actual = recorded.sample_structure_latent(tokens, 1, PARAMS)
        torch.testing.assert_close(actual, plainly(recorded, tokens), rtol=1e-3, atol=1e-3)


def test_halves_apart_are_not_recorded(recorded):
    """Memory is short then."""
    (cond,) = conditions(recorded, 1)
    recorded.sample_structure_latent(cond, 1, PARAMS, batched=False)
    assert not launch_graph._kept


def test_networks_that_are_given_up_take_their_recordings_along(recorded):
    (cond,) = conditions(recorded, 1)
    recorded.sample_structure_latent(cond, 1, PARAMS)
    assert len(launch_graph._kept) == 1
    del recorded.models["sparse_structure_flow_model"]
    assert len(launch_graph._kept) == 0


def test_a_callback_cancels_between_replayed_steps(recorded):
    (cond,) = conditions(recorded, 1)
    expected = recorded.sample_structure_latent(cond, 1, PARAMS)
    steps = []

    def cancel(stage, step, of):
        steps.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded.sample_structure_latent(cond, 1, PARAMS, cancel)
    assert steps == [0, 1, 2, 3]
    again = recorded.sample_structure_latent(cond, 1, PARAMS)
    assert torch.equal(again, expected) or torch.allclose(again, expected, rtol=1e-3)


@pytest.mark.parametrize(("fault", "said"), [("raises", "no graph today"), ("differs", "off")])
@pytest.mark.parametrize("recorded", ["cpu"], indirect=True)
def test_what_cannot_be_recorded_runs_as_it_is(recorded, fault, said, monkeypatch, caplog):
    def raises(self, work, device, pool=None):
        raise RuntimeError("no graph today")

    if fault == "raises":
        monkeypatch.setattr(StandIn, "__init__", raises)
    else:
        monkeypatch.setattr(StandIn, "off", 0.1)
    (cond,) = conditions(recorded, 1)
    expected = plainly(recorded, cond)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(recorded.sample_structure_latent(cond, 1, PARAMS), expected)
    (record,) = caplog.records
    assert "one by one" in record.message and said in record.message
    assert StandIn.replayed <= 1


@pytest.mark.parametrize("recorded", ["cpu"], indirect=True)
def test_a_second_sampling_meanwhile_does_without(recorded):
    """Recordings share buffers: inside the first one's callback another object is sampled."""
    first, second = conditions(recorded, 1, 2)
    expected = [plainly(recorded, cond) for cond in (first, second)]
    inner = []

    def meanwhile(stage, step, of):
        if step == 3:
            inner.append(recorded.sample_structure_latent(second, 1, PARAMS))

    outer = recorded.sample_structure_latent(first, 1, PARAMS, meanwhile)
    torch.testing.assert_close(outer, expected[0])
    torch.testing.assert_close(inner[0], expected[1])


@pytest.mark.gpu
@on_gpu
def test_a_recording_that_fails_leaves_the_stream_as_it_was():
    """Waiting for the device is not allowed in a recording."""
    x = torch.ones(4, device="cuda")
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        launch_graph._Graph(lambda: x * float(x.sum()), x.device)
    assert torch.cuda.current_stream() == stream
    launch_graph.self_test("cuda")
    assert float(x.sum()) == 4
