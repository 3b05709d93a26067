"""From what a person hands in (files, a folder, images) to views that can be reconstructed from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from studio import video
from studio.photo_cameras import PhotoCamera
from studio.view_cameras import ViewCamera
from trellis.errors import InputError
from trellis.pipelines.image_files import MAX_PIXELS, MAX_VIEWS, OPAQUE, open_image

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".heic", ".heif",
)  # fmt: skip


class BadViewsError(InputError):
    """Some views cannot be used; `sentences` holds one sentence for each, naming it."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = tuple(sentences)


def sentences_of(error: InputError) -> list[str]:
    """What a bad input says, a sentence for each thing that is wrong."""
    return list(error.sentences) if isinstance(error, BadViewsError) else [str(error)]


@dataclass(frozen=True)
class Earlier:
    """What an earlier run says of a view.

    Attributes:
        cut_out_by: "alpha", "rembg" or "grabcut".
        photograph: a hash of the photograph, from `studio.fingerprint.view_key`.
        notes: on the photograph, see `studio.quality`.
        crop: what the view shows of the photograph, see `studio.stages.PreparedView`; None if nobody knows.
    """

    cut_out_by: str
    photograph: str
    notes: tuple[dict[str, Any], ...] = ()
    crop: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class View:
    """One photograph, not decoded yet: 32 opened photographs of a modern camera would fill gigabytes.

    Attributes:
        name: what to call it in a message.
        source: a file, or an image opened already.
        mask: a file whose bright pixels mark the object, or None.
        earlier: what is known of a view that is cut out, centred and of the networks' resolution already, as in a
            finished run's views folder; None for a photograph.
        sharp: of such a view, a file with the same square at more pixels, or None.
        camera: if a person states it, that of the view once it has been cut out and centred, or that of the photograph
            in a frame of its own (then all views of a job state theirs); None has it found.
    """

    name: str
    source: Path | Image.Image
    mask: Path | None = None
    earlier: Earlier | None = None
    camera: ViewCamera | PhotoCamera | None = None
    sharp: Path | None = None

    def open(self) -> Image.Image:
        """The picture, upright, 8 bits a channel, RGBA if it has transparency or a mask.

        Raises InputError if it cannot be used.
        """
        image = self.source if isinstance(self.source, Image.Image) else open_image(self.source)
        return image if self.mask is None else with_mask(image, self.mask)


def as_views(
    sources: Iterable[str | PathLike | Image.Image | View] | str | PathLike | None,
    video_frames: int = video.DEFAULT_FRAMES,
) -> list[View]:
    """1 to 32 views from image files, one folder of images (in the order of their names, numbers by value), or images.

    A video among them stands for its best `video_frames` frames, which are decoded at once. Everything else is not
    decoded yet; see `View.open` and `check_views`. Raises InputError if there are no views or too many, or if a video
    cannot be used.
    """
    if isinstance(sources, (str, PathLike)):
        sources = [sources]
    items = list(sources or ())
    if len(items) == 1 and isinstance(items[0], (str, PathLike)) and Path(items[0]).is_dir():
        items = _images_in(Path(items[0]))
    if not items:
        raise InputError(f"There are no views yet: add 1 to {MAX_VIEWS} photos of one object.")
    items = [view for item in items for view in _frames_of(item, video_frames)]
    if len(items) > MAX_VIEWS:
        raise InputError(f"{len(items)} views came, but at most {MAX_VIEWS} can be read together; leave some out.")
    return [_view(item, number) for number, item in enumerate(items, start=1)]


def _frames_of(item: Any, count: int) -> list[Any]:
    """The frames of a video as views, or the item itself."""
    if not isinstance(item, (str, PathLike)) or Path(item).suffix.lower() not in video.SUFFIXES:
        return [item]
    name = Path(item).name
    frames = video.choose_frames(item, count)
    return [View(f"{name}, frame {number}", frame) for number, frame in enumerate(frames, start=1)]


def pixels_of(view: View) -> int:
    """How many pixels a view's picture has, by its header; 0 if that cannot be read."""
    if isinstance(view.source, Image.Image):
        return view.source.width * view.source.height
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded here
            with Image.open(view.source) as image:
                return min(image.width * image.height, MAX_PIXELS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0  # `open` will say why


def check_views(views: Iterable[View]) -> None:
    """Decode each view once. Raises BadViewsError with a sentence for each that cannot be used."""
    sentences = []
    for view in views:
        try:
            view.open()
        except InputError as error:
            sentences.append(str(error))
    if sentences:
        raise BadViewsError(sentences)


def with_mask(image: Image.Image, file: Path) -> Image.Image:
    """The image as RGBA, its alpha read from a mask file: the file's own alpha if it has one, else its brightness.

    Raises InputError if the mask cannot be read, has another shape, or marks nothing.
    """
    mask = open_image(file)
    mask = mask.getchannel("A") if mask.mode == "RGBA" else mask.convert("L")
    (width, height), (mask_width, mask_height) = image.size, mask.size
    if abs(width / height - mask_width / mask_height) > 0.02 * width / height:
        raise InputError(f"The mask '{file.name}' is {mask_width} x {mask_height}, but its photo {width} x {height}.")
    mask = mask.resize(image.size)
    if mask.getextrema()[1] <= OPAQUE:
        raise InputError(f"The mask '{file.name}' marks nothing: the object must be white in it.")
    image = image.convert("RGB")
    image.putalpha(mask)
    return image


def mask_beside(photo: Path) -> Path | None:
    """The mask file of a photo: chair_mask.png, chair.mask.png or masks/chair.png for chair.jpg."""
    places = (f"{photo.stem}_mask.png", f"{photo.stem}.mask.png", f"masks/{photo.stem}.png")
    return next((file for place in places if (file := photo.parent / place).is_file()), None)


def _is_mask(file: Path) -> bool:
    return file.stem.lower().endswith(("_mask", ".mask"))


def _view(item: str | PathLike | Image.Image | View, number: int) -> View:
    if isinstance(item, View):
        return item
    if isinstance(item, Image.Image):
        return View(f"view {number}", item)
    path = Path(item)
    if path.is_dir():
        raise InputError(f"'{path.name}' is a folder; give either image files or one folder alone.")
    return View(path.name, path, mask_beside(path))


def _images_in(folder: Path) -> list[Path]:
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and not _is_mask(file) and file.is_file()
    ]
    if not files:
        raise InputError(f"The folder '{folder.name}' holds no images ({', '.join(s[1:] for s in SUFFIXES)}).")
    return sorted(files, key=_by_number)


def _by_number(file: Path) -> list[tuple[int, int, str]]:
    """Sorts "view2" before "view10"."""
    parts = re.split(r"(\d+)", file.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
