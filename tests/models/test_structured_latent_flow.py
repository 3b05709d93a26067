"""The structured latent flow: recorded outputs, published state dict, equal ways to give a condition, gradients."""

from __future__ import annotations

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest

from trellis.models import SLatFlowModel
from trellis.modules.attention import ZeroCondition, stack_conditions
from trellis.modules.sparse import SparseTensor

SMALL = {
    "resolution": 8,
    "in_channels": 4,
    "model_channels": 24,
    "cond_channels": 10,
    "out_channels": 4,
    "num_blocks": 2,
    "num_heads": 2,
    "io_block_channels": [12],
    "qk_rms_norm": True,
}


@pytest.fixture(scope="module")
def golden():
    return load_golden("slat_flow")


@pytest.fixture(scope="module")
def model(golden):
    model = SLatFlowModel(**golden.config).eval()
    model.load_state_dict(golden.weights, strict=True)
    return model


@pytest.fixture
def x(golden):
    return SparseTensor(golden.inputs["feats"], golden.inputs["coords"])


@pytest.fixture
def views(golden):
    return [golden.inputs[f"cond_{view}"] for view in range(3)]


def record(modules) -> dict[str, SparseTensor]:
    """Collect the outputs of named module lists during each forward pass."""
    outputs = {}
    for name, blocks in modules.items():
        for index, block in enumerate(blocks):
            key = f"{name}_{index}"
            block.register_forward_hook(lambda _, args, out, key=key: outputs.__setitem__(key, out))
    return outputs


@torch.no_grad()
def test_reproduces_recorded_outputs(golden, x, views):
    model = SLatFlowModel(**golden.config).eval()
    model.load_state_dict(golden.weights, strict=True)
    t = golden.inputs["t"]
    assert_close(model(x, t, views).feats, golden.outputs["views"])
    assert_close(model(x, t, [torch.zeros_like(view) for view in views]).feats, golden.outputs["zero_views"])
    seen = record({"input_block": model.input_blocks, "block": model.blocks, "out_block": model.out_blocks})
    assert_close(model(x, t, views[0]).feats, golden.outputs["single"])
    assert torch.equal(seen["block_0"].coords, golden.outputs["down_coords"])
    assert len(seen) == 6
    for key, value in seen.items():
        assert_close(value.feats, golden.outputs[key])


@torch.no_grad()
def test_prepared_conditions_give_the_same_result(golden, model, x, views):
    t = golden.inputs["t"]
    cached, zero = model.precompute_condition(views), model.precompute_condition(ZeroCondition(1))
    assert_close(model(x, t, cached).feats, golden.outputs["views"])
    assert_close(model(x, t, zero).feats, golden.outputs["zero_views"])
    both = model(SparseTensor.cat([x, x]), t.repeat(2), stack_conditions([cached, zero]))
    assert_close(both.part(0).feats, golden.outputs["views"])
    assert_close(both.part(1).feats, golden.outputs["zero_views"])


def test_published_state_dict():
    manifest = load_manifest("slat_flow_model")
    with torch.device("meta"):
        model = SLatFlowModel(**manifest["args"])
    assert_matches_manifest(model, manifest["state_dict"])
    model.convert_to_fp32()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def randomise(model: torch.nn.Module) -> None:
    """Move every parameter off zero, so that no gradient is blocked by the initialisation."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def small_batch() -> SparseTensor:
    coords = torch.tensor([[b, i % 8, i * 3 % 8, i // 8] for b, n in ((0, 40), (1, 13), (2, 25)) for i in range(n)])
    return SparseTensor(torch.randn(len(coords), 4), coords.int())


@pytest.mark.parametrize(
    "options", [{}, {"share_mod": True}, {"use_skip_connection": False, "qk_rms_norm_cross": True}]
)
def test_batches_equal_single_samples_and_every_parameter_learns(options):
    model = SLatFlowModel(**SMALL, **options)
    randomise(model)
    x, t = small_batch(), torch.tensor([900.0, 500.0, 10.0])
    cond = [torch.randn(3, 5, 10), torch.randn(3, 6, 10)]
    out = model(x, t, cond)
    for sample in range(3):
        alone = model(x[sample], t[sample : sample + 1], [view[sample : sample + 1] for view in cond])
        assert_close(out.part(sample).feats, alone.feats)
    out.feats.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_checkpointing_and_autocast_train():
    x, t, cond = small_batch(), torch.tensor([900.0, 500.0, 10.0]), torch.randn(3, 5, 10)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        model = SLatFlowModel(**SMALL, use_checkpoint=use_checkpoint, share_mod=True)
        randomise(model)
        model(x, t, cond).feats.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(plain, recomputed)

    exact = model(x, t, cond).feats
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, t, cond).feats
        loss = out.square().mean()
    loss.backward()
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() < 0.05 * exact.abs().max() + 0.05
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


def test_starts_at_zero_velocity():
    out = SLatFlowModel(**SMALL)(small_batch(), torch.zeros(3), ZeroCondition(3))
    assert not out.feats.any()


@pytest.mark.parametrize("options", [{"patch_size": 4}, {"pe_mode": "rope"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="patch_size|pe_mode"):
        SLatFlowModel(**{**SMALL, **options})
