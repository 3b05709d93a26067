"""The structure flow against its recorded forward passes, its manifest, and its own exact savings."""

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest
from torch_versions import needs_torch

from trellis.models import SparseStructureFlowModel
from trellis.modules.attention import CondCache, ConstantContext, ZeroCondition, stack_conditions

SMALL = {
    "resolution": 8,
    "in_channels": 4,
    "model_channels": 24,
    "cond_channels": 12,
    "out_channels": 4,
    "num_blocks": 2,
    "num_heads": 2,
    "patch_size": 2,
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
    "share_mod": True,
}


@pytest.fixture(scope="module")
def golden():
    return load_golden("ss_flow")


@pytest.fixture(scope="module")
def model(golden):
    model = SparseStructureFlowModel(**golden.config)
    model.load_state_dict(golden.weights, strict=True)
    return model.eval().requires_grad_(False)


def small_model() -> SparseStructureFlowModel:
    """Random weights everywhere, also in the layers that training starts at zero."""
    torch.manual_seed(0)
    model = SparseStructureFlowModel(**SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def small_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8, 8), torch.tensor([1000.0, 250.0]), torch.randn(2, 5, 12)


def test_intermediate_values_match(golden, model):
    seen = {}
    hooks = [model.t_embedder.register_forward_hook(lambda _m, _i, out: seen.__setitem__("t_emb", out))]
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.__setitem__("tokens_in", args[0])))
    for k, block in enumerate(model.blocks):
        hooks.append(block.register_forward_hook(lambda _m, _i, out, k=k: seen.__setitem__(f"block_{k}", out)))
    model(golden.inputs["x"], golden.inputs["t"], golden.inputs["cond_a"])
    for hook in hooks:
        hook.remove()
    assert len(seen) == 5
    for name, value in seen.items():
        assert_close(value, golden.outputs[name])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", ["single", "list", "zero_cond"])
def test_forward_matches_with_and_without_cached_condition(golden, model, name, cached):
    cond = {
        "single": golden.inputs["cond_a"],
        "list": [golden.inputs["cond_a"], golden.inputs["cond_b"]],
        "zero_cond": torch.zeros_like(golden.inputs["cond_a"]),
    }[name]
    if cached:
        cond = model.precompute_condition(cond)
        assert isinstance(cond, CondCache)
    assert_close(model(golden.inputs["x"], golden.inputs["t"], cond), golden.outputs[name])


@pytest.mark.parametrize("cached", [False, True])
def test_zero_condition_collapses_to_a_constant(golden, model, cached):
    cond = ZeroCondition(2)
    if cached:
        cond = model.precompute_condition(cond)
        assert all(isinstance(context, ConstantContext) for (context,) in cond.layers)
    assert_close(model(golden.inputs["x"], golden.inputs["t"], cond), golden.outputs["zero_cond"])


def test_guided_and_unguided_branch_share_one_pass(golden, model):
    x, t = golden.inputs["x"], golden.inputs["t"]
    both = stack_conditions([model.precompute_condition(c) for c in (golden.inputs["cond_a"], ZeroCondition(2))])
    guided, unguided = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    assert_close(guided, golden.outputs["single"])
    assert_close(unguided, golden.outputs["zero_cond"])


def test_one_zero_condition_stacks_beside_a_list(golden, model):
    x, t = golden.inputs["x"], golden.inputs["t"]
    views = model.precompute_condition([golden.inputs["cond_a"], golden.inputs["cond_b"]])
    both = stack_conditions([views, model.precompute_condition(ZeroCondition(2))])
    guided, unguided = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    assert_close(guided, golden.outputs["list"])
    assert_close(unguided, model(x, t, [ZeroCondition(2)] * 2))


def test_state_dict_matches_the_published_one():
    manifest = load_manifest("sparse_structure_flow_model")
    with torch.device("meta"):
        model = SparseStructureFlowModel(**manifest["args"])
    assert_matches_manifest(model, manifest["state_dict"])
    model.convert_to_fp32()
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32}


def test_shared_modulation_lives_on_the_model():
    keys = small_model().state_dict().keys()
    assert [k for k in keys if "adaLN_modulation" in k] == ["adaLN_modulation.1.weight", "adaLN_modulation.1.bias"]


def test_every_parameter_gets_a_gradient():
    model = small_model()
    x, t, cond = small_inputs()
    out = model(x, t, cond)
    assert out.shape == x.shape
    out.square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not missing


def test_cached_condition_agrees_when_cross_attention_normalises_its_keys():
    model = small_model()
    x, t, cond = small_inputs()
    assert_close(model(x, t, model.precompute_condition(cond)), model(x, t, cond))
    assert_close(model(x, t, ZeroCondition(2)), model(x, t, torch.zeros_like(cond)))


def test_checkpointing_gives_the_same_gradients():
    x, t, cond = small_inputs()
    gradients = []
    for use_checkpoint in (False, True):
        model = small_model()
        for block in model.blocks:
            block.use_checkpoint = use_checkpoint
        model(x, t, cond).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain)


def test_training_starts_at_zero_velocity():
    torch.manual_seed(0)
    out = SparseStructureFlowModel(**SMALL)(*small_inputs())
    assert not out.any()


def test_bfloat16_autocast_runs_forward_and_backward():
    model = small_model()
    x, t, cond = small_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, t, cond)
        again = model(x, t, stack_conditions([model.precompute_condition(c) for c in (cond[:1], ZeroCondition(1))]))
    out.float().square().mean().backward()
    reference = model(x, t, cond)
    assert out.dtype == torch.float32
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()
    assert (again[:1] - reference[:1]).abs().max() < 0.05 * reference.abs().max()


def test_float16_torso_stays_close(golden):
    model = SparseStructureFlowModel(**golden.config, use_fp16=True)
    model.load_state_dict(golden.weights, strict=True)
    x, t = golden.inputs["x"], golden.inputs["t"]
    both = stack_conditions([model.precompute_condition(c) for c in (golden.inputs["cond_a"], ZeroCondition(2))])
    with torch.no_grad():
        single = model(x, t, golden.inputs["cond_a"])
        guided, unguided = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    assert single.dtype == torch.float32
    assert_close(single, golden.outputs["single"], atol=2e-2)
    assert_close(guided, golden.outputs["single"], atol=2e-2)
    assert_close(unguided, golden.outputs["zero_cond"], atol=2e-2)


@needs_torch("2.6", "older compilers know no unions of sets")
def test_compiles_without_graph_breaks():
    model = small_model().requires_grad_(False)
    x, t, cond = small_inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(x, t, cond), model(x, t, cond))
    cache = model.precompute_condition(cond)
    assert_close(compiled(x, t, cache), model(x, t, cache))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"pe_mode": "rope"}, "pe_mode"), ({"patch_size": 3}, "does not divide"), ({"num_heads": 5}, "heads")],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SparseStructureFlowModel(**{**SMALL, **change})


def test_wrong_inputs_are_named():
    model = small_model()
    x, t, cond = small_inputs()
    with pytest.raises(ValueError, match="latent must be"):
        model(x[..., :4], t, cond)
    with pytest.raises(ValueError, match="empty"):
        model(x, t, [])
    with pytest.raises(ValueError, match="1 layers met a network of 2"):
        model(x, t, CondCache(model.precompute_condition(cond).layers[:1], 2))
    with pytest.raises(ValueError, match="share one batch size"):
        model.precompute_condition([cond, cond[:1]])
