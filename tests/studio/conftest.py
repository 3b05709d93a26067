"""One tiny checkpoint, loaded once, and settings under which a whole reconstruction takes a second or two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from studio_settings import QUICK
from tiny_checkpoint import write_tiny_checkpoint

from studio.engine import Engine, load_engine
from studio.service import Service
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


@pytest.fixture(scope="session")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real worker process, started once, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("service")
        patch.setenv("RECONSTUDIO_CACHE", str(folder / "stages"))
        patch.setenv("RECONSTUDIO_HISTORY", str(folder / "history.jsonl"))
        service = Service(str(checkpoint), ["cpu"]).start()
    with service:
        yield service
