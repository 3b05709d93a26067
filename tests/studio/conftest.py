"""One tiny checkpoint, loaded once, and settings under which a whole reconstruction takes a second or two."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import write_tiny_checkpoint

from studio import stages
from studio.engine import Engine, load_engine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    return load_engine(str(checkpoint), "cpu")


@pytest.fixture
def short_video(monkeypatch: pytest.MonkeyPatch) -> int:
    """Turntables of eight small frames."""
    monkeypatch.setattr(stages, "VIDEO_FRAMES", 8)
    monkeypatch.setattr(stages, "VIDEO_RESOLUTION", 64)
    return 8
