"""The preview of an asset: a camera circling it, as frames and as a video."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import chain
from os import PathLike
from types import ModuleType
from typing import Any

import numpy as np
import torch

from trellis.errors import InputError
from trellis.files import replacing
from trellis.renderers import gaussian_raster, mesh_raster
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian

FPS = 15


class EncoderError(RuntimeError):
    """No video came out because ffmpeg is missing or failed; the message is a sentence."""


def gaussian_frames(
    gaussian: Gaussian,
    cameras: Cameras,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    supersample: int = 1,
    on_frame: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Splats seen by each camera: N images [H, W, 3] uint8 sRGB over a constant colour in [0, 1].

    `supersample` draws that many times larger and reduces; the published previews use 4, which takes several times
    longer. `on_frame` is called as (done, of) and may raise to stop.
    """
    frames = []
    backdrop = torch.tensor(background, dtype=torch.float32)
    for k in range(len(cameras)):
        with torch.no_grad():
            image = gaussian_raster.render(gaussian, cameras, k, backdrop, supersample)
        frames.append(_bytes(image.color.permute(1, 2, 0)))
        _report(on_frame, k, len(cameras))
    return frames


def mesh_frames(
    mesh: Any,
    cameras: Cameras,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    on_frame: Callable[[int, int], None] | None = None,
) -> dict[str, list[np.ndarray]]:
    """A mesh seen by each camera.

    Args:
        mesh: `vertices` [V, 3], `faces` [F, 3], optionally `vertex_attrs` [V, 3+] starting with sRGB in [0, 1].
        cameras: where to look from.
        background: behind the colours, in [0, 1].
        on_frame: called as (done, of); may raise to stop.

    Returns:
        "normal": N images [H, W, 3] uint8 of (1 - n) / 2 with n the face's unit normal in OpenCV camera axes, so that
        a surface facing the camera is blue and emptiness grey. "color", only if there are vertex colours: unlit.
    """
    vertices, faces = mesh.vertices.detach().float().cpu(), mesh.faces.detach().cpu()
    attributes = getattr(mesh, "vertex_attrs", None)
    colors = None if attributes is None else attributes[:, :3].detach().float().cpu()
    backdrop = torch.tensor(background, dtype=torch.float32)
    frames: dict[str, list[np.ndarray]] = {"normal": []} | ({} if colors is None else {"color": []})
    for k in range(len(cameras)):
        with torch.no_grad():
            view = mesh_raster.render_mesh(vertices, faces, colors, cameras, k, antialiased=False, normals=True)
        frames["normal"].append(_bytes(view["normals"]))
        if colors is not None:
            frames["color"].append(_bytes(view["attributes"] + (1 - view["mask"]) * backdrop))
        _report(on_frame, k, len(cameras))
    return frames


def write_video(
    path: str | PathLike[str],
    color: Sequence[np.ndarray],
    normal: Sequence[np.ndarray] | None = None,
    fps: float = FPS,
    quality: int = 20,
) -> None:
    """Write an H.264 MP4 that any browser plays: colour on the left, normals, if given, on the right.

    Args:
        path: the file, ending in .mp4; it appears complete or not at all.
        color, normal: equally many images [H, W, 3] uint8 of one height. An odd last row or column is cut off,
            because 4:2:0 chroma needs even sides.
        fps: frames per second.
        quality: constant rate factor of x264, 0 (lossless) to 51; lower is better.

    Raises:
        InputError: no frames, frames that do not fit together, or another file ending.
        EncoderError: ffmpeg is missing or failed.
    """
    encode_video(path, _side_by_side(color, normal), fps, quality)


def encode_video(path: str | PathLike[str], frames: Iterable[np.ndarray], fps: float = FPS, quality: int = 20) -> None:
    """Write frames [H, W, 3] uint8 of one even height and width as they come, so that none need be kept.

    An exception of `frames` ends the encoder, leaves no file, and reaches the caller. The rest is as in `write_video`.
    """
    if not str(path).lower().endswith(".mp4"):
        raise InputError(f"The video is written as MP4, so the file name must end in .mp4, not {str(path)!r}.")
    encoder = _encoder()
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with replacing(path) as temporary:
        writer = encoder.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=None,
            macro_block_size=2,
            # The index goes to the front, so that a browser can start before it has the whole file.
            output_params=["-crf", str(quality), "-preset", "veryfast", "-movflags", "+faststart"],
            ffmpeg_log_level="error",
        )
        try:
            _send(writer, None)
            for frame in chain([first], frames):
                _send(writer, np.ascontiguousarray(frame))
        finally:
            writer.close()
        if temporary.stat().st_size == 0:
            raise EncoderError("The video encoder wrote nothing.")


def _encoder() -> ModuleType:
    """imageio_ffmpeg, if it finds an ffmpeg. Raises EncoderError."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise EncoderError("There is no ffmpeg to write videos with; the package imageio-ffmpeg brings one.") from error
    return imageio_ffmpeg


def _send(writer: Generator[None, Any, None], frame: np.ndarray | None) -> None:
    try:
        writer.send(frame)
    except OSError as error:  # it could not be started, or ended in between
        raise EncoderError(f"The video encoder failed: {error}.") from error


def _side_by_side(color: Sequence[np.ndarray], normal: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    if len(color) == 0:
        raise InputError("A video needs at least one frame, but none came.")
    if normal is not None and len(normal) != len(color):
        raise InputError(f"The video has {len(color)} colour frames but {len(normal)} normal frames.")
    rows = [color] if normal is None else [color, normal]
    for row in rows:
        for frame in row:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != row[0].shape:
                raise InputError(
                    f"Video frames must all be [H, W, 3] uint8 of one size, but {row[0].shape} and "
                    f"{frame.shape} {frame.dtype} came."
                )
    if normal is not None and normal[0].shape[0] != color[0].shape[0]:
        raise InputError(f"Colour and normal frames differ in height: {color[0].shape[0]} and {normal[0].shape[0]}.")
    frames = list(color) if normal is None else [np.concatenate(pair, axis=1) for pair in zip(*rows, strict=True)]
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    if height == 0 or width == 0:
        raise InputError(f"Video frames must be at least 2 pixels in each direction, not {frames[0].shape[:2]}.")
    return [frame[:height, :width] for frame in frames]


def _bytes(values: torch.Tensor) -> np.ndarray:
    return (values * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu().numpy()


def _report(on_frame: Callable[[int, int], None] | None, index: int, total: int) -> None:
    if on_frame is not None:
        on_frame(index + 1, total)
