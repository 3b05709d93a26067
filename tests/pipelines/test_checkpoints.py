"""Checkpoint folders: reports on what did not fit, and one sentence for everything that cannot be loaded."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import ENCODERS, MODELS

from trellis.errors import InputError
from trellis.models import VGGT
from trellis.pipelines import Checkpoint, TrellisVGGTTo3DPipeline, published
from trellis.pipelines.checkpoints import build_model

load = TrellisVGGTTo3DPipeline.from_pretrained


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "checkpoint")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty caches and hub offline mode, as HF_HUB_OFFLINE=1 sets it at start-up."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("network access"))


def edit_json(file, change):
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def edit_weights(file, change):
    state = load_file(file)
    change(state)
    save_file(state, file)


def refused(folder, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_a_complete_checkpoint_reports_nothing(folder, caplog):
    pipeline = load(folder)
    assert pipeline.report.complete and not caplog.records
    assert len(pipeline.report.models) == 9 and pipeline.formats == ["gaussian", "mesh"]
    assert (pipeline.image_resolution, pipeline.camera_frame) == (56, "object")
    assert pipeline.sparse_structure_sampler_params["steps"] == 3
    stored = load_file(folder / "ckpts/slat_flow_model.safetensors")
    state = pipeline.models["slat_flow_model"].state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in state.items())


def test_loading_leaves_the_global_random_stream_alone(folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(folder)
    assert torch.equal(torch.rand(2), expected)


def test_missing_and_surplus_weights_are_reported(folder, caplog):
    def change(state):
        del state["blocks.0.mlp.mlp.0.weight"]
        state["lora.weight"] = torch.zeros(2)

    edit_weights(folder / "ckpts/sparse_structure_flow_model.safetensors", change)
    for name, unused in [("slat_vggt_cond", "fuse_blocks.0.0.bias"), ("vggt_model", "track_head.x")]:
        edit_weights(folder / f"ckpts/{name}.safetensors", lambda state, key=unused: state.update({key: torch.ones(1)}))
    with caplog.at_level(logging.WARNING):
        pipeline = load(folder)
    assert not pipeline.report.complete
    assert pipeline.report.missing == {"sparse_structure_flow_model": ("blocks.0.mlp.mlp.0.weight",)}
    assert pipeline.report.surplus == {"sparse_structure_flow_model": ("lora.weight",)}
    assert "blocks.0.mlp.mlp.0.weight" in caplog.text and "lora.weight" in caplog.text
    assert "fuse_blocks" not in caplog.text and "track_head" not in caplog.text
    started = pipeline.models["sparse_structure_flow_model"].blocks[0].mlp.mlp[0].weight
    assert started.isfinite().all() and 0 < started.std() < 1, "missing weights start as in training"


@pytest.mark.parametrize("key", [*MODELS, *ENCODERS])
def test_empty_networks_have_the_same_parts_and_no_memory(key):
    class_name, args = {**MODELS, **ENCODERS}[key]
    full = build_model(class_name, args, key)
    empty = build_model(class_name, args, key, empty=True)
    kinds = [{k: (v.shape, v.dtype) for k, v in module.state_dict().items()} for module in (full, empty)]
    assert kinds[0] == kinds[1]
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert not full.training and not empty.training


def test_weights_on_the_cpu_are_the_mapped_file(folder):
    """No second copy: what is loaded shares the pages of the file."""
    model = Checkpoint(folder).load_model("slat_decoder_gs")
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list mapped files")
    address = model.input_layer.weight.data_ptr()
    for line in maps.read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith("slat_decoder_gs.safetensors")
            return
    pytest.fail("the weight lies in no mapping")


def test_a_copy_of_the_vggt_repository_beside_the_pipeline_is_used(folder):
    settings = json.loads((folder / "pipeline.json").read_text())
    stem = settings["args"].pop("vggt_model")
    (folder / "pipeline.json").write_text(json.dumps(settings))
    copy = folder / "vggt-object-v0-1"
    copy.mkdir()
    args = json.loads((folder / f"{stem}.json").read_text())["args"]
    (copy / "config.json").write_text(json.dumps({**args, "something_else": 1}))
    (folder / f"{stem}.safetensors").rename(copy / "model.safetensors")
    report = load(folder).report
    assert report.complete
    # Those weights are not under the checkpoint's own licence.
    licences = {model.name: model.licence for model in report.models}
    assert licences.pop("vggt_model") == "CC-BY-NC-4.0" and set(licences.values()) == {"CC0-1.0"}


def test_a_licence_that_is_no_text_is_a_sentence(folder):
    edit_json(folder / "pipeline.json", lambda c: c.update(licence=["MIT"]))
    refused(folder, "licence in pipeline.json")
    edit_json(folder / "pipeline.json", lambda c: c.pop("licence"))
    assert {model.licence for model in load(folder).report.models} == {None}


def test_other_shapes_are_refused(folder):
    file = folder / "ckpts/slat_decoder_gs.safetensors"
    edit_weights(file, lambda state: state.update({"out_layer.bias": torch.zeros(3)}))
    assert "[56]" in refused(folder, r"slat_decoder_gs.*out_layer\.bias is \[3\]")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(name="os.system"), "os.system"),
        (lambda c: c["args"].update(num_hedas=3), "num_hedas"),
        (lambda c: c["args"].pop("num_blocks"), "num_blocks"),
        (lambda c: c["args"].update(num_heads="two"), "does not fit"),
        (lambda c: c["args"].update(model_channels=-1), "does not fit"),
        (lambda c: c.update(args=[1]), "args"),
        (lambda c: c.pop("name"), "name"),
    ],
)
def test_bad_network_configurations_are_sentences(folder, change, sentence):
    edit_json(folder / "ckpts/slat_flow_model.json", change)
    refused(folder, sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("models"), "models"),
        (lambda a: a["models"].pop("slat_flow_model"), "slat_flow_model"),
        (lambda a: a["models"].update(slat_flow_model=3), "stems"),
        (lambda a: a["models"].update(slat_flow_model="../../etc/x"), "inside a checkpoint"),
        (lambda a: a["models"].update(slat_flow_model="/etc/x"), "inside a checkpoint"),
        (lambda a: a["models"].update(slat_flow_model="ckpts/none"), r"ckpts/none\.json"),
        (lambda a: a.update(vggt_model="ckpts/slat_flow_model"), "must be a VGGT"),
        (lambda a: a.update(image_cond_model="../x"), "inside a checkpoint"),
        (lambda a: a["slat_sampler"].update(name="Magic"), "Magic"),
        (lambda a: a["slat_sampler"].update(args={"sigma_max": 1}), "sigma_max"),
        (lambda a: a["slat_sampler"].update(args={"sigma_min": "small"}), "sigma_min"),
        (lambda a: a["slat_sampler"].update(params=[]), "params"),
        (lambda a: a["slat_normalization"].update(std=["wide"] * 8), "std"),
        (lambda a: a["slat_normalization"].update(mean=[0.0]), "mean"),
        (lambda a: a.update(image_resolution="big"), "image_resolution"),
        (lambda a: a.update(camera_frame="moon"), "moon"),
        (lambda a: a.update(camera_readings=0), "camera_readings"),
        (lambda a: a.update(camera_readings=33), "camera_readings"),
        (lambda a: a.update(camera_readings="all"), "camera_readings"),
        (lambda a: a.update(camera_readings=4, camera_frame="first_view"), "object frame"),
        (lambda a: a.update(structure_candidates=0), "structure_candidates"),
        (lambda a: a.update(structure_thresholds=[]), "structure_thresholds"),
        (lambda a: a.update(structure_thresholds=[0, "low"]), "structure_thresholds"),
    ],
)
def test_bad_pipeline_files_are_sentences(folder, change, sentence):
    edit_json(folder / "pipeline.json", lambda config: change(config["args"]))
    refused(folder, sentence)


def test_damaged_files_are_sentences(folder):
    weights = folder / "ckpts/slat_decoder_mesh.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(folder, "damaged")
    (folder / "pipeline.json").write_text("[" * 100_000)
    refused(folder, "pipeline.json")
    (folder / "pipeline.json").write_text("3")
    refused(folder, "not a JSON object")
    (folder / "pipeline.json").unlink()
    refused(folder, "no pipeline.json.*assets/mini")


def test_decoders_may_be_left_out(folder):
    edit_json(folder / "pipeline.json", lambda c: c["args"]["models"].pop("slat_decoder_mesh"))
    pipeline = load(folder)
    assert pipeline.formats == ["gaussian"]
    with pytest.raises(InputError, match="choose from gaussian"):
        pipeline.decode_slat(None, ["mesh"])


def test_vggt_from_a_folder_of_its_own(folder, tmp_path):
    source = tmp_path / "vggt"
    source.mkdir()
    config = json.loads((folder / "ckpts/vggt_model.json").read_text())["args"]
    (source / "config.json").write_text(json.dumps({**config, "enable_track": False}))
    shutil.move(folder / "ckpts/vggt_model.safetensors", source / "model.safetensors")
    edit_json(folder / "pipeline.json", lambda c: c["args"].pop("vggt_model"))
    pipeline = load(folder, vggt_model=str(source))
    assert isinstance(pipeline.vggt, VGGT) and pipeline.report.complete


def test_hub_repositories_offline_are_one_sentence(no_network):
    message = refused("Stable-X/trellis-vggt-v0-2", r"pipeline\.json of 'Stable-X/trellis-vggt-v0-2'.*offline mode")
    assert "hf download Stable-X/trellis-vggt-v0-2" in message and "assets/mini" in message
    refused("no such folder, nor a repository", "neither a folder.*assets/mini")


def test_parts_from_other_repositories_offline_are_one_sentence(no_network, folder):
    edit_json(folder / "pipeline.json", lambda c: c["args"]["models"].update(slat_flow_model="owner/other/ckpts/flow"))
    refused(folder, r"ckpts/flow\.json of 'owner/other'")
    edit_json(folder / "pipeline.json", lambda c: c["args"]["models"].update(slat_flow_model="ckpts/slat_flow_model"))
    edit_json(folder / "pipeline.json", lambda c: c["args"].pop("vggt_model"))
    refused(folder, r"config\.json of 'Stable-X/vggt-object-v0-1'.*offline mode.*assets/mini")


def test_the_hub_cache_is_used_before_the_network(no_network, folder, tmp_path):
    cached = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert load("owner/name").report.complete


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_published_dinov2_is_read_without_executing_it(no_network, folder, monkeypatch):
    edit_json(folder / "pipeline.json", lambda c: c["args"].update(image_cond_model="dinov2_vitl14_reg"))
    refused(folder, r"dinov2_vitl14_reg4_pretrain\.pth.*offline mode.*https://.*assets/mini")
    file = folder / "ckpts" / "dinov2_vitl14_reg4_pretrain.pth"
    file.write_bytes(pickle.dumps(Exploit()))
    refused(folder, "damaged or holds more than weights")
    torch.save({"cls_token": Exploit()}, file)
    refused(folder, "damaged or holds more than weights")

    # The published size is too large for a test; the entry is the same.
    tiny = json.loads((folder / "ckpts/image_cond_model.json").read_text())["args"]
    entry = published.HubEncoder(tiny, file.name, file.stat().st_size, "https://nowhere.invalid", "MIT")
    monkeypatch.setitem(published.TORCH_HUB_ENCODERS, "dinov2_vitl14_reg", entry)
    torch.save(load_file(folder / "ckpts/image_cond_model.safetensors"), file)
    assert load(folder).report.complete


def test_a_checkpoint_can_be_opened_without_loading(folder):
    checkpoint = Checkpoint(folder)
    assert checkpoint.stems["slat_flow_model"] == "ckpts/slat_flow_model"
    assert checkpoint.settings().image_resolution == 56
    assert checkpoint.load_model("slat_vggt_cond").levels == (0, 1, 2, 3)
    with pytest.raises(InputError, match="slat_decoder_rf"):
        checkpoint.load_model("slat_decoder_rf")
