"""Sets of photographs to try the studio with."""

from __future__ import annotations

from pathlib import Path

from studio.engine import ASSETS

FOLDER = ASSETS / "examples"
MAX_EXAMPLES = 4


def find_examples(folder: Path = FOLDER) -> list[tuple[str, list[str]]]:
    """Up to four named sets of views: (title, files) of each subfolder with pictures in it."""
    if not folder.is_dir():
        return []
    found = []
    for sub in sorted(folder.iterdir()):
        files = sorted(str(file) for file in sub.glob("*.png"))
        if files:
            found.append((sub.name.replace("-", " ").replace("_", " ").capitalize(), files))
    return found[:MAX_EXAMPLES]
