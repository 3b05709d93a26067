"""The photographs' own pixels, beyond what the networks see: kept by a run, and painted from again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import tiny_views

from studio.cache import StageCache
from studio.inputs import View
from studio.job import make_job
from studio.replay import revise
from studio.runner import run_job
from studio.settings import make_settings
from trellis.errors import InputError


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("shared") / "stages")


@pytest.fixture(scope="module")
def sharp(engine, quick, cache, tmp_path_factory) -> Path:
    """A finished run whose photographs have more pixels than the networks see."""
    folder = tmp_path_factory.mktemp("sharp") / "run"
    run_job(make_job(tiny_views(2, size=400), quick, folder), engine, cache=cache)
    return folder


def without_photos(run: Path, folder: Path) -> Path:
    """A copy of a run as it was before runs kept anything but what the networks saw."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("photos"))
    record = json.loads((folder / "run.json").read_text())
    for view in record["views"]:
        del record["files"][view.pop("photo")]
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_run_keeps_its_views_with_the_photographs_pixels_too(sharp, engine, quick, cache, tmp_path):
    record = json.loads((sharp / "run.json").read_text())
    for number, photo in enumerate(tiny_views(2, size=400)):
        seen = Image.open(sharp / record["views"][number]["file"])
        kept = Image.open(sharp / record["views"][number]["photo"])
        np.testing.assert_array_equal(seen, engine.pipeline.preprocess_image(photo))
        assert kept.mode == "RGBA" and kept.width == kept.height > 4 * seen.width
        small = kept.resize(seen.size, Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(small, dtype=int) - np.asarray(seen, dtype=int)).mean() < 6
    # Photographs that have no more pixels are not kept twice.
    plain = run_job(make_job(tiny_views(2), quick, tmp_path), engine, cache=cache)
    assert not (plain.folder / "photos").exists()
    assert [view["photo"] for view in json.loads(plain.run.read_text())["views"]] == [None, None]


def test_a_revision_paints_from_the_same_pixels(sharp, engine, quick, cache, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(sharp, folder)
    photos = {file.name: file.read_bytes() for file in (folder / "photos").iterdir()}
    for changes, baked in (({"longest_side": 0.2}, set()), ({"texture_size": 768}, {"bake"})):
        record = json.loads(run_job(revise(folder, changes), engine, cache=cache).run.read_text())
        assert set(record["seconds"]) - {"prepare"} == {*baked, "report", "write", "total"}
        assert {file.name: file.read_bytes() for file in (folder / "photos").iterdir()} == photos
    larger = make_settings({"texture_size": 768}, quick)
    direct = run_job(make_job(tiny_views(2, size=400), larger, tmp_path / "direct"), engine)
    assert direct.mesh.read_bytes() == (folder / "mesh.glb").read_bytes()


def test_a_run_of_an_earlier_version_is_baked_again_from_what_the_networks_saw(sharp, engine, cache, tmp_path):
    folder = without_photos(sharp, tmp_path / "old")
    result = run_job(revise(folder, {"simplify": 0.9}), engine, cache=cache)
    seconds = json.loads(result.run.read_text())["seconds"]
    assert set(seconds) - {"prepare"} == {"paint", "mesh", "bake", "video", "report", "write", "total"}
    assert not (folder / "photos").exists()
    # The same mesh is another with its photographs.
    again = run_job(revise(sharp, {"simplify": 0.9}, tmp_path / "new"), engine, cache=cache)
    assert "mesh" in again.cached and "bake" not in again.cached
    assert again.mesh.read_bytes() != result.mesh.read_bytes()


@pytest.mark.parametrize("photo", ["../outside.png", "photos/gone.png", ""])
def test_photos_that_a_record_names_must_be_its_own(sharp, tmp_path, photo):
    shutil.copytree(sharp, tmp_path / "run")
    shutil.copyfile(sharp / "photos" / "000.png", tmp_path / "outside.png")
    record = json.loads((sharp / "run.json").read_text())
    record["views"][1]["photo"] = photo
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is missing beside its run.json"):
        revise(tmp_path / "run", {})


@pytest.mark.parametrize("size", [(60, 50), (800, 800)])
def test_photos_that_no_run_keeps_are_refused(sharp, engine, tmp_path, size):
    shutil.copytree(sharp, tmp_path / "run")
    file, record = tmp_path / "run" / "photos" / "001.png", json.loads((sharp / "run.json").read_text())
    Image.new("RGBA", size, (9, 9, 9, 255)).save(file)
    with pytest.raises(InputError, match="'photos/001.png' has been changed since"):
        revise(tmp_path / "run", {})
    record["files"]["photos/001.png"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="'view 2': .* must be square, of at most 768 pixels"):
        run_job(revise(tmp_path / "run", {}), engine)


def test_a_mask_by_hand_cuts_the_photographs_pixels_too(engine, quick, tmp_path):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    tiny_views(1, size=400, transparent=False)[0].save(photo)
    painted = Image.new("L", (200, 200))
    painted.paste(255, (50, 60, 150, 100))
    painted.save(mask)
    run_job(make_job([View("photo.png", photo, mask)] * 2, quick, tmp_path / "out"), engine)
    alpha = np.asarray(Image.open(tmp_path / "out" / "photos" / "000.png").getchannel("A")) > 128
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    assert len(columns) == pytest.approx(200, abs=4) and len(rows) == pytest.approx(80, abs=4)
