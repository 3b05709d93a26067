"""What the page's server hands out beside Gradio: the viewer's files, and the files of runs.

A folder is reached by a random key that nobody can guess. Whoever has the key (the page that it was made for, or
somebody with a link to the run) may read the folder's files; no other path on this machine can be named.
"""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from studio.engine import ASSETS
from trellis.errors import InputError

COLMAP = "colmap.zip"  # not a file, but made of a folder's cameras and views whenever it is asked for

_VIEWER = ASSETS / "viewer" / "studio.js"
_CALLS = ASSETS / "calls.js"
_LIGHTS = ASSETS / "hdri"
_LIGHT_TITLES = {"studio": "Studio", "venice": "Sunset", "lebombo": "Indoors"}
# The only kinds of files there are; a browser is told the kind and must not guess another.
_TYPES = {
    ".glb": "model/gltf-binary", ".ply": "application/octet-stream", ".spz": "application/octet-stream",
    ".stl": "model/stl", ".zip": "application/zip", ".mp4": "video/mp4", ".json": "application/json",
    ".png": "image/png", ".jpg": "image/jpeg", ".npz": "application/octet-stream", ".txt": "text/plain",
    ".csv": "text/csv", ".hdr": "image/vnd.radiance", ".html": "text/html", ".safetensors": "application/octet-stream",
}  # fmt: skip
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
    "Cache-Control": "private, no-cache",
}
_GONE = "There is no such file, or it has been removed."


class Shelf:
    """Folders by random keys. Safe to use from several threads."""

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}
        self._lock = threading.Lock()

    def put(self, folder: Path) -> str:
        """Make a folder readable; returns its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._folders[key] = folder
        return key

    def remove(self, key: str) -> None:
        with self._lock:
            self._folders.pop(key, None)

    def find(self, key: str) -> Path | None:
        """The folder of a key."""
        with self._lock:
            return self._folders.get(key)

    def file(self, key: str, path: str) -> Path | None:
        """A file in a folder on the shelf, or None: hidden files and whatever lies outside are not there."""
        folder = self.find(key)
        if folder is None or "\0" in path or any(part.startswith(".") for part in path.split("/")):
            return None
        file, folder = (folder / path).resolve(), folder.resolve()
        inside = file.is_relative_to(folder) and file.suffix.lower() in _TYPES
        return file if inside and file.is_file() else None


def address(key: str, path: str = "", version: object = None) -> str:
    """Where the page finds a file of a folder: relative, so that it holds behind a proxy too."""
    return f"studio-files/{key}/{path}" + (f"?v={version}" if version is not None else "")


def light_addresses() -> str:
    """The bundled environments for a viewer: "Name=address;..."."""
    files = sorted((file.name for file in _LIGHTS.glob("*.hdr")), key=light_order)
    return ";".join(f"{light_title(name)}=studio-assets/{name}" for name in files)


def light_title(name: str) -> str:
    """What a visitor reads for a bundled environment, by its name or that of its file; other names as they are."""
    stem = name.split("_")[0]
    return _LIGHT_TITLES.get(stem) or name.replace("_", " ").capitalize()


def light_order(name: str) -> int:
    """Where an environment stands among the others."""
    stem = name.split("_")[0]
    return list(_LIGHT_TITLES).index(stem) if stem in _LIGHT_TITLES else len(_LIGHT_TITLES)


def script_tags() -> str:
    """What the page's head needs; the version makes browsers fetch a new viewer."""
    viewer = f"studio-assets/studio.js?v={_VIEWER.stat().st_mtime_ns:x}"
    return f'<script>{_CALLS.read_text(encoding="utf-8")}</script><script type="module" src="{viewer}"></script>'


def routes(shelf: Shelf) -> list[Route]:
    """The routes for the server."""

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == _VIEWER.name:
            return FileResponse(_VIEWER, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})
        if name in {file.name for file in _LIGHTS.glob("*.hdr")}:
            return FileResponse(_LIGHTS / name, media_type=_TYPES[".hdr"], headers={"Cache-Control": "max-age=86400"})
        return PlainTextResponse("There is no such file.", 404)

    async def shelved(request: Request) -> Response:
        key, path = request.path_params["key"], request.path_params["path"]
        folder = shelf.find(key)
        if folder is not None and path == COLMAP:
            return await run_in_threadpool(_colmap, folder)
        file = shelf.file(key, path)
        if file is None:
            return PlainTextResponse(_GONE, 404)
        return FileResponse(file, media_type=_TYPES[file.suffix.lower()], headers=_SAFE)

    return [Route("/studio-assets/{name}", asset), Route("/studio-files/{key}/{path:path}", shelved)]


def _colmap(folder: Path) -> Response:
    from studio.colmap import colmap_project  # brings torch

    try:
        return Response(colmap_project(folder), media_type=_TYPES[".zip"], headers=_SAFE)
    except (InputError, OSError):
        return PlainTextResponse(_GONE, 404)
