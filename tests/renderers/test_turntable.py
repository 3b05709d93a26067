from __future__ import annotations

import sys

import imageio_ffmpeg
import numpy as np
import pytest

from trellis.errors import InputError
from trellis.renderers.turntable import FPS, EncoderError, write_video


def gradient_frames(count: int, height: int, width: int, shift: int = 0) -> list[np.ndarray]:
    ramp = np.linspace(0, 200, width)[None, :, None] * np.ones((height, 1, 3))
    return [(ramp + 5 * k + shift).astype(np.uint8) for k in range(count)]


def read_video(path) -> tuple[dict, list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    return facts, [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


def test_video_shows_colour_left_and_normals_right(tmp_path):
    color, normal = gradient_frames(6, 64, 96), gradient_frames(6, 64, 80, shift=20)
    write_video(tmp_path / "turn.mp4", color, normal)
    facts, frames = read_video(tmp_path / "turn.mp4")
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p") and facts["fps"] == FPS == 15
    assert len(frames) == 6 and frames[0].shape == (64, 176, 3)
    for frame, left, right in zip(frames, color, normal, strict=True):
        expected = np.concatenate([left, right], axis=1).astype(int)
        assert np.abs(frame.astype(int) - expected).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == ["turn.mp4"]


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    write_video(tmp_path / "odd.mp4", gradient_frames(2, 33, 47))
    facts, frames = read_video(tmp_path / "odd.mp4")
    assert facts["size"] == (46, 32) and len(frames) == 2


@pytest.mark.parametrize(
    ("name", "color", "normal", "sentence"),
    [
        ("a.mp4", [], None, "at least one frame"),
        ("a.avi", gradient_frames(1, 8, 8), None, "end in .mp4"),
        ("a.mp4", gradient_frames(2, 8, 8), gradient_frames(1, 8, 8), "2 colour frames but 1"),
        ("a.mp4", gradient_frames(1, 8, 8), gradient_frames(1, 10, 8), "differ in height"),
        ("a.mp4", [np.zeros((8, 8, 3))], None, "uint8"),
        ("a.mp4", gradient_frames(1, 8, 8) + gradient_frames(1, 8, 10), None, "of one size"),
        ("a.mp4", gradient_frames(1, 1, 8), None, "at least 2 pixels"),
    ],
)
def test_frames_that_make_no_video_are_refused(tmp_path, name, color, normal, sentence):
    with pytest.raises(InputError, match=sentence):
        write_video(tmp_path / name, color, normal)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["exit 3", None])
def test_without_a_working_ffmpeg_the_encoder_is_to_blame(tmp_path, monkeypatch, script):
    program = tmp_path / "ffmpeg"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", lambda: str(program))
    with pytest.raises(EncoderError, match="encoder"):
        write_video(tmp_path / "out" / "turn.mp4", gradient_frames(200, 256, 256))
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_ffmpeg_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(EncoderError, match="the package imageio-ffmpeg brings one"):
        write_video(tmp_path / "turn.mp4", gradient_frames(2, 8, 8))
