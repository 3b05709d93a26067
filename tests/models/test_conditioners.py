"""Both conditioners against their recorded passes and manifests."""

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest

from trellis.models import ModulatedMultiViewCond, ModulatedSLATMultiViewCond

LEVELS = (4, 11, 17, 23)


def load(cls, name):
    golden = load_golden(name)
    model = cls(**golden.config)
    model.load_state_dict(golden.weights, strict=True)
    tokens = [golden.inputs[f"agg_{k}"] if k in LEVELS else None for k in range(24)]
    return model.eval().requires_grad_(False), golden, tokens


def test_structure_condition_matches_level_by_level():
    model, golden, tokens = load(ModulatedMultiViewCond, "cond_ss_multiview")
    seen = []
    for block in model.cond_blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    cond = model(tokens, golden.inputs["image_cond"])
    assert len(seen) == 4
    for k, value in enumerate(seen):
        assert_close(value, golden.outputs[f"block_{k}"])
    assert_close(cond, golden.outputs["cond"])


def test_latent_condition_matches_view_by_view():
    model, golden, tokens = load(ModulatedSLATMultiViewCond, "cond_slat_multiview")
    views = model(tokens, golden.inputs["image_cond"])
    assert len(views) == 2
    for k, view in enumerate(views):
        assert_close(view, golden.outputs[f"view_{k}"])
    assert_close(torch.cat(views), golden.outputs["flat"])


@pytest.mark.parametrize(
    ("cls", "name"),
    [(ModulatedMultiViewCond, "sparse_structure_vggt_cond"), (ModulatedSLATMultiViewCond, "slat_vggt_cond")],
)
def test_state_dict_matches_the_published_one(cls, name):
    manifest = load_manifest(name)
    with torch.device("meta"):
        model = cls(**manifest["args"])
    assert_matches_manifest(model, manifest["state_dict"])


def test_structure_condition_in_float16_stays_close():
    model, golden, tokens = load(ModulatedMultiViewCond, "cond_ss_multiview")
    model.convert_to_fp16()
    cond = model(tokens, golden.inputs["image_cond"])
    assert cond.dtype == torch.float16
    assert_close(cond.float(), golden.outputs["cond"], atol=2e-2)


def small(cls):
    torch.manual_seed(0)
    extra = {"num_heads": 2, "num_init_tokens": 5, "num_special_tokens": 2, "qk_rms_norm": True}
    return cls(8, 20, levels=(0, 2), **(extra if cls is ModulatedMultiViewCond else {}))


@pytest.mark.parametrize("cls", [ModulatedMultiViewCond, ModulatedSLATMultiViewCond])
def test_small_sizes_train_under_autocast(cls):
    model = small(cls)
    special = 2 if cls is ModulatedMultiViewCond else 0
    tokens = [torch.randn(2, 3, special + 4, 12), None, torch.randn(2, 3, special + 4, 12)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cond = model(tokens, torch.randn(2, 3, 4, 8))
    cond = torch.stack(cond) if isinstance(cond, list) else cond
    assert cond.shape == ((3, 2, 4, 8) if special == 0 else (2, 5, 8))
    cond.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("cls", [ModulatedMultiViewCond, ModulatedSLATMultiViewCond])
def test_wrong_inputs_are_named(cls):
    model = small(cls)
    tokens = [torch.randn(1, 3, 6, 12)] * 3
    with pytest.raises(ValueError, match="level 2 is needed"):
        model(tokens[:2], torch.randn(1, 3, 4, 8))
    with pytest.raises(ValueError, match="must agree"):
        model(tokens, torch.randn(1, 2, 4, 8))


def test_unsupported_settings_are_named():
    with pytest.raises(ValueError, match="rope"):
        ModulatedMultiViewCond(8, 20, 2, use_rope=True)
