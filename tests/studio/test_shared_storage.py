"""Whole jobs against what storage does: a disk that is really full, and another process in the same cache."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_views

from studio.cache import StageCache
from studio.job import make_job
from studio.runner import run_job

ROOT = Path(__file__).resolve().parents[2]

# arguments: checkpoint, cache, out, bound on the cache in bytes, number of jobs, seed of their order
MIXED_JOBS = """
import sys
sys.path[:0] = ["tests"]
import studio.environment
import hashlib, json, random
from pathlib import Path
from studio_settings import QUICK
from tiny_checkpoint import tiny_views
from studio.cache import StageCache
from studio.engine import load_engine
from studio.job import make_job
from studio.runner import run_job
from studio.settings import make_settings

checkpoint, cache, out, bound, count, seed = sys.argv[1:]
engine = load_engine(checkpoint, "cpu")
cache = StageCache(cache, int(bound), say=lambda sentence: sys.exit(sentence))
quick = make_settings(QUICK, engine.defaults)
chance = random.Random(int(seed))
hits, found = 0, {}
for number in range(int(count)):
    views = chance.randrange(1, 5)
    if number % 12 == 0:
        name, settings = "whole 2 seed %d" % (number // 12 % 2), make_settings({"seed": number // 12 % 2}, quick)
        result = run_job(make_job(tiny_views(2), settings, out), engine, cache=cache)
        content = json.loads(result.run.read_text())["files"]
    else:
        name = f"cameras {views}"
        result = run_job(make_job(tiny_views(views), quick, out, until="cameras"), engine, cache=cache)
        content = result.transforms
    hits += len(result.cached)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert found.setdefault(name, digest) == digest, name
print(json.dumps({"hits": hits, "found": found}))
"""


def run(script: str, *args: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_run_a_hundred_mixed_jobs_over_one_small_cache(checkpoint, engine, quick, tmp_path):
    """What a job puts out must not depend on what it finds in the cache, or on who put it there."""
    cache, bound = tmp_path / "cache", 3_000_000
    processes = [run(MIXED_JOBS, checkpoint, cache, tmp_path / f"out{seed}", bound, 50, seed) for seed in range(2)]
    told = []
    for process in processes:
        output, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
        assert "damaged" not in errors
        told.append(json.loads(output.splitlines()[-1]))
    assert told[0]["found"] == told[1]["found"] and all(process["hits"] > 20 for process in told)
    left = StageCache(cache, bound)
    assert 0 < left.size() <= bound
    assert all(left.get(file.stem) is not None for file in cache.glob("*.stage"))
    whole = {"whole 2 seed 0", "whole 2 seed 1"}
    assert set(told[0]["found"]) == whole | {f"cameras {count}" for count in range(1, 5)}
    # And it is what comes out without any cache.
    found = run_job(make_job(tiny_views(3), quick, tmp_path / "out", until="cameras"), engine)
    digest = hashlib.sha256(json.dumps(found.transforms, sort_keys=True).encode()).hexdigest()
    assert told[0]["found"]["cameras 3"] == digest


FULL_DISK = """
import sys
sys.path[:0] = ["tests"]
import studio.environment
import json
from pathlib import Path
from studio_settings import QUICK
from tiny_checkpoint import tiny_views
from studio.cache import StageCache
from studio.engine import load_engine
from studio.job import make_job
from studio.runner import run_job
from studio.settings import make_settings
from trellis.errors import InputError

checkpoint, small, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
engine = load_engine(checkpoint, "cpu")
quick = make_settings(QUICK, engine.defaults)
said = []
cache = StageCache(small / "cache", say=said.append)
result = run_job(make_job(tiny_views(2), quick, out), engine, cache=cache)
print(json.dumps({"said": said, "complete": result.run.is_file()}))
entries = [cache.get(file.stem) is not None for file in (small / "cache").glob("*.stage")]
(small / "ballast").write_bytes(b"x")
try:
    with (small / "ballast").open("ab") as stream:  # whatever room is left
        while True:
            stream.write(b"x" * 1000)
            stream.flush()
except OSError as error:
    full = error.errno
try:
    run_job(make_job(tiny_views(2), quick, small / "out"), engine)
    refusal = None
except InputError as error:
    refusal = str(error)
left = sorted(path.name for path in small.iterdir())
print(json.dumps({"entries": entries, "errno": full, "refusal": refusal, "left": left}))
(small / "ballast").unlink()
"""


def test_a_disk_that_is_really_full(checkpoint, tmp_path):
    """A tmpfs of 600 kB, mounted in a namespace of the process's own."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             f"mount -t tmpfs -o size=600k tmpfs '{small}' && exec \"$@\"", "sh"]  # fmt: skip
    try:
        allowed = subprocess.run([*mount, "true"], capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("no file system may be mounted here")
    command = [*mount, sys.executable, "-c", FULL_DISK, str(checkpoint), str(small), str(tmp_path / "out")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert process.returncode == 0, process.stderr
    first, second = map(json.loads, process.stdout.splitlines()[-2:])
    assert first["complete"] and len(first["said"]) == 1 and "the disk is full" in first["said"][0]
    assert second["entries"] and all(second["entries"])  # what was kept before is whole
    assert second["errno"] == 28  # ENOSPC
    assert "No space left on device" in second["refusal"] and second["refusal"].startswith("Nothing")
    assert second["left"] == ["ballast", "cache"]
