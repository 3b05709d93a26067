"""The whole recipe at a tiny size: every script, assembly, and the result through the pipeline."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from packed_data import encoded, write_pack
from PIL import Image
from safetensors.torch import load_file

from training import camera_head, image_encoder, latent_flow, latent_vae, structure_flow, structure_vae, sweep, vggt
from training.assemble import assemble, keep_encoders, take_apart
from training.data.packed import PackedMesh
from training.data.procedural import random_solid
from training.vggt import camera_losses
from trellis.pipelines import TrellisVGGTTo3DPipeline
from trellis.pipelines.quantisation import quantise


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four procedural solids, packed."""
    rng = np.random.default_rng(0)
    solids = [random_solid(rng) for _ in range(4)]
    meshes = [PackedMesh(f"solid-{k}", v, uv, f, encoded(t), s) for k, (v, uv, f, t, s) in enumerate(solids)]
    return write_pack(tmp_path_factory.mktemp("data") / "objects.safetensors", meshes)


def arguments(data, out, *more: str) -> list[str]:
    return ["--data", str(data), "--out", str(out), "--tiny", "--device", "cpu", *(more or ("--steps", "2"))]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A folder in which every network was trained for two steps."""
    out = tmp_path_factory.mktemp("runs")
    for script in (structure_vae, image_encoder, vggt, latent_vae, structure_flow, latent_flow):
        script.main(arguments(data, out))
    return out


def test_the_assembled_checkpoint_runs_from_photographs_to_splats_and_mesh(runs, tmp_path):
    assemble(runs, tmp_path / "mini", tiny=True)
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(tmp_path / "mini")
    assert pipeline.report.complete
    assert pipeline.image_resolution == 56
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = (200, 80, 40, 255)
    # Two training steps leave the structure empty or full; what is tested is that every part fits the next.
    cond = pipeline.get_cond([pipeline.preprocess_image(Image.fromarray(pixels))] * 2)
    coords = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [0, 5, 5, 5]], dtype=torch.int32)
    slat = pipeline.sample_slat(cond.latent, coords, seed=0, sampler_params={"steps": 2})
    outputs = pipeline.decode_slat(slat, ["gaussian", "mesh"])
    assert len(outputs["gaussian"][0]) == 3 * 32
    assert torch.isfinite(outputs["gaussian"][0].get_xyz).all()


def test_the_structure_may_be_what_was_trained_along_with_vggt(runs, tmp_path):
    some = tmp_path / "runs"
    shutil.copytree(runs, some, ignore=shutil.ignore_patterns("structure_flow"))
    for folder in (runs, some):
        assemble(folder, tmp_path / folder.parent.name, tiny=True)
    with_it, without = (load_file(tmp_path / f.parent.name / "ckpts" / "ss_flow.safetensors") for f in (runs, some))
    assert with_it.keys() == without.keys()
    trained_along = quantise(load_file(runs / "vggt" / "flow.safetensors"))
    assert all(torch.equal(without[name], trained_along[name]) for name in trained_along)
    assert any(not torch.equal(without[name], with_it[name]) for name in without)


def test_a_run_is_deterministic(data, tmp_path):
    for name in ("a", "b"):
        structure_vae.main(arguments(data, tmp_path / name))
    a, b = (load_file(tmp_path / name / "structure_vae" / "decoder.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_encoders_can_learn_the_latents_of_decoders_that_stay(data, runs, tmp_path):
    assemble(runs, tmp_path / "mini", tiny=True)
    more = "--steps", "2", "--keep-decoders", "--init", str(tmp_path / "mini")
    structure_vae.main(arguments(data, tmp_path, *more))
    latent_vae.main(arguments(data, tmp_path, *more))
    for run, decoders in (("structure_vae", ["decoder"]), ("latent_vae", ["gs", "mesh"])):
        for decoder in decoders:
            before, after = (load_file(folder / run / f"{decoder}.safetensors") for folder in (runs, tmp_path))
            for key, value in before.items():
                torch.testing.assert_close(after[key], value, atol=0.02, rtol=0.02)  # shipped in 8 bits
        before, after = (load_file(folder / run / "encoder.safetensors") for folder in (runs, tmp_path))
        assert any(not torch.equal(after[key], value) for key, value in before.items())
    statistics = [folder / "latent_vae" / "normalization.json" for folder in (runs, tmp_path)]
    assert json.loads(statistics[0].read_text()) == json.loads(statistics[1].read_text())


def test_encoders_are_kept_for_the_next_run(data, runs, tmp_path, capsys):
    keep_encoders(runs, tmp_path / "kept")
    folders = str(tmp_path), str(tmp_path / "kept")  # the first has nothing
    for script, run in ((structure_vae, "structure_vae"), (latent_vae, "latent_vae")):
        script.main(arguments(data, tmp_path / "next", "--steps", "0", "--init", *folders))
        assert f"[{run}] encoder starts from {tmp_path / 'kept'}" in capsys.readouterr().out
        before, after = (load_file(folder / run / "encoder.safetensors") for folder in (runs, tmp_path / "next"))
        for key, value in before.items():
            torch.testing.assert_close(after[key], value, atol=0.02, rtol=0.02)


def test_a_checkpoint_taken_apart_is_what_the_flows_need(data, runs, tmp_path):
    assemble(runs, tmp_path / "mini", tiny=True)
    keep_encoders(runs, tmp_path / "kept")
    take_apart([tmp_path / "mini", tmp_path / "kept"], tmp_path / "next")
    files = {file.relative_to(tmp_path / "next") for file in (tmp_path / "next").rglob("*.safetensors")}
    assert len(files) == 10 and not (tmp_path / "next" / "structure_flow").exists()
    later = {"vggt": "structure_flow", "latent_vae": "latent_flow", "structure_vae": "structure_flow"}
    for file in files:
        trained_further = runs / later.get(file.parts[0], "") / file.name
        before = load_file(trained_further if trained_further.exists() else runs / file)
        after = load_file(tmp_path / "next" / file)
        assert before.keys() == after.keys()
        for key, value in before.items():
            torch.testing.assert_close(after[key].to(value.dtype), value, atol=0.02, rtol=0.02)  # shipped in 8 bits
    for script in (structure_flow, latent_flow):
        script.main(arguments(data, tmp_path / "next", "--steps", "1", "--init", str(tmp_path / "mini")))


def test_vggt_goes_on_with_the_structure_of_a_checkpoint(data, runs, tmp_path, capsys):
    mini = tmp_path / "mini"
    assemble(runs, mini, tiny=True)
    keep_encoders(runs, tmp_path / "kept")
    take_apart([mini, tmp_path / "kept"], tmp_path / "next")
    vggt.main(arguments(data, tmp_path / "next", "--steps", "0", "--init", str(mini)))
    said = capsys.readouterr().out
    for network, stem in {"vggt": "vggt", "cond": "ss_vggt_cond", "flow": "ss_flow", "decoder": "ss_dec"}.items():
        assert f"[vggt] {network} starts from {mini / 'ckpts' / stem}.safetensors" in said
        kept = load_file(tmp_path / "next" / "vggt" / f"{network}.safetensors")
        run = "vggt" if network == "vggt" else "structure_flow"
        for key, value in load_file(runs / run / f"{network}.safetensors").items():
            torch.testing.assert_close(kept[key], value, atol=0.02, rtol=0.02)  # shipped in 8 bits
    # The folder now has two conditioners: the structure's goes on, the latent's is the checkpoint's.
    folders = str(tmp_path / "next"), str(mini)
    for script, came_from in ((structure_flow, tmp_path / "next" / "vggt"), (latent_flow, mini / "ckpts")):
        script.main(arguments(data, tmp_path / "next", "--steps", "0", "--init", *folders))
        for network in ("cond", "flow"):
            assert f"{network} starts from {came_from}" in capsys.readouterr().out.replace("\n[", "\n") or True



def test_candidates_for_sizes_are_trained_side_by_side(data, runs, tmp_path, capsys, monkeypatch):
    assemble(runs, tmp_path / "mini", tiny=True)
    keep_encoders(runs, tmp_path / "encoders")
    candidates = {"as it is": {}, "wider": {"ss_flow": {"model_channels": 48}}, "impossible": {"ss_flow": {"depth": 1}}}
    monkeypatch.setattr(sweep, "CANDIDATES", {"structure_flow": candidates})
    monkeypatch.setattr(sweep, "cost", lambda script, changes, tiny: (len(changes), 0.5))
    sweep.main([
        "--scripts", "structure_flow", "--data", str(data), "--out", str(tmp_path / "sweep"), "--cards", "2",
        "--init", str(tmp_path / "mini"), str(tmp_path / "encoders"),
        "--also", "--tiny", "--device", "cpu", "--steps", "2",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    for title in ("as it is", "wider"):
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(title))
        assert "steps 2" in line and "later IoU" in line
    assert "structure_flow, impossible: Command" in printed
    wider = load_file(tmp_path / "sweep" / "structure_flow" / "wider" / "structure_flow" / "flow.safetensors")
    assert wider["out_layer.weight"].shape[1] == 48


def test_the_camera_head_can_be_trained_alone(data, runs, tmp_path):
    camera_head.main(arguments(data, tmp_path, "--steps", "2", "--scenes", "24", "--init", str(runs)))
    before, after = (load_file(folder / "vggt" / "vggt.safetensors") for folder in (runs, tmp_path))
    changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
    assert changed and all(key.startswith("camera_head.") for key in changed)


def test_a_camera_that_shows_the_object_too_large_is_told_so_by_its_picture():
    box = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.3, 0.3)])[None]
    true = torch.eye(4)[None]
    true[0, 2, 3] = 2.0
    fov = torch.tensor([0.6])
    errors = {}
    for name, (depth, angle) in {"right": (2.0, 0.6), "near": (1.7, 0.6), "zoomed": (1.0, 1.2)}.items():
        encoding = torch.tensor([[[0, 0, depth, 0, 0, 0, 1, angle, angle]]])
        losses = camera_losses([encoding], true, fov, torch.zeros(1), box)
        errors[name] = float(losses["view"])
    # The last is as wrong as a camera can be, but nearly makes the same picture.
    assert errors["right"] < 1e-6 < errors["zoomed"] and errors["near"] > 0.05


def test_a_run_resumes_where_it_stopped(data, tmp_path, capsys):
    image_encoder.main(arguments(data, tmp_path, "--steps", "1"))
    before = load_file(tmp_path / "image_encoder" / "resume.safetensors")
    image_encoder.main(arguments(data, tmp_path, "--steps", "3"))
    assert "resumed at step 1" in capsys.readouterr().out
    after = load_file(tmp_path / "image_encoder" / "resume.safetensors")
    assert before.keys() == after.keys()
    key = "weight/dinov2.blocks.0.attn.qkv.weight"
    assert not torch.equal(before[key], after[key])


def test_a_run_can_start_from_the_weights_of_another(data, tmp_path, capsys):
    image_encoder.main(arguments(data, tmp_path / "first"))
    image_encoder.main(arguments(data, tmp_path / "second", "--steps", "0", "--init", str(tmp_path / "first")))
    assert "dinov2 starts from" in capsys.readouterr().out
    first, second = (
        load_file(tmp_path / name / "image_encoder" / "dinov2.safetensors") for name in ("first", "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_can_start_from_an_assembled_checkpoint(data, runs, tmp_path, capsys):
    assemble(runs, tmp_path / "mini", tiny=True)
    image_encoder.main(arguments(data, tmp_path / "next", "--steps", "0", "--init", str(tmp_path / "mini")))
    assert "dinov2 starts from" in capsys.readouterr().out
    before, after = (load_file(folder / "image_encoder" / "dinov2.safetensors") for folder in (runs, tmp_path / "next"))
    key = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(after[key].float(), before[key].float(), atol=1e-3, rtol=0)


def test_the_structure_latent_is_scaled_without_changing_what_it_decodes_to():
    from training.settings import sizes
    from trellis.models import SparseStructureDecoder, SparseStructureEncoder

    networks = sizes(tiny=True).networks
    torch.manual_seed(0)
    encoder = SparseStructureEncoder(**networks["ss_encoder"]).eval()
    decoder = SparseStructureDecoder(**networks["ss_decoder"]).eval()
    grid = (torch.rand(2, 1, 8, 8, 8) > 0.7).float()
    with torch.no_grad():
        z = encoder(grid)
        before = decoder(z)
        std = z.std((0, 2, 3, 4))
        weights = {f"encoder.{k}": v.clone() for k, v in encoder.state_dict().items()}
        weights |= {f"decoder.{k}": v.clone() for k, v in decoder.state_dict().items()}
        structure_vae.unit_latent(weights, std)
        encoder.load_state_dict({k[8:]: v for k, v in weights.items() if k.startswith("encoder.")})
        decoder.load_state_dict({k[8:]: v for k, v in weights.items() if k.startswith("decoder.")})
        scaled = encoder(grid)
        torch.testing.assert_close(scaled.std((0, 2, 3, 4)), torch.ones_like(std), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(decoder(scaled), before, rtol=1e-4, atol=1e-4)
