"""Videos: which frames are taken, and what happens to files that are not what they claim to be."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from studio import video
from studio.inputs import as_views, mask_beside
from trellis.errors import InputError

TEXTURE = np.random.default_rng(0).integers(0, 255, (96, 600, 3), dtype=np.uint8)


def write(file: Path, frames: list[np.ndarray], fps: float = 4) -> Path:
    with imageio.get_writer(file, fps=fps, codec="libx264", macro_block_size=1, quality=9) as writer:
        for frame in frames:
            writer.append_data(np.ascontiguousarray(frame))
    return file


@pytest.fixture(scope="module")
def pan(tmp_path_factory) -> Path:
    """Five seconds past a wall; every second frame is blurred."""
    frames = [TEXTURE[:, 16 * k : 16 * k + 128] for k in range(20)]
    frames = [frame if k % 2 else ndimage.gaussian_filter(frame, (3, 3, 0)) for k, frame in enumerate(frames)]
    return write(tmp_path_factory.mktemp("video") / "pan.mp4", frames)


def test_sharp_frames_spread_over_the_video_become_views(pan):
    views = as_views(pan, 5)
    assert [view.name for view in views] == [f"pan.mp4, frame {number}" for number in range(1, 6)]
    images = [np.asarray(view.open().convert("L"), dtype=np.float32) for view in views]
    assert all(image.shape == (96, 128) for image in images)
    from studio.quality import sharpness

    looks = [np.asarray(frame.convert("L"), np.float32) for frame in video._frames(pan, 256)]
    assert min(sharpness(image) for image in images) > np.median([sharpness(look) for look in looks])


def test_change_counts_not_time():
    moving = [np.roll(TEXTURE[:, :128, 0], 8 * k, axis=1).astype(np.float32) for k in range(10)]
    still = [moving[-1]] * 90
    chosen = video.select([*moving, *still], 5)
    assert chosen == sorted(set(chosen)) and len(chosen) == 5
    assert sum(index < 12 for index in chosen) >= 4  # the pause gives one frame, not nine tenths of them
    assert video.select(moving, 20) == list(range(10))


HOSTILE = {
    "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat.mp4": b"ffconcat version 1.0\nfile pan.mp4\n",
    "empty.mp4": b"",
    "text.webm": b"this is not a video",
    "zeros.mkv": bytes(5000),
    "picture.mp4": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_no_videos_are_refused_with_a_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=f"'{name}' is (not a video|empty)"):
        as_views(tmp_path / name)


def test_a_video_that_breaks_off_gives_what_it_has_or_a_sentence(pan, tmp_path):
    data = pan.read_bytes()
    for share in (0.2, 0.9, 0.99):
        (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
        try:
            assert video.choose_frames(tmp_path / "cut.mp4", 4)
        except InputError as error:
            assert "cut.mp4" in str(error)


def test_a_missing_file_and_one_that_is_too_long(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        as_views(tmp_path / "missing.mov")
    long = write(tmp_path / "long.mp4", [np.zeros((32, 32, 3), np.uint8)] * 64, fps=1)
    with pytest.raises(InputError, match="lasts 64 seconds; at most 60"):
        as_views(long)


def test_a_tiny_video_is_all_taken_and_too_many_views_are_refused(pan, tmp_path):
    short = write(tmp_path / "short.mov", [TEXTURE[:, :64]] * 2)
    assert len(as_views([short])) <= 2
    with pytest.raises(InputError, match="at most 32"):
        as_views([pan, pan], 20)


def test_further_image_formats_and_masks(tmp_path):
    photo = Image.fromarray(TEXTURE[:, :96])
    for name in ("a.avif", "b.jp2", "c.ppm"):
        photo.save(tmp_path / name)
    mask = np.zeros((48, 48), np.uint8)
    mask[10:30, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    views = as_views(tmp_path)
    assert [view.name for view in views] == ["a.avif", "b.jp2", "c.ppm"]  # the mask is not a view
    images = [view.open() for view in views]
    assert images[0].mode == "RGBA" and images[0].getpixel((40, 40))[3] == 255 and images[0].getpixel((2, 2))[3] == 0
    assert images[1].size == images[2].size == (96, 96)
    assert mask_beside(tmp_path / "b.jp2") is None
    Image.fromarray(mask[:32]).save(tmp_path / "a_mask.png")
    with pytest.raises(InputError, match="mask 'a_mask.png' is"):
        views[0].open()
