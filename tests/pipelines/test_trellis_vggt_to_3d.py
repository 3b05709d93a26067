"""The whole pipeline: against the recorded chain of stages, and end to end on a tiny checkpoint."""

from __future__ import annotations

import pytest
import torch
from golden_io import assert_close, load_golden
from tiny_checkpoint import IMAGE_RESOLUTION, RESOLUTION, tiny_views, write_tiny_checkpoint

from trellis import models
from trellis.errors import InputError
from trellis.pipelines import FlowEulerGuidanceIntervalSampler, TrellisVGGTTo3DPipeline
from trellis.pipelines.image_preparation import views_to_tensor
from trellis.pipelines.noise import latent_noise, structure_noise
from trellis.pipelines.trellis_vggt_to_3d import CAMERA_FRAMES

EVERYTHING = ["gaussian", "mesh"]


class ShiftedDecoder(torch.nn.Module):
    """A structure decoder whose logits are lowered, as in the recording; remembers the latent it was given."""

    def __init__(self, decoder, offset):
        super().__init__()
        self.decoder, self.offset = decoder, offset

    def forward(self, latent):
        self.latent = latent
        return self.decoder(latent) - self.offset


def test_reproduces_the_recorded_chain_of_stages(pipeline):
    golden = load_golden("mini_pipeline")
    classes = {
        "ss_flow": models.SparseStructureFlowModel,
        "ss_decoder": models.SparseStructureDecoder,
        "slat_flow": models.SLatFlowModel,
        "slat_decoder_gs": models.SLatGaussianDecoder,
    }
    networks = {}
    for name, cls in classes.items():
        source = load_golden(golden.config["goldens"][name])
        networks[name] = cls(**source.config)
        networks[name].load_state_dict(source.weights)
    sampler = FlowEulerGuidanceIntervalSampler(golden.config["sigma_min"])
    decoder = ShiftedDecoder(networks["ss_decoder"], golden.config["ss_logit_offset"])
    chain = TrellisVGGTTo3DPipeline(
        {
            **pipeline.models,
            "sparse_structure_flow_model": networks["ss_flow"],
            "sparse_structure_decoder": decoder,
            "slat_flow_model": networks["slat_flow"],
            "slat_decoder_gs": networks["slat_decoder_gs"],
        },
        pipeline.vggt,
        pipeline.image_cond_model,
        golden.config["slat_normalization"],
        sampler,
        sampler,
        golden.config["ss_params"],
        golden.config["slat_params"],
        IMAGE_RESOLUTION,
    )
    seed = golden.config["seed"]
    torch.testing.assert_close(structure_noise(networks["ss_flow"], seed), golden.outputs["ss_noise"], rtol=0, atol=0)
    coords = chain.sample_sparse_structure(golden.inputs["ss_cond"], seed)
    assert_close(decoder.latent, golden.outputs["z_s"])
    assert torch.equal(coords, golden.outputs["coords"])
    noise = latent_noise(networks["ss_flow"], networks["slat_flow"], seed, len(coords))
    torch.testing.assert_close(noise, golden.outputs["slat_noise"], rtol=0, atol=0)
    slat = chain.sample_slat([golden.inputs["slat_cond_0"], golden.inputs["slat_cond_1"]], coords, seed)
    assert_close(slat.feats, golden.outputs["slat"])
    gaussian = chain.decode_slat(slat, ["gaussian"])["gaussian"][0]
    assert_close(gaussian.get_xyz, golden.outputs["gs_xyz"])
    assert_close(gaussian.get_scaling, golden.outputs["gs_scaling"])
    assert_close(gaussian.get_opacity, golden.outputs["gs_opacity"])


def flat(outputs):
    gaussian, mesh = outputs["gaussian"][0], outputs["mesh"][0]
    return torch.cat([gaussian.get_xyz.flatten(), mesh.vertices.flatten(), mesh.faces.flatten().float()])


@pytest.mark.parametrize("mode", ["multidiffusion", "stochastic"])
def test_runs_from_photographs_to_both_formats(pipeline, mode):
    photographs = tiny_views(3, size=90, transparent=False)
    outputs, coords, noise = pipeline.run(photographs, seed=1, formats=EVERYTHING, mode=mode)
    assert coords.dtype == torch.int32 and coords.shape[1] == 4 and 0 < len(coords) <= RESOLUTION**3
    assert noise.shape == (1, 8, 4, 4, 4)
    gaussian, mesh = outputs["gaussian"][0], outputs["mesh"][0]
    assert gaussian.get_xyz.shape == (4 * len(coords), 3) and gaussian.get_xyz.isfinite().all()
    assert len(mesh.faces) > 0 and mesh.vertices.abs().max() <= 0.5 + 1e-5
    assert mesh.vertex_attrs.shape == (len(mesh.vertices), 6)


def test_the_seed_decides_everything(pipeline):
    views = tiny_views(2)
    torch.manual_seed(5)
    first, coords, noise = pipeline.run(views, seed=7, preprocess_image=False)
    torch.manual_seed(6)
    again, *_ = pipeline.run(views, seed=7, preprocess_image=False)
    assert torch.equal(flat(first), flat(again))
    torch.manual_seed(7)
    assert torch.equal(noise, torch.randn(1, 8, 4, 4, 4)), "the stream is that of the default generator"
    flows = pipeline.models["sparse_structure_flow_model"], pipeline.models["slat_flow_model"]
    assert torch.equal(latent_noise(*flows, 7, len(coords)), torch.randn(len(coords), 8))
    _, other_coords, other_noise = pipeline.run(views, seed=8, preprocess_image=False, formats=["gaussian"])
    assert not torch.equal(noise, other_noise)


def test_stages_run_alone_give_what_run_gives(pipeline):
    views = [pipeline.preprocess_image(view) for view in tiny_views(2, size=100)]
    cond = pipeline.get_cond(views)
    coords = pipeline.sample_sparse_structure(cond.structure, 3)
    slat = pipeline.sample_slat(cond.latent, coords, 3)
    alone = pipeline.decode_slat(slat, EVERYTHING)
    together, *_ = pipeline.run(views, seed=3, formats=EVERYTHING, preprocess_image=False)
    assert torch.equal(flat(alone), flat(together))


class FewestVoxels:
    """Stands for the outlines of photographs that any smaller structure fits better."""

    def agreement(self, coords, resolution):
        return -len(coords)


def test_of_several_structures_the_one_that_fits_is_kept_and_all_steps_are_counted(pipeline):
    cond, calls = pipeline.get_cond(tiny_views(2)).structure, []
    every = [
        models.sparse_structure_vae.occupied_coords(
            pipeline.models["sparse_structure_decoder"](pipeline.sample_structure_latent(cond, 3, candidate=number))
        )
        for number in range(4)
    ]
    assert torch.equal(every[0], pipeline.sample_sparse_structure(cond, 3)), "one is what it always was"
    kept = pipeline.sample_sparse_structure(
        cond, 3, callback=lambda *call: calls.append(call), outlines=FewestVoxels(), candidates=4
    )
    sizes = [len(coords) for coords in every]
    assert len(set(sizes)) > 1 and torch.equal(kept, every[sizes.index(min(sizes))])
    assert calls == [("structure", step, 12) for step in range(13)]
    assert len({float(structure_noise(pipeline.models["sparse_structure_flow_model"], seed, number).sum())
                for seed in (0, 1) for number in range(8)}) == 16  # fmt: skip


def test_a_structure_is_cut_off_where_it_fits_best(pipeline, monkeypatch):
    cond = pipeline.get_cond(tiny_views(2)).structure
    logits = pipeline.models["sparse_structure_decoder"](pipeline.sample_structure_latent(cond, 3))
    thresholds = tuple(logits.flatten().quantile(torch.tensor([0.5, 0.9, 0.2])).tolist())
    monkeypatch.setattr(pipeline, "structure_thresholds", thresholds)
    every = [models.sparse_structure_vae.occupied_coords(logits, threshold) for threshold in thresholds]
    assert torch.equal(pipeline.sample_sparse_structure(cond, 3), every[0])
    assert torch.equal(pipeline.sample_sparse_structure(cond, 3, outlines=FewestVoxels()), every[1])


def test_every_view_and_mode_matters(pipeline):
    views = tiny_views(3)
    cond = pipeline.get_cond(views)
    coords = pipeline.sample_sparse_structure(cond.structure)
    together = pipeline.sample_slat(cond.latent, coords).feats
    in_turns = pipeline.sample_slat(cond.latent, coords, mode="stochastic").feats
    fewer = pipeline.sample_slat(cond.latent[:2], coords).feats
    assert not torch.equal(together, in_turns) and not torch.equal(together, fewer)
    one = [pipeline.sample_slat(cond.latent[:1], coords, mode=mode).feats for mode in ("multidiffusion", "stochastic")]
    assert torch.equal(*one), "with one view the modes agree"


def test_guided_steps_give_the_same_in_one_call_or_two(pipeline, monkeypatch):
    cond = pipeline.get_cond(tiny_views(2))
    guidance, results = type(pipeline)._guidance, []
    for batched in (True, False):
        fixed = lambda self, flow, condition, _=None, batched=batched: guidance(self, flow, condition, batched)  # noqa: E731
        monkeypatch.setattr(type(pipeline), "_guidance", fixed)
        coords = pipeline.sample_sparse_structure(cond.structure)
        results.append((coords, pipeline.sample_slat(cond.latent, coords).feats))
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1])


def test_stochastic_steps_take_views_in_turns(pipeline, monkeypatch):
    cond = pipeline.get_cond(tiny_views(3))
    coords = pipeline.sample_sparse_structure(cond.structure)
    flow, numbers, seen = pipeline.models["slat_flow_model"], {}, []
    precompute, forward = type(flow).precompute_condition, type(flow).forward

    def numbered(self, condition):
        cache = precompute(self, condition)
        if isinstance(condition, list):
            (view,) = condition
            numbers[id(cache)] = next(i for i, known in enumerate(cond.latent) if torch.equal(known, view))
        return cache

    def watched(self, x, t, cache):
        seen.append(numbers[id(cache)])
        return forward(self, x, t, cache)

    monkeypatch.setattr(type(flow), "precompute_condition", numbered)
    monkeypatch.setattr(type(flow), "forward", watched)
    pipeline.sample_slat(cond.latent, coords, mode="stochastic", sampler_params={"steps": 5, "cfg_strength": 1.0})
    assert seen == [0, 1, 2, 0, 1]


def test_progress_counts_every_stage(pipeline):
    calls = []
    pipeline.run(tiny_views(2), callback=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["prepare", "cameras", "structure", "latent", "decode"]
    for stage in stages:
        steps = [(step, of) for name, step, of in calls if name == stage]
        assert steps == [(step, steps[0][1]) for step in range(steps[0][1] + 1)]
    assert ("structure", 3, 3) in calls and ("latent", 2, 2) in calls


@pytest.mark.parametrize("stage", ["prepare", "cameras", "structure", "latent", "decode"])
def test_a_callback_cancels_at_the_next_step(pipeline, stage):
    class Cancelled(Exception):
        pass

    calls = []

    def cancel(*call):
        calls.append(call)
        if call[:2] == (stage, 1):
            raise Cancelled

    with pytest.raises(Cancelled):
        pipeline.run(tiny_views(2), callback=cancel)
    assert calls[-1][:2] == (stage, 1)


def test_vggt_runs_once_and_gives_the_cameras(pipeline, monkeypatch):
    passes = []
    aggregator = pipeline.vggt.aggregator
    forward = type(aggregator).forward
    monkeypatch.setattr(
        type(aggregator), "forward", lambda self, *args, **kw: passes.append(1) or forward(self, *args, **kw)
    )
    views = tiny_views(3)
    pipeline.run(views, formats=["gaussian"])
    assert len(passes) == 1
    cameras = pipeline.estimate_cameras(views)
    assert len(cameras) == 3 and cameras.image_size.tolist() == [[IMAGE_RESOLUTION] * 2] * 3
    assert_close(cameras.extrinsics, pipeline.get_cond(views).cameras.extrinsics)
    assert pipeline.camera_frame == "object" and pipeline.camera_frame in CAMERA_FRAMES
    assert (cameras.centers[:, 1] > 1).all(), "the tiny cameras stand on +y"


def test_further_readings_change_the_cameras_and_nothing_else(pipeline, monkeypatch):
    views = tiny_views(4)
    once = pipeline.get_cond(views)
    orders, aggregator = [], pipeline.vggt.aggregator
    forward = type(aggregator).forward

    def watched(self, images, *args, **kw):
        orders.append([next(i for i, view in enumerate(given) if torch.equal(view, image)) for image in images[0]])
        return forward(self, images, *args, **kw)

    given = views_to_tensor(views, IMAGE_RESOLUTION)
    monkeypatch.setattr(type(aggregator), "forward", watched)
    monkeypatch.setattr(pipeline, "camera_readings", 3)
    calls = []
    cond = pipeline.get_cond(views, lambda *call: calls.append(call))
    assert orders == [[1, 0, 2, 3], [2, 0, 1, 3], [0, 1, 2, 3]], "the order given comes last"
    assert calls == [("cameras", step, 5) for step in range(6)]
    assert torch.equal(cond.structure, once.structure)
    assert all(torch.equal(a, b) for a, b in zip(cond.latent, once.latent, strict=True))
    assert torch.equal(cond.cameras.translations, once.cameras.translations)
    assert not torch.allclose(cond.cameras.rotations, once.cameras.rotations, atol=1e-6)
    assert torch.equal(cond.cameras.extrinsics, pipeline.estimate_cameras(views).extrinsics)


def test_outputs_can_be_optimised_further(pipeline):
    outputs, *_ = pipeline.run(tiny_views(1))
    vertices = outputs["mesh"][0].vertices.clone().requires_grad_()
    (vertices**2).sum().backward()
    assert vertices.grad is not None and torch.is_grad_enabled()


def test_an_empty_structure_is_a_sentence(pipeline):
    decoder = ShiftedDecoder(pipeline.models["sparse_structure_decoder"], 1e6)
    nothing = TrellisVGGTTo3DPipeline(
        {**pipeline.models, "sparse_structure_decoder": decoder},
        pipeline.vggt,
        pipeline.image_cond_model,
        {"mean": [0] * 8, "std": [1] * 8},
        sparse_structure_sampler_params={"steps": 1},
        image_resolution=IMAGE_RESOLUTION,
    )
    with pytest.raises(InputError, match="No object came out"):
        nothing.run(tiny_views(1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image": []}, "0 came"),
        ({"image": tiny_views(33)}, "33 came"),
        ({"formats": ["radiance_field"]}, "radiance_field"),
        ({"formats": "mesh"}, "list"),
        ({"formats": []}, "list"),
        ({"mode": "both"}, "both"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"slat_sampler_params": {"steps": 0}}, "steps"),
        ({"sparse_structure_sampler_params": {"cfg": 1}}, "cfg"),
    ],
)
def test_bad_requests_are_refused_before_any_work(pipeline, arguments, sentence):
    def no_work(*call):
        pytest.fail(f"worked on {call}")

    with pytest.raises(InputError, match=sentence):
        pipeline.run(**{"image": tiny_views(1), "callback": no_work, **arguments})


def test_constructor_refuses_what_cannot_fit(pipeline):
    parts = pipeline.models, pipeline.vggt, pipeline.image_cond_model
    normal = {"mean": [0.0] * 8, "std": [1.0] * 8}
    with pytest.raises(InputError, match="slat_flow_model"):
        TrellisVGGTTo3DPipeline({k: v for k, v in parts[0].items() if k != "slat_flow_model"}, *parts[1:], normal)
    with pytest.raises(InputError, match="std"):
        TrellisVGGTTo3DPipeline(*parts, {**normal, "std": [1.0]}, image_resolution=IMAGE_RESOLUTION)
    with pytest.raises(InputError, match="patch size"):
        TrellisVGGTTo3DPipeline(*parts, normal, image_resolution=100)
    with pytest.raises(InputError, match="camera_frame"):
        TrellisVGGTTo3DPipeline(*parts, normal, image_resolution=IMAGE_RESOLUTION, camera_frame="world")
    with pytest.raises(InputError, match="camera_readings must be 1 where camera_frame is 'first_view', but is 4"):
        TrellisVGGTTo3DPipeline(*parts, normal, image_resolution=IMAGE_RESOLUTION, camera_readings=4)


def test_half_precision_checkpoints_run_in_float32_on_the_cpu(tmp_path):
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(write_tiny_checkpoint(tmp_path, use_fp16=True))
    assert pipeline.report.complete
    for model in pipeline.models.values():
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    outputs, *_ = pipeline.run(tiny_views(1))
    assert outputs["gaussian"][0].get_xyz.isfinite().all()
    # Off the CPU the stored precision returns; "meta" stands for any other device.
    pipeline.to("meta")
    assert pipeline.models["slat_flow_model"].dtype == torch.float16
    assert pipeline.models["slat_flow_model"].blocks[0].mlp.mlp[0].weight.dtype == torch.float16
