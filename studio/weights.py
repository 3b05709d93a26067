"""The published networks in one folder that can be mounted: fetching, resuming, checking.

    pipeline.json, ckpts/                from Stable-X/trellis-vggt-v0-2
    vggt-object-v0-1/                    from Stable-X/vggt-object-v0-1
    dinov2_vitl14_reg4_pretrain.pth      from Meta's server
    weights.json                         what was fetched: the commit of each repository, size and SHA-256 of each file

The folder is a checkpoint: `RECONSTUDIO_CHECKPOINT=folder` makes the studio use it. The first fetch asks the hub for
the newest commit of each repository unless one is named, and every later fetch keeps to the recorded one. A token for
private repositories comes from the environment (HF_TOKEN), another server from HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from trellis.errors import InputError
from trellis.files import read_configuration, replacing
from trellis.pipelines.hub import reason
from trellis.pipelines.published import PIPELINE_REPOSITORY as PIPELINE
from trellis.pipelines.published import TORCH_HUB_ENCODERS
from trellis.pipelines.published import VGGT_REPOSITORY as VGGT

LOCK = "weights.json"
_UNUSED = ("slat_decoder_rf",)  # of the pipeline's models
_BLOCK = 2**20

Say = Callable[[str], None]


@dataclass
class Record:
    """weights.json.

    commits: by repository. files: by path in the folder, {"bytes": ..., "sha256": ...}.
    """

    commits: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a folder, empty if there is none; InputError if it cannot be used."""
        try:
            return cls(**json.loads((folder / LOCK).read_text()))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder / LOCK} is damaged; delete it and fetch again.") from error

    def write(self, folder: Path) -> None:
        """Replace the record of a folder."""
        with replacing(folder / LOCK) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1, sort_keys=True))


@dataclass(frozen=True)
class Damage:
    """A file of a fetched folder that is not as it was fetched."""

    file: str
    text: str


@dataclass(frozen=True)
class _Remote:
    """A file of a repository: its size in bytes, and its SHA-256 if the hub states one."""

    repository: str
    commit: str
    name: str
    bytes: int
    sha256: str | None


def default_folder() -> Path:
    """Where `fetch` puts the networks if no folder is named."""
    return Path.home() / ".local" / "share" / "reconstudio" / "published"


def fetch(
    folder: Path, revisions: Mapping[str, str] | None = None, dinov2_url: str | None = None, say: Say = print
) -> Record:
    """Bring a folder up to date with the published networks; what is there already is not fetched again.

    Args:
        folder: made if it is missing.
        revisions: commit, tag or branch by repository, instead of the recorded or the newest one.
        dinov2_url: another address of DINOv2's weights.
        say: takes a sentence for every step.

    Raises:
        InputError: no connection, no access, too little room, or a file that arrived damaged.
    """
    unknown = sorted(set(revisions or {}) - {PIPELINE, VGGT})
    if unknown:
        raise InputError(f"There is no repository {unknown[0]!r} among {PIPELINE} and {VGGT}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be a folder for them: {error.strerror or error}.") from error
    record = Record.read(folder)
    wanted: list[tuple[_Remote, str]] = []
    for repository, place in ((PIPELINE, ""), (VGGT, f"{PurePosixPath(VGGT).name}/")):
        revision = (revisions or {}).get(repository) or record.commits.get(repository)
        files = _list(repository, revision)
        commit = next(iter(files.values())).commit
        if record.commits.get(repository) != commit:
            record.files = {path: entry for path, entry in record.files.items() if not _is_of(path, place)}
        record.commits[repository] = commit
        say(f"{repository} at {commit}")
        if repository == PIPELINE:
            _get(folder, place, files["pipeline.json"], record, say)
        wanted += [(file, place) for file in _needed(folder, repository, files)]
    _check_room(folder, [file for file, place in wanted if not _is_there(folder, place + file.name, record, file)])
    for file, place in wanted:
        _get(folder, place, file, record, say)
    _get_dinov2(folder, dinov2_url, record, say)
    return record


def check(folder: Path) -> Iterator[Damage]:
    """Read every fetched file and compare it with the record.

    Raises:
        InputError: nothing was fetched into this folder.
    """
    record = Record.read(folder)
    if not record.files:
        raise InputError(f"No networks were fetched into {folder}; run: python -m studio weights fetch --to {folder}")
    for name, entry in sorted(record.files.items()):
        file = folder / name
        if not file.is_file():
            yield Damage(name, "missing")
        elif file.stat().st_size != entry["bytes"]:
            yield Damage(name, f"{file.stat().st_size} bytes instead of {entry['bytes']}")
        elif sha256_of(file) != entry["sha256"]:
            yield Damage(name, "another content (SHA-256 differs)")


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _is_of(path: str, place: str) -> bool:
    """Whether a path of the record belongs to the repository kept at `place`."""
    return path.startswith(place) if place else path == "pipeline.json" or path.startswith("ckpts/")


def _list(repository: str, revision: str | None) -> dict[str, _Remote]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # what the network stack raises differs from one hub version to the next
        raise _cannot(f"The list of files of '{repository}'", error) from error
    return {
        file.rfilename: _Remote(
            repository, info.sha, file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None
        )
        for file in info.siblings
    }


def _needed(folder: Path, repository: str, files: Mapping[str, _Remote]) -> list[_Remote]:
    """The files that the pipeline reads."""
    if repository == PIPELINE:
        args = read_configuration(folder / "pipeline.json").get("args", {})
        stems = [str(stem) for key, stem in args.get("models", {}).items() if key not in _UNUSED]
        others = (args.get("image_cond_model"), args.get("vggt_model"))
        stems += [stem for stem in others if isinstance(stem, str) and stem.startswith("ckpts/")]
        names = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "safetensors")]
    else:
        names = ["config.json", "model.safetensors"]
    absent = [name for name in names if name not in files]
    if absent:
        raise InputError(f"'{repository}' does not hold {absent[0]} at this revision; name another with --revision.")
    return [files[name] for name in names]


def _is_there(folder: Path, path: str, record: Record, remote: _Remote) -> bool:
    entry, file = record.files.get(path), folder / path
    return (
        entry is not None
        and file.is_file()
        and file.stat().st_size == entry["bytes"] == (remote.bytes or entry["bytes"])
        and remote.sha256 in (None, entry["sha256"])
    )


def _check_room(folder: Path, files: list[_Remote]) -> None:
    needed, free = sum(file.bytes for file in files), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{needed / 1e9:.1f} GB are still to be fetched, but {folder} has room for {free / 1e9:.1f} GB; "
            "choose another folder with --to."
        )


def _get(folder: Path, place: str, remote: _Remote, record: Record, say: Say) -> None:
    """Fetch one file of a repository, going on where an earlier attempt stopped, and check it."""
    path = place + remote.name
    if _is_there(folder, path, record, remote):
        say(f"{path}: there already")
        return
    from huggingface_hub import hf_hub_download

    say(f"{path}: {remote.bytes / 1e6:,.1f} MB")
    try:
        hf_hub_download(remote.repository, remote.name, revision=remote.commit, local_dir=folder / place)
    except Exception as error:  # see _list
        raise _cannot(f"{remote.name} of '{remote.repository}'", error) from error
    _accept(folder, path, record, remote.bytes, remote.sha256)


def _get_dinov2(folder: Path, url: str | None, record: Record, say: Say) -> None:
    encoder = TORCH_HUB_ENCODERS["dinov2_vitl14_reg"]
    file, entry = folder / encoder.file, record.files.get(encoder.file)
    if entry is not None and file.is_file() and file.stat().st_size == entry["bytes"]:
        say(f"{encoder.file}: there already")
        return
    say(f"{encoder.file}: from {url or encoder.url}")
    try:
        download(url or encoder.url, file)
    except OSError as error:  # URLError and its kin are OSErrors
        raise _cannot(encoder.file, error) from error
    _accept(folder, encoder.file, record, encoder.bytes if url is None else 0, None)


def download(url: str, file: Path) -> None:
    """Fetch a file over HTTP; an interrupted download is kept beside it and continued by the next call.

    Raises:
        OSError: no connection, or the connection ended early.
    """
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing is left to send
            raise
        part.replace(file)
        return
    with answer, part.open("ab" if answer.status == 206 else "wb") as stream:
        expected = answer.headers.get("Content-Length")
        before = stream.tell()
        shutil.copyfileobj(answer, stream, _BLOCK)
        arrived = stream.tell() - before
    if expected is not None and arrived != int(expected):
        raise OSError(f"the connection ended after {arrived} of {expected} bytes")
    part.replace(file)


def _accept(folder: Path, path: str, record: Record, size: int, sha256: str | None) -> None:
    """Enter a fetched file into the record, or remove it if it is not what was announced."""
    file = folder / path
    found_size, found = file.stat().st_size, sha256_of(file)
    if (size and found_size != size) or sha256 not in (None, found):
        file.unlink()
        raise InputError(f"{path} arrived damaged and was removed ({found_size} bytes); fetch again.")
    record.files[path] = {"bytes": found_size, "sha256": found}
    record.write(folder)


def _cannot(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} cannot be fetched ({reason(error)}). Run the command again to go on where it stopped; "
        "private repositories need a token in HF_TOKEN."
    )
