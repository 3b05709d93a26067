from __future__ import annotations

import os

import numba
import numpy as np
import pytest

from trellis.renderers import numba_runtime
from trellis.renderers.mesh_raster import warm_up


def test_the_threading_layer_survives_several_threads():
    warm_up()
    assert numba.threading_layer() in ("omp", "tbb")


def test_the_lock_can_be_taken_twice_by_one_thread():
    with numba_runtime.exclusive(), numba_runtime.exclusive():
        pass


@pytest.mark.parametrize("options", [None, {"parallel": False}])
def test_a_kernel_is_declared_bare_or_with_options(options):
    def double(values):
        return values * 2

    compiled = numba_runtime.kernel(double) if options is None else numba_runtime.kernel(**options)(double)
    assert compiled(np.ones(3)).tolist() == [2, 2, 2]


def test_a_read_only_installation_caches_elsewhere(tmp_path, monkeypatch):
    installed, cache = tmp_path / "site-packages", tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "chosen by the user")
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != installed and writable(path, mode))

    numba_runtime._ensure_writable_cache(installed)
    assert os.environ["NUMBA_CACHE_DIR"] == "chosen by the user"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    numba_runtime._ensure_writable_cache(tmp_path)
    assert "NUMBA_CACHE_DIR" not in os.environ
    numba_runtime._ensure_writable_cache(installed)
    folder = os.environ.pop("NUMBA_CACHE_DIR")
    assert folder == str(cache / "trellis" / "numba") and os.path.isdir(folder)
