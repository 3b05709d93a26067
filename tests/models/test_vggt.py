"""VGGT against recorded outputs and its published state dict; a small one in inference, training, compilation."""

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest
from torch_versions import needs_torch

from trellis.errors import InputError
from trellis.models.vggt import VGGT, Aggregator, CameraHead, DPTHead
from trellis.models.vggt.dpt_head import position_terms, uv_axes
from trellis.models.vggt.pose_encoding import (
    extri_intri_to_pose_encoding,
    matrix_to_quaternion,
    pose_encoding_to_extri_intri,
    quaternion_to_matrix,
)
from trellis.modules.rope import apply_rotary, grid_positions, grid_rotary_table, rotary_table

SMALL = {
    "img_size": 56,
    "embed_dim": 32,
    "depth": 5,
    "num_heads": 4,
    "patch_embed": {"depth": 2, "num_heads": 4},
    "camera_head": {"trunk_depth": 1, "num_heads": 8},
    "point_head": {"features": 16, "out_channels": [8, 12, 16, 16]},
    "intermediate_layers": (1, 2, 3, 4),
}


@pytest.fixture(scope="module")
def aggregator_golden():
    return load_golden("vggt_aggregator")


@pytest.fixture(scope="module")
def aggregator(aggregator_golden):
    config = aggregator_golden.config
    aggregator = Aggregator(**config["aggregator"], patch_embed=config["patch_embed"])
    aggregator.load_state_dict(aggregator_golden.weights, strict=True)
    return aggregator.eval().requires_grad_(False)


@pytest.fixture
def small_vggt():
    torch.manual_seed(0)
    return VGGT(**SMALL)


class TestAggregator:
    @pytest.mark.parametrize("case", ["a", "b"], ids=["native size", "other size"])
    def test_reproduces_recorded_tokens(self, aggregator_golden, aggregator, case):
        tokens, patch_start_idx = aggregator(aggregator_golden.inputs[f"img_{case}"])
        assert patch_start_idx == 5
        for layer, value in enumerate(tokens):
            assert_close(value, aggregator_golden.outputs[f"tokens_{case}_{layer}"])

    def test_scenes_of_a_batch_are_independent(self, aggregator_golden, aggregator):
        first = aggregator_golden.inputs["img_a"]
        second = first.flip(1)
        together, _ = aggregator(torch.cat([first, second]))
        alone, _ = aggregator(second)
        assert_close(together[-1][:1], aggregator_golden.outputs["tokens_a_2"])
        assert_close(together[-1][1:], alone[-1])

    def test_keep_stores_only_the_layers_asked_for(self, aggregator_golden, aggregator):
        tokens, _ = aggregator(aggregator_golden.inputs["img_a"], keep=[1])
        assert tokens[0] is None and tokens[2] is None
        assert_close(tokens[1], aggregator_golden.outputs["tokens_a_1"])

    def test_accepts_a_single_view(self, aggregator_golden, aggregator):
        tokens, _ = aggregator(aggregator_golden.inputs["img_a"][:, :1])
        assert tokens[-1].shape == (1, 1, 30, 96)

    def test_rejects_bad_input(self, aggregator):
        with pytest.raises(InputError, match=r"\[B, S, 3, H, W\]"):
            aggregator(torch.zeros(3, 3, 70, 70))
        with pytest.raises(InputError, match="multiples of 14"):
            aggregator(torch.zeros(1, 1, 3, 70, 71))
        with pytest.raises(InputError, match="layers 0 to 2"):
            aggregator(torch.zeros(1, 1, 3, 70, 70), keep=[3])


class TestRotary:
    def test_reproduces_recorded_rotation(self, aggregator_golden):
        recorded = aggregator_golden.outputs
        positions = grid_positions(5, 5, num_special=5)
        assert torch.equal(positions.expand(3, -1, -1), recorded["rope_pos"])
        query = recorded["rope_q_in"]
        assert_close(apply_rotary(query, rotary_table(positions, query.shape[-1], 100.0)), recorded["rope_q_out"])

    def test_scores_depend_on_the_offset_only(self):
        torch.manual_seed(0)
        query, key = torch.randn(2, 16)
        positions = torch.tensor([[1, 2], [4, 3], [11, 7], [14, 8]])  # the last pair is the first moved by (10, 5)
        table = rotary_table(positions, 16, 100.0)
        q, k = (apply_rotary(x.expand(4, -1), table) for x in (query, key))
        assert_close(q[0] @ k[1], q[2] @ k[3])
        assert_close(apply_rotary(query, rotary_table(torch.zeros(1, 2), 16))[0], query)

    def test_table_first_built_in_inference_mode_serves_training(self):
        arguments = (3, 7, 2, 8, 77.0, torch.device("cpu"))
        with torch.inference_mode():
            grid_rotary_table(*arguments)
        x = torch.randn(23, 8, requires_grad=True)
        apply_rotary(x, grid_rotary_table(*arguments)).sum().backward()
        assert x.grad.isfinite().all()


class TestCameraHead:
    def test_reproduces_recorded_rounds(self):
        golden = load_golden("vggt_camera_head")
        head = CameraHead(**golden.config)
        head.load_state_dict(golden.weights, strict=True)
        with torch.no_grad():
            rounds = head([None, golden.inputs["tokens_last"]])
        assert len(rounds) == 4
        for index, value in enumerate(rounds):
            assert_close(value, golden.outputs[f"pose_enc_{index}"])

    def test_starts_near_the_identity(self):
        torch.manual_seed(0)
        with torch.no_grad():
            pose = CameraHead(32, trunk_depth=1, num_heads=4)([torch.randn(1, 3, 6, 32)])[-1]
        expected = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0.8, 0.8]).expand(1, 3, 9)
        torch.testing.assert_close(pose, expected, atol=0.2, rtol=0)


class TestPointHead:
    @pytest.fixture(scope="class")
    def golden(self):
        return load_golden("vggt_dpt_point_head")

    @pytest.fixture(scope="class")
    def head(self, golden):
        fixed = {"activation": "inv_log", "conf_activation": "expp1", "pos_embed": True}
        assert fixed.items() <= golden.config.items()
        head = DPTHead(**{key: value for key, value in golden.config.items() if key not in fixed})
        head.load_state_dict(golden.weights, strict=True)
        return head.requires_grad_(False)

    @pytest.mark.parametrize("chunk", [8, 2, None])
    def test_reproduces_recorded_points(self, golden, head, chunk):
        tokens = [golden.inputs[f"tokens_{level}"] for level in range(4)]
        points, confidence = head(tokens, golden.inputs["images"], 5, frames_chunk_size=chunk)
        assert_close(points, golden.outputs["points"])
        assert_close(confidence, golden.outputs["conf"])

    def test_position_embedding(self, golden):
        u, v = uv_axes(4, 5, aspect=5 / 4)
        recorded = golden.outputs["uv_grid_w5_h4"]
        assert_close(torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1), recorded)
        u, v = position_terms(4, 5, 16, 5 / 4, torch.device("cpu"))
        table = torch.cat([u.expand(-1, 4, -1), v.expand(-1, -1, 5)]).permute(1, 2, 0)
        assert_close(table, golden.outputs["pos_embed_w5_h4_c16"])

    def test_rejects_other_than_four_levels(self):
        with pytest.raises(InputError, match="four"):
            DPTHead(8, intermediate_layer_idx=(0, 1))


class TestPoseEncoding:
    @pytest.mark.parametrize(("case", "size"), [("a", "image_size_hw"), ("b", "second_image_size_hw")])
    def test_reproduces_recorded_conversion(self, case, size):
        golden = load_golden("vggt_pose_encoding")
        size_hw = golden.config[size]
        extrinsics, intrinsics = pose_encoding_to_extri_intri(golden.inputs["pose_enc"], size_hw)
        assert_close(extrinsics, golden.outputs[f"extrinsics_{case}"])
        assert_close(intrinsics, golden.outputs[f"intrinsics_{case}"])
        back = extri_intri_to_pose_encoding(extrinsics, intrinsics, size_hw)
        assert_close(back, golden.outputs[f"roundtrip_{case}"])

    def test_quaternions_of_half_turns(self):
        """Rotations by 180 degrees, where w vanishes and the trace is of no use."""
        quaternions = torch.eye(4)
        torch.testing.assert_close(matrix_to_quaternion(quaternion_to_matrix(quaternions)), quaternions)

    def test_gradients_pass_both_ways(self):
        encoding = torch.tensor([[0.1, -0.2, 2.0, 0.1, 0.2, -0.3, 0.9, 0.7, 0.8]], dtype=torch.float64)

        def there_and_back(value):
            return extri_intri_to_pose_encoding(*pose_encoding_to_extri_intri(value, (30, 40)), (30, 40))

        assert torch.autograd.gradcheck(there_and_back, encoding.requires_grad_())


class TestVGGT:
    def test_full_size_state_dict_is_the_published_one(self):
        manifest = load_manifest("vggt")
        with torch.device("meta"):
            model = VGGT(**manifest["args"])
        rows = [row for row in manifest["state_dict"] if not row[0].startswith(VGGT.UNUSED_PREFIXES)]
        assert_matches_manifest(model, rows)
        assert list(model.state_dict()) == [key for key, _, _ in rows]
        left_over = {row[0].split(".")[0] + "." for row in manifest["state_dict"]} - {
            key.split(".")[0] + "." for key in model.state_dict()
        }
        assert left_over == set(VGGT.UNUSED_PREFIXES)

    def test_loads_from_the_meta_device(self, small_vggt):
        """Nothing outside the state dict has to be filled in: the low-memory way to load a checkpoint."""
        with torch.device("meta"):
            loaded = VGGT(**SMALL)
        loaded.load_state_dict(small_vggt.state_dict(), strict=True, assign=True)
        images = torch.rand(1, 2, 3, 56, 56)
        with torch.no_grad():
            assert torch.equal(loaded(images)["points"], small_vggt(images)["points"])

    def test_shapes(self, small_vggt):
        with torch.no_grad():
            out = small_vggt(torch.rand(2, 3, 3, 56, 42), keep=[0])
        assert out["pose_enc"].shape == (2, 3, 9)
        assert len(out["pose_enc_list"]) == 4
        assert out["points"].shape == (2, 3, 56, 42, 3)
        assert out["points_conf"].shape == (2, 3, 56, 42)
        assert (out["points_conf"] > 1).all()
        assert out["tokens"][0].shape == (2, 3, 5 + 12, 64)
        assert "tokens" not in small_vggt(torch.rand(1, 1, 3, 28, 28))

    @pytest.mark.parametrize("autocast", [False, True])
    def test_finite_gradients_reach_every_trainable_parameter(self, small_vggt, autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = small_vggt(torch.rand(1, 2, 3, 56, 56))
        assert out["points"].dtype == out["pose_enc"].dtype == torch.float32
        (out["points"].mean() + out["points_conf"].mean() + sum(pose.sum() for pose in out["pose_enc_list"])).backward()
        for name, parameter in small_vggt.named_parameters():
            if not parameter.requires_grad:
                assert name == "aggregator.patch_embed.mask_token"
                continue
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_autocast_stays_close_to_float32(self, small_vggt):
        images = torch.rand(1, 2, 3, 56, 56)
        with torch.no_grad():
            full = small_vggt(images)
            with torch.autocast("cpu", torch.bfloat16):
                half = small_vggt(images)
                tokens, _ = small_vggt.aggregator(images)
        assert tokens[-1].dtype == torch.float32
        torch.testing.assert_close(half["points"], full["points"], atol=2e-2, rtol=5e-2)
        torch.testing.assert_close(half["pose_enc"], full["pose_enc"], atol=2e-2, rtol=5e-2)

    def test_runs_in_half_precision(self, small_vggt):
        with torch.no_grad():
            out = small_vggt.to(torch.bfloat16)(torch.rand(1, 2, 3, 56, 56))
        assert out["points"].dtype == small_vggt.dtype == torch.bfloat16
        assert out["points"].isfinite().all()

    @needs_torch("2.6", "older compilers know no unions of sets")
    def test_compiles_into_one_graph(self, small_vggt):
        images = torch.rand(1, 2, 3, 56, 42)
        with torch.no_grad():
            expected = small_vggt(images)
            actual = torch.compile(small_vggt, backend="eager", fullgraph=True)(images)
        assert_close(actual["points"], expected["points"])
        assert_close(actual["pose_enc"], expected["pose_enc"])

    def test_rejects_layers_it_does_not_have(self):
        with pytest.raises(InputError, match="0 to 1"):
            VGGT(**{**SMALL, "depth": 2})
