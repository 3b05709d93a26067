"""From a short video to views: the sharpest frames, spread over what the video shows.

The file may be hostile. ffmpeg reads it in a process of its own, from the file alone (no playlist, no network), as one
of a few containers, within bounds of pixels, frames and time; what comes back is parsed as PPM, with sizes checked.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trellis.errors import InputError

SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
MAX_SECONDS = 60
MAX_BYTES = 2 * 2**30
DEFAULT_FRAMES = 8

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_LOOKS_PER_SECOND = 4
_LOOK_SIDE = 256  # pixels, of the frames that are only judged
_KEEP_SIDE = 1280  # and of those that are kept
_MAX_PIXELS = 40_000_000
_PATIENCE = 180.0  # seconds for one pass


def choose_frames(file: str | Path, count: int = DEFAULT_FRAMES) -> list[Image.Image]:
    """`count` frames of a video as RGB images of at most 1280 pixels, in their order.

    The video is looked at four times a second. Its frames are cut into `count` stretches of equal visible change, not
    of equal time, so that a pause does not fill up the choice; each stretch gives its sharpest frame.

    Raises InputError: it is not a video that can be read, longer than 60 seconds, or holds fewer than one frame.
    """
    file = Path(file)
    if count < 1:
        raise InputError(f"At least one frame must be taken from a video, not {count}.")
    _check(file)
    looks = [np.asarray(frame.convert("L"), dtype=np.float32) for frame in _frames(file, _LOOK_SIDE)]
    if not looks:
        raise InputError(f"'{file.name}' holds no pictures that can be read.")
    chosen = select(looks, count)
    frames = {}
    wanted = set(chosen)
    for index, frame in enumerate(_frames(file, _KEEP_SIDE)):
        if index in wanted:
            frames[index] = frame
        if len(frames) == len(wanted):
            break
    return [frames[index] for index in chosen if index in frames]


def select(looks: Sequence[np.ndarray], count: int) -> list[int]:
    """Indices of the frames to keep, ascending, from grey frames [H, W] of equal size."""
    from studio.quality import sharpness

    if len(looks) <= count:
        return list(range(len(looks)))
    sharp = [sharpness(look) for look in looks]
    small = [look[::8, ::8] for look in looks]
    change = [0.0, *(float(np.abs(a - b).mean()) for a, b in zip(small, small[1:], strict=False))]
    progress = np.cumsum(np.asarray(change) + 1e-3)  # a still video is cut by time
    share = (progress - progress[0]) / max(progress[-1] - progress[0], 1e-9)
    stretch = np.minimum(share * count, count - 1).astype(int)
    return sorted(
        int(max(np.flatnonzero(stretch == part), key=lambda index: sharp[index]))
        for part in range(count)
        if (stretch == part).any()
    )


def _check(file: Path) -> None:
    """Refuse what is no video of at most a minute, before anything is decoded."""
    if not file.is_file():
        raise InputError(f"'{file.name}' is not a file.")
    size = file.stat().st_size
    if size == 0:
        raise InputError(f"'{file.name}' is empty.")
    if size > MAX_BYTES:
        raise InputError(f"'{file.name}' is larger than {MAX_BYTES >> 30} GB; supply a shorter or smaller video.")
    result = subprocess.run(
        [*_ffmpeg(), *_input(file)], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
    )
    text = result.stderr.decode("utf-8", "replace")  # ffmpeg describes the file and complains that no output is named
    if not re.search(r"Stream #.*Video:", text):
        raise InputError(f"'{file.name}' is not a video that can be read; use an MP4, MOV, WebM, MKV or AVI file.")
    duration = re.search(r"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)", text)
    seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3]) if duration else 0.0
    if seconds > MAX_SECONDS + 0.5:
        raise InputError(f"'{file.name}' lasts {seconds:.0f} seconds; at most {MAX_SECONDS} are read, so cut it first.")


def _frames(file: Path, side: int) -> Iterator[Image.Image]:
    """The frames at four a second, no larger than `side` pixels. Raises InputError if reading takes too long."""
    fit = f"fps={_LOOKS_PER_SECOND},scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease"
    command = [
        *_ffmpeg(), *_input(file), "-an", "-sn", "-dn", "-t", str(MAX_SECONDS), "-vf", fit,
        "-frames:v", str(MAX_SECONDS * _LOOKS_PER_SECOND), "-f", "image2pipe", "-c:v", "ppm", "-",
    ]  # fmt: skip
    deadline = time.monotonic() + _PATIENCE
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        try:
            while (frame := _read_ppm(process.stdout, side)) is not None:
                if time.monotonic() > deadline:
                    raise InputError(f"'{file.name}' takes too long to read; supply a shorter or smaller video.")
                yield frame
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _read_ppm(stream, side: int) -> Image.Image | None:
    """The next binary PPM of a stream; None at its end or where it breaks off."""
    header = [stream.readline(32).strip() for _ in range(3)]
    sizes = re.fullmatch(rb"(\d+) (\d+)", header[1])
    if header[0] != b"P6" or header[2] != b"255" or not sizes:
        return None
    width, height = int(sizes[1]), int(sizes[2])
    if not (0 < width <= side + 1 and 0 < height <= side + 1):
        return None
    data = stream.read(width * height * 3)
    return Image.frombytes("RGB", (width, height), data) if len(data) == width * height * 3 else None


def _ffmpeg() -> list[str]:
    import imageio_ffmpeg

    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-threads", "2"]


def _input(file: Path) -> list[str]:
    """Read this file and nothing that it points to."""
    return [
        "-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-max_pixels", str(_MAX_PIXELS),
        "-enable_drefs", "0", "-i", f"file:{file.resolve()}",
    ]  # fmt: skip
