"""One tiny checkpoint, loaded once, and settings under which a whole reconstruction takes a second or two."""

from __future__ import annotations

from pathlib import Path

import pytest
from studio_settings import QUICK
from tiny_checkpoint import write_tiny_checkpoint

from studio.engine import Engine, load_engine
from studio.settings import ReconstructSettings, make_settings


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    return load_engine(str(checkpoint), "cpu")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of the person who runs it, or of another test."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("RECONSTUDIO_CACHE", str(folder / "stages"))
    monkeypatch.setenv("RECONSTUDIO_HISTORY", str(folder / "history.jsonl"))


@pytest.fixture(scope="session")
def quick(engine: Engine) -> ReconstructSettings:
    """The tiny checkpoint's settings with a small texture and a short turntable."""
    return make_settings(QUICK, engine.defaults)
