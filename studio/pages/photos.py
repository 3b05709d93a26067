"""The photographs on a visitor's page: added, looked at, ordered, masked by hand and left out."""

from __future__ import annotations

import base64
import binascii
import io
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from studio import quality
from studio.inputs import View, as_views
from trellis.errors import InputError
from trellis.pipelines.image_files import MAX_VIEWS, OPAQUE

_THUMBNAIL = 240  # pixels
_EDITED = 768  # pixels of the longer side of what is shown for painting a mask
_MAX_MASK_BYTES = 4 * 2**20
_PNG_HEAD = "data:image/png;base64,"


@dataclass
class Photo:
    """One photograph, kept under names of our own: what a visitor's file is called says nothing about a path.

    Attributes:
        id: random, also the folder's name.
        name: what the visitor calls it.
        file: as it came.
        mask: painted by hand, or that of the file; None for the automatic one.
        notes: see `studio.quality`; also "cutout" if no object was found.
        looked_at: whether the object has been cut out, as `cut.png` in the folder shows.
        version: changes with its pictures.
    """

    id: str
    name: str
    file: Path
    mask: Path | None = None
    notes: list[quality.Note] = field(default_factory=list)
    looked_at: bool = False
    version: int = 0

    @property
    def view(self) -> View:
        return View(self.name, self.file, self.mask)


class Photos:
    """An ordered list of at most 32 photographs in a folder. Safe to use from several threads.

    Args:
        folder: theirs.
        discard: gets the folder of a photograph that was removed; removes it at once, or later if something reads it.
    """

    def __init__(self, folder: Path, discard: Callable[[Path], None] | None = None) -> None:
        self.folder = folder
        self.key = ""  # on the shelf
        self._discard = discard or (lambda dropped: shutil.rmtree(dropped, ignore_errors=True))
        self._photos: list[Photo] = []
        self._lock = threading.RLock()
        self._adding = threading.Lock()  # held for seconds, so it is not the one above
        self._looking = threading.Lock()

    def __len__(self) -> int:
        return len(self._photos)

    def __iter__(self) -> Iterator[Photo]:
        with self._lock:
            return iter(list(self._photos))

    def views(self) -> list[View]:
        return [photo.view for photo in self]

    def add(self, files: Iterable[str | Path]) -> list[str]:
        """Append photographs, and the best frames of videos. Returns a sentence for each file that cannot be used."""
        with self._adding:
            return self._add_all(files)

    def replace(self, files: Iterable[str | Path]) -> list[str]:
        """Remove all, then `add`, with nobody else's in between."""
        with self._adding:
            self.clear()
            return self._add_all(files)

    def _add_all(self, files: Iterable[str | Path]) -> list[str]:
        sentences = []
        for file in map(Path, files):
            if len(self) >= MAX_VIEWS:
                sentences.append(f"At most {MAX_VIEWS} photos can be read together; the rest was left out.")
                break
            try:
                for view in as_views([file], min(8, MAX_VIEWS - len(self))):
                    self._add(view)
            except InputError as error:
                sentences.append(str(error))
        return sentences

    def remove(self, id: str) -> None:
        with self._lock:
            photo = self._find(id)
            if photo is not None:
                self._photos.remove(photo)
                self._discard(self.folder / photo.id)
                self._compare()

    def move(self, id: str, before: int) -> None:
        """Put a photograph at a place, counted from 0 and clipped."""
        with self._lock:
            photo = self._find(id)
            if photo is not None:
                self._photos.remove(photo)
                self._photos.insert(max(0, min(before, len(self._photos))), photo)
                self._compare()

    def index(self, id: str) -> int | None:
        return next((index for index, photo in enumerate(self) if photo.id == id), None)

    def clear(self) -> None:
        for photo in self:
            self.remove(photo.id)

    def look(self) -> Iterator[Photo]:
        """Cut the object out of every photograph not looked at yet, and note what may be wrong; yields each."""
        while True:
            with self._looking:  # whoever comes second waits, for it has to show what the first one sees
                photo = next((p for p in self if not p.looked_at), None)
                if photo is None:
                    return
                self._look(photo)
            yield photo

    def set_mask(self, id: str, png: Any) -> None:
        """Take a mask painted by hand, as the data URL of a PNG, white where the object is.

        Raises InputError for anything else.
        """
        photo = self._find(id)
        if photo is None:
            raise InputError("That photo is not there any more.")
        photo_size = Image.open(self.folder / photo.id / "photo.jpg").size
        mask = _mask_of(png).resize(photo_size)
        if mask.getextrema()[1] <= OPAQUE:
            raise InputError("The mask marks nothing: paint over the object.")
        file = self.folder / photo.id / f"mask-{secrets.token_hex(4)}.png"  # a job may be reading the one before
        mask.save(file)
        with self._lock:
            photo.mask, photo.looked_at = file, False

    def _find(self, id: str) -> Photo | None:
        return next((photo for photo in self if photo.id == id), None)

    def _add(self, view: View) -> None:
        image = view.open()
        id = secrets.token_hex(8)
        folder = self.folder / id
        folder.mkdir(parents=True)
        if isinstance(view.source, Path):
            file = folder / f"original{view.source.suffix.lower()[:8]}"
            shutil.copyfile(view.source, file)
        else:  # a frame of a video
            file = folder / "original.png"
            image.save(file)
        shown = image.copy()
        shown.thumbnail((_EDITED, _EDITED))
        _on_white(shown).save(folder / "photo.jpg", quality=88)
        shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
        _on_white(shown).save(folder / "small.jpg", quality=85)
        mask = folder / "mask.png" if view.mask is not None else None
        if mask is not None:
            image.getchannel("A").save(mask)
        with self._lock:
            self._photos.append(Photo(id, view.name, file, mask))

    def _look(self, photo: Photo) -> None:
        from trellis.pipelines.image_preparation import cut_out  # brings torch

        folder, mask = self.folder / photo.id, photo.mask
        notes: list[quality.Note] = []
        try:
            try:
                cut = cut_out(photo.view.open())
                notes = list(quality.notes_on(cut))
            except InputError as error:
                notes = [{"kind": "cutout", "value": 0.0, "message": f"{error} The brush can mark it by hand."}]
                cut = Image.open(folder / "photo.jpg").convert("RGBA")
                cut.putalpha(0)
        except OSError:
            if self._find(photo.id) is None:
                return  # removed in the meantime
            raise
        cut.thumbnail((_EDITED, _EDITED))
        with self._lock:
            if self._find(photo.id) is None or photo.mask != mask:
                return  # removed, or masked by hand, which is to be looked at
            cut.save(folder / "cut.png")
            small = cut.copy()
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            small.save(folder / "small.png")
            photo.notes, photo.looked_at, photo.version = notes, True, photo.version + 1
            self._compare()

    def _compare(self) -> None:
        """Note near-duplicates among the photographs looked at."""
        looked_at = [p for p in self._photos if p.looked_at and (self.folder / p.id / "small.png").is_file()]
        cuts = [_centred(Image.open(self.folder / photo.id / "small.png")) for photo in looked_at]
        found = quality.duplicates(cuts)
        for index, photo in enumerate(looked_at):
            photo.notes = [note for note in photo.notes if note["kind"] != "duplicate"]
            if index in found:
                photo.notes.append(found[index])


def _centred(image: Image.Image) -> Image.Image:
    """The object alone on black, so that what is around it does not count."""
    image = image.convert("RGBA")
    box = image.getchannel("A").getbbox()
    canvas = Image.new("RGB", image.size)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas.crop(box) if box else canvas


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, (255, 255, 255))
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _mask_of(png: Any) -> Image.Image:
    if not isinstance(png, str) or not png.startswith(_PNG_HEAD) or len(png) > _MAX_MASK_BYTES:
        raise InputError("The mask did not arrive whole; please try again.")
    try:
        data = base64.b64decode(png[len(_PNG_HEAD) :], validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > 2 * _EDITED:
                raise InputError(f"A mask has at most {2 * _EDITED} pixels a side.")
            return image.convert("L")
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("The mask did not arrive whole; please try again.") from error
