"""The stage cache against everything that storage does: damage, full disks, other processes, sudden death."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio import fingerprint, refine_stages, stages
from studio.cache import StageCache, default_folder
from studio.codec import DamagedError, decode, encode
from studio.stages import PreparedView
from trellis.modules.sparse import SparseTensor
from trellis.representations.gaussian import Gaussian

ROOT = Path(__file__).resolve().parents[2]


def test_everything_that_stages_hand_on_comes_back_bit_equal():
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], scaling_activation="softplus")
    gaussian._xyz = torch.rand(5, 3)
    view = PreparedView("a.png", Image.new("RGBA", (4, 4), (1, 2, 3, 4)), "alpha", ({"kind": "blur", "value": 1.0},),
                        sharp=Image.new("RGBA", (9, 9), (5, 6, 7, 0)))  # fmt: skip
    value = {
        "half": torch.randn(3, 2).half()[:, :1],  # not contiguous
        "list": [torch.arange(3), None, True, 1.5, "text"],
        "tuple": (np.eye(2, dtype=np.float32), b"", b"bytes"),
        "sparse": SparseTensor(torch.rand(2, 3), torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.int32)),
        "splats": gaussian,
        "view": view,
    }
    back = decode(encode(value))
    assert back["half"].dtype == torch.float16 and torch.equal(back["half"], value["half"])
    assert torch.equal(back["list"][0], value["list"][0]) and back["list"][1:] == [None, True, 1.5, "text"]
    assert isinstance(back["tuple"], tuple) and back["tuple"][1:] == (b"", b"bytes")
    np.testing.assert_array_equal(back["tuple"][0], value["tuple"][0])
    assert torch.equal(back["sparse"].coords, value["sparse"].coords)
    assert torch.equal(back["splats"]._xyz, gaussian._xyz)
    assert back["splats"].scaling_activation == "softplus"
    assert back["view"].image.getpixel((0, 0)) == (1, 2, 3, 4) and back["view"].notes == view.notes
    assert back["view"].sharp.size == (9, 9) and back["view"].sharp.getpixel((8, 8)) == (5, 6, 7, 0)


def test_only_known_classes_are_written():
    with pytest.raises(TypeError, match="cannot be kept"):
        encode(object())


def test_one_flipped_bit_is_noticed():
    data = bytearray(encode([torch.zeros(100)]))
    for position in (0, 40, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(DamagedError):
            decode(bytes(damaged))


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 500])
def test_a_damaged_entry_is_absent_and_removed(tmp_path, damage):
    cache = StageCache(tmp_path)
    cache.put("key", [1])
    (tmp_path / "key.stage").write_bytes(damage)
    assert cache.get("key") is None and "key" not in cache


def test_the_entries_unused_for_the_longest_make_room(tmp_path):
    block = torch.zeros(25_000, dtype=torch.float32)  # 100 kB
    cache = StageCache(tmp_path, max_bytes=320_000)
    for index, key in enumerate("abc"):
        cache.put(key, block)
        os.utime(tmp_path / f"{key}.stage", (index, index))
    cache.get("a")  # now the most recently used
    cache.put("d", block)
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    assert cache.size() <= 320_000
    assert not cache.put("e", torch.zeros(100_000))  # larger than half of the cache
    assert "e" not in cache


def test_a_full_disk_is_one_sentence_and_leaves_nothing_torn(tmp_path, monkeypatch):
    said: list[str] = []
    cache = StageCache(tmp_path, say=said.append)
    cache.put("before", [1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("studio.cache.os.fsync", full)
    assert not cache.put("a", [1]) and not cache.put("b", [1])
    assert len(said) == 1 and "the disk is full" in said[0]
    assert cache.get("before") == [1]
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == ["before.stage"]


def test_a_cache_that_could_not_be_written_to_is_tried_again_later(tmp_path, monkeypatch):
    said: list[str] = []
    cache = StageCache(tmp_path, say=said.append)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("studio.cache.os.fsync", full)
        assert not cache.put("a", [1])
    assert not cache.put("a", [1]) and len(said) == 1  # not so soon
    monkeypatch.setattr("studio.cache._PAUSE_SECONDS", 0.0)
    cache = StageCache(tmp_path, say=said.append)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("studio.cache.os.fsync", full)
            assert not cache.put("a", [1]) and not cache.put("a", [1])
        assert cache.put("a", [1]) and cache.get("a") == [1]
    assert len(said) == 3  # once for each time that it was full


def test_a_real_quota(tmp_path):
    """A process that may write 50 kB a file: the kernel itself refuses in mid-write."""
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import studio.environment, torch
from studio.cache import StageCache
cache = StageCache({str(tmp_path)!r}, say=print)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
print(cache.put("large", torch.zeros(100_000)), cache.put("small", [1]), "large" in cache)
"""
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "the disk is full" in output.stdout and "False False False" in output.stdout, output
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    cache = StageCache(tmp_path / "file" / "cache", say=said.append)
    assert not cache.put("a", [1]) and cache.get("a") is None and len(said) == 1


def test_off_and_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONSTUDIO_CACHE", "off")
    assert default_folder() is None
    cache = StageCache(default_folder())
    assert not cache.put("a", [1]) and cache.get("a") is None and "a" not in cache and cache.size() == 0
    monkeypatch.delenv("RECONSTUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "reconstudio" / "stages"


HAMMER = """
import random, sys
import studio.environment, torch
from studio.cache import StageCache
folder, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
cache = StageCache(folder, max_bytes=600_000, say=print)
hits = 0
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    number = random.randrange(12)
    value = cache.get(f"key{number}")
    if value is None:
        assert cache.put(f"key{number}", [number, torch.full((10_000 + number,), float(number))])
    else:
        hits += 1
        assert value[0] == number and len(value[1]) == 10_000 + number and bool((value[1] == number).all())
print("hits", hits)
"""


def hammer(folder: Path, seed: int, rounds: int) -> subprocess.Popen:
    command = [sys.executable, "-c", HAMMER, str(folder), str(seed), str(rounds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_a_cache_that_is_too_small_for_them_while_a_third_is_killed(tmp_path):
    folder = tmp_path / "cache"
    victim = hammer(folder, 3, 10_000_000)
    assert victim.stdout.readline() == "ready\n"
    workers = [hammer(folder, seed, 100) for seed in (1, 2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    time.sleep(0.2)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        assert "damaged" not in errors and int(output.split()[1]) > 0
    cache = StageCache(folder, max_bytes=600_000)
    assert 0 < cache.size() <= 600_000
    assert all(cache.get(file.stem) is not None for file in folder.glob("*.stage"))


def test_what_a_dead_process_left_unfinished_is_cleared_away_later(tmp_path):
    cache = StageCache(tmp_path)
    old, new = tmp_path / ".unfinished-old", tmp_path / ".unfinished-new"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.put("a", [1])
    assert not old.exists() and new.exists()


@pytest.mark.parametrize(("module", "example"), [(stages, "quality"), (refine_stages, "stages")])
def test_a_change_of_what_stages_call_shares_no_stage(module, example):
    """Settings are part of the keys themselves, previews and events of no output."""
    source = Path(module.__file__).read_text()
    called = set(re.findall(r"^from studio\.(\w+) import", source, re.M))
    for line in re.findall(r"^from studio import (.+)", source, re.M):
        called |= {name.strip() for name in line.split(",")}
    assert example in called
    called -= {"settings", "refine_settings", "previews", "events"}
    packages = set(re.findall(r"^from (trellis|nvdiffrec)\b", source, re.M))
    wanted = {f"studio/{name}.py" for name in called} | {f"{package}/**/*.py" for package in packages}
    assert wanted | {f"studio/{Path(module.__file__).name}"} <= set(fingerprint._CODE)


@pytest.mark.parametrize("what", ["pipeline", "decoder"])
def test_a_checkpoint_with_other_settings_shares_no_stage(checkpoint, tmp_path, what):
    """The same weights under another pipeline.json or decoder, which decide what their outputs become."""
    from studio.engine import load_engine

    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    file = other / "pipeline.json"
    config = json.loads(file.read_text())
    if what == "pipeline":
        config["args"]["structure_thresholds"] = [0.5]
    else:
        file = other / f"{config['args']['models']['slat_decoder_mesh']}.json"
        config = json.loads(file.read_text())
        config["args"]["representation_config"]["sdf_bias"] = 0.5
    file.write_text(json.dumps(config))
    plain, coarse = (load_engine(str(folder), "cpu") for folder in (checkpoint, other))
    assert plain.weights == coarse.weights and plain.environment != coarse.environment
