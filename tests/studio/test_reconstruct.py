from __future__ import annotations

import io
import json
import threading
import zipfile
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from studio_settings import QUICK
from tiny_checkpoint import tiny_views, write_tiny_checkpoint

from nvdiffrec.view_files import load_views
from studio.colmap import colmap_project
from studio.reconstruct import Cancelled, Progress, Result, reconstruct
from studio.report import sha256
from studio.settings import make_settings
from studio.stages import STAGES
from trellis.errors import InputError
from trellis.export.frame import to_gltf_frame
from trellis.pipelines import TrellisVGGTTo3DPipeline
from trellis.renderers.camera_formats import from_transforms
from trellis.representations.gaussian import Gaussian

STAGE_NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def finished(engine, quick, tmp_path_factory) -> tuple[list[Progress], Result]:
    """One reconstruction from three views, with a short turntable."""
    settings = make_settings({"seed": 3}, quick)
    folder = tmp_path_factory.mktemp("out") / "new" / "folder"
    messages = list(reconstruct(tiny_views(3), settings, folder, engine.pipeline, checkpoint=engine.checkpoint))
    return messages[:-1], messages[-1]


def test_progress_walks_through_the_stages(finished):
    progress, result = finished
    assert isinstance(result, Result)
    order = list(dict.fromkeys(item.stage for item in progress))
    assert order == STAGE_NAMES
    for item in progress:
        assert 0 <= item.step <= item.of and item.message and item.seconds >= 0
    structure = [item.step for item in progress if item.stage == "structure"]
    assert structure[0] == 0 and structure[-1] == 3  # the tiny checkpoint recommends three steps


def test_the_folder_holds_the_promised_files_and_no_other(finished):
    _, result = finished
    files = sorted(str(path.relative_to(result.folder)) for path in result.folder.rglob("*") if path.is_file())
    views = [f"views/{number:03d}.png" for number in range(3)]
    maps = ["coverage.png", "coverage.glb", "coverage.mp4", "coverage.npz"]
    renders = [f"renders/{number:03d}.png" for number in range(3)]
    promised = ["mesh.glb", "gaussian.ply", "turntable.mp4", "transforms.json", "run.json"]
    assert files == sorted([*promised, *views, *maps, *renders])


def test_colmap_gets_the_same_cameras_with_their_views(finished, tmp_path):
    _, result = finished
    with zipfile.ZipFile(io.BytesIO(colmap_project(result.folder))) as archive:
        archive.extractall(tmp_path)
    read, ours = load_views(tmp_path), load_views(result.transforms)
    for field in ("extrinsics", "intrinsics"):
        assert torch.allclose(getattr(read.cameras, field), getattr(ours.cameras, field), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(read.images, ours.images, strict=True))
    assert (tmp_path / "sparse/0/points3D.txt").read_text() == ""
    (tmp_path / "transforms.json").write_text(result.transforms.read_text())
    with pytest.raises(InputError, match="The view '000.png' is missing"):
        colmap_project(tmp_path)


def test_the_mesh_is_textured_and_y_up(finished):
    _, result = finished
    scene = trimesh.load(result.mesh)
    (mesh,) = scene.geometry.values()
    assert len(mesh.faces) == result.counts["triangles"] > 0
    material = mesh.visual.material
    assert material.baseColorTexture.size == (512, 512)
    assert np.isfinite(mesh.vertices).all() and np.abs(mesh.vertices).max() < 1


def test_splats_and_mesh_lie_on_each_other(finished):
    _, result = finished
    splats = Gaussian(aabb=[-0.5, -0.5, -0.5, 1, 1, 1])
    splats.load_ply(result.gaussian, frame="gltf")
    assert len(splats) == result.counts["splats"]
    (mesh,) = trimesh.load(result.mesh).geometry.values()
    centre = to_gltf_frame(splats.get_xyz.numpy()).mean(axis=0)
    assert np.linalg.norm(centre - mesh.bounds.mean(axis=0)) < 0.25


def test_the_turntable_shows_colour_beside_normals(finished):
    _, result = finished
    frames = imageio.imread(result.turntable)
    assert frames.shape == (8, 64, 128, 3)
    assert frames[:, :, 64:].std() > 1  # something is there


def test_cameras_belong_to_the_saved_views(finished, engine):
    _, result = finished
    record = json.loads(result.transforms.read_text())
    assert record["frame"] == "gltf"
    cameras, names = from_transforms(record)
    assert names == [f"views/{number:03d}.png" for number in range(3)]
    prepared = [Image.open(result.folder / name) for name in names]
    for index, image in enumerate(prepared):
        assert image.mode == "RGBA"
        assert image.size[::-1] == cameras.height_width(index)
    expected = engine.pipeline.estimate_cameras(prepared)  # in the object frame, like what `from_transforms` returns
    torch.testing.assert_close(cameras.extrinsics, expected.extrinsics, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cameras.intrinsics, expected.intrinsics, atol=1e-3, rtol=1e-5)


def test_the_report_says_how_it_was_made(finished, engine):
    _, result = finished
    run = json.loads(result.run.read_text())
    assert run["seed"] == 3 and run["settings"] == result.settings.model_dump(mode="json")
    assert set(run["seconds"]) == {*STAGE_NAMES, "total"}
    assert run["peak_memory_bytes"]["rss"] > 50e6
    assert run["load_report"] == {"complete": True, "missing": {}, "surplus": {}}
    assert run["counts"] == result.counts
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert run["backends"]["attention"] == {"name": "sdpa", "licence": "BSD-3-Clause"}
    assert set(run["backends"]) > {"sparse_convolution", "gaussian_splatting", "mesh_rasterisation", "unwrapping"}
    assert run["backends"]["background_removal"][0]["name"] == "the image's own alpha channel"
    weights = Path(engine.checkpoint) / "ckpts" / "slat_flow_model.safetensors"
    assert run["weights"]["slat_flow_model"]["sha256"] == sha256(weights)
    assert len(run["weights"]) == 9 and {entry["licence"] for entry in run["weights"].values()} == {"CC0-1.0"}
    assert str(Path(engine.checkpoint).parent) not in result.run.read_text()  # where things lie is private


def test_the_same_seed_gives_the_same_asset(finished, engine, tmp_path):
    _, result = finished
    again = list(reconstruct(tiny_views(3), result.settings, tmp_path, engine.pipeline))[-1]
    assert again.gaussian.read_bytes() == result.gaussian.read_bytes()
    assert again.counts == result.counts


class CancelAfter:
    """Cancelled once it has been asked so many times; `heard` counts the answers yes."""

    def __init__(self, asked: int):
        self.left, self.heard = asked, 0

    def is_set(self) -> bool:
        self.left -= 1
        self.heard += self.left < 0
        return self.left < 0


def test_cancelling_in_mid_structure_stops_within_a_step_and_leaves_nothing(engine, tmp_path):
    settings = make_settings({"structure_steps": 50}, engine.defaults)
    reached = []
    for asked in (40, 44):
        cancel, steps = CancelAfter(asked), []
        with pytest.raises(Cancelled):
            for item in reconstruct(tiny_views(2), settings, tmp_path / "a" / "b", engine.pipeline, cancel=cancel):
                if item.stage == "structure":
                    steps.append(item.step)
        assert item.stage == "structure" and sorted(set(steps)) == list(range(steps[-1] + 1))
        assert cancel.heard == 1  # nothing went on after the first yes
        reached.append(steps[-1])
    assert 0 < reached[0] <= reached[1] <= reached[0] + 4 < 50  # a step asks at least once
    assert list(tmp_path.iterdir()) == []


def test_closing_the_generator_stops_the_job(engine, tmp_path):
    job = reconstruct(tiny_views(2), make_settings({"structure_steps": 50}, engine.defaults), tmp_path, engine.pipeline)
    next(job)
    job.close()
    assert not any(thread.name == "reconstruction" for thread in threading.enumerate())
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_survives_a_failed_run(finished, engine):
    _, result = finished
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="No object stands out"):
        list(reconstruct([Image.new("RGB", (64, 64), (90, 90, 90))], engine.defaults, result.folder, engine.pipeline))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        list(reconstruct(tiny_views(1), engine.defaults, result.folder, engine.pipeline, cancel=cancel))
    assert {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()} == before


def test_a_new_result_replaces_an_earlier_one_whole(engine, quick, tmp_path):
    for count in (3, 1):
        result = list(reconstruct(tiny_views(count), quick, tmp_path, engine.pipeline))[-1]
    assert [path.name for path in result.views] == ["000.png"]
    assert len(json.loads(result.run.read_text())["views"]) == 1


def test_a_folder_that_cannot_be_written_to(engine, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="Nothing can be written to"):
        list(reconstruct(tiny_views(1), engine.defaults, tmp_path / "file" / "out", engine.pipeline))


def test_an_unexpected_error_reaches_the_caller(engine, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("studio.stages.latent", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(reconstruct(tiny_views(1), engine.defaults, tmp_path, engine.pipeline))
    assert list(tmp_path.iterdir()) == []


def test_networks_trained_without_guidance_say_so_when_asked_for_it(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    configuration = json.loads((folder / "pipeline.json").read_text())
    configuration["args"]["sparse_structure_sampler"]["params"]["cfg_strength"] = 1.0
    (folder / "pipeline.json").write_text(json.dumps(configuration))
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(folder)
    for strength, told in ((1.0, False), (2.0, True)):
        settings = make_settings({**QUICK, "structure_cfg_strength": strength, "structure_steps": 1, "latent_steps": 1})
        result = list(reconstruct(tiny_views(1), settings, tmp_path / f"out{told}", pipeline))[-1]
        assert any("more than 1 of faithfulness" in note for note in result.notes) == told


def test_cameras_of_published_weights_are_not_called_registered(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "tiny", camera_frame="first_view")
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(folder)
    asked = {"structure_steps": 2, "structure_candidates": 3, "latent_steps": 2, "texture_source": "photographs"}
    settings = make_settings({**QUICK, **asked})
    result = list(reconstruct(tiny_views(1), settings, tmp_path / "out", pipeline))[-1]
    assert "not registered" in json.loads(result.transforms.read_text())["frame"]
    quality = json.loads(result.run.read_text())["quality"]
    assert quality["agreement"] is None and quality["coverage"] is None and quality["mesh"]["faces"] > 0
    # What needs cameras around the object says that it is left out.
    assert "one try at its shape" in result.notes[0] and result.settings.structure_candidates == 1
    assert "colours come from the splats" in result.notes[1]
