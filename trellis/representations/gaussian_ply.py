"""The splat PLY file as a table of floats: reading that trusts nothing, writing that never leaves half a file."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path

import numpy as np

from trellis.errors import InputError

PROPERTIES = (
    *("x", "y", "z"),
    *("nx", "ny", "nz"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
OPTIONAL = frozenset(("nx", "ny", "nz"))
MAX_HEADER_BYTES = 16_384
MAX_GAUSSIANS = 16_000_000  # about 1 GB of file; a decoded asset has a few hundred thousand


def write_splat_table(path: str | PathLike[str], table: np.ndarray) -> None:
    """Write rows [N, 17] float32, columns in the order of `PROPERTIES`, as binary little-endian PLY."""
    path = Path(path)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {table.shape[0]}"]
    header += [f"property float {name}" for name in PROPERTIES]
    content = "\n".join([*header, "end_header\n"]).encode("ascii") + table.astype("<f4").tobytes()
    # A reader, or a crash halfway, sees the old file or the new one: the rename within a folder is atomic.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes it private to the owner
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_splat_table(path: str | PathLike[str]) -> np.ndarray:
    """Read rows [N, 17] float32 in the order of `PROPERTIES`; absent normals are zero.

    Raises:
        InputError: anything but a complete binary little-endian splat PLY of degree 0 with finite values.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(MAX_HEADER_BYTES)
            names, count, offset = _parse_header(head, path.name)
            expected = offset + count * 4 * len(names)
            if size != expected:
                raise InputError(
                    f"{path.name} announces {count} Gaussians ({expected} bytes) but has {size} bytes; "
                    "it may have been cut short, please export or copy it again."
                )
            file.seek(offset)
            rows = np.frombuffer(file.read(expected - offset), dtype="<f4").reshape(count, len(names))
    except OSError as error:
        raise InputError(f"The splat file {path.name} cannot be read: {error.strerror or error}.") from error
    table = np.zeros((count, len(PROPERTIES)), dtype=np.float32)
    for column, name in enumerate(PROPERTIES):
        if name in names:
            table[:, column] = rows[:, names.index(name)]
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise InputError(f"Gaussian {row} of {path.name} has a value that is not finite; the file is damaged.")
    if not table[:, -4:].any(axis=1).all():
        row = int(np.flatnonzero(~table[:, -4:].any(axis=1))[0])
        raise InputError(f"Gaussian {row} of {path.name} has the quaternion 0, which is no rotation.")
    return table


def _parse_header(head: bytes, name: str) -> tuple[list[str], int, int]:
    """Property names in file order, the number of Gaussians, and where the data begins."""
    end = head.find(b"end_header\n")
    if not head.startswith((b"ply\n", b"ply\r\n")) or end < 0:
        raise InputError(f"{name} is not a PLY file of Gaussian splats (no PLY header in its first bytes).")
    lines = [line.split() for line in head[:end].decode("ascii", "replace").splitlines()[1:]]
    lines = [words for words in lines if words and words[0] not in ("comment", "obj_info")]
    if not lines or lines[0][:2] != ["format", "binary_little_endian"]:
        raise InputError(f"{name} is not in the binary little-endian PLY format; please convert it.")
    if len(lines) < 2 or lines[1][:2] != ["element", "vertex"] or len(lines[1]) != 3:
        raise InputError(f"{name} does not list its Gaussians as the PLY element 'vertex'.")
    digits = lines[1][2]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 12 or int(digits) > MAX_GAUSSIANS:
        raise InputError(f"{name} announces {digits[:20]} Gaussians; expected a whole number up to {MAX_GAUSSIANS}.")
    names = []
    for words in lines[2:]:
        if len(words) != 3 or words[0] != "property" or words[1] not in ("float", "float32"):
            raise InputError(f"{name} has the header line '{' '.join(words)[:60]}'; expected float properties only.")
        names.append(words[2])
    if len(set(names)) != len(names):
        raise InputError(f"{name} names a property twice.")
    if any(entry.startswith("f_rest_") for entry in names):
        raise InputError(f"{name} has view-dependent colour (f_rest_*); only degree 0 is supported, export it so.")
    missing = [entry for entry in PROPERTIES if entry not in names and entry not in OPTIONAL]
    if missing:
        raise InputError(f"{name} is not a Gaussian splat file: it lacks the properties {', '.join(missing)}.")
    return names, int(digits), end + len(b"end_header\n")
