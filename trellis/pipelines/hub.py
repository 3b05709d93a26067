"""Files from Hugging Face and torch hub: from the local cache, else from the network, else a sentence why not."""

from __future__ import annotations

import errno
from pathlib import Path

from trellis.errors import InputError

MINI_HINT = "the embedded mini checkpoint, assets/mini, works without any download"


def hub_file(repository: str, filename: str, revision: str | None = None) -> Path:
    """A file of a Hugging Face repository, downloaded if it is not cached.

    Raises InputError, naming the repository and the file, if it is neither cached nor to be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise InputError(
            f"'{repository}' is neither a folder with a pipeline.json nor the name of a repository; {MINI_HINT}."
        ) from error
    except LocalEntryNotFoundError:
        pass  # not cached: fetch it
    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except Exception as error:  # what the network stack raises differs from one hub version to the next
        raise InputError(
            f"{filename} of '{repository}' is neither on this machine nor can it be downloaded now "
            f"({reason(error)}): run `hf download {repository}` where there is a network, or note that {MINI_HINT}."
        ) from error


def torch_hub_file(filename: str, url: str) -> Path:
    """A file of torch hub's download folder, downloaded if it is not there; InputError if it is not to be had."""
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if file.is_file():
        return file
    if _offline():
        why = "offline mode"
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
            return file
        except OSError as error:  # URLError and its kin are OSErrors
            why = reason(error)
    raise InputError(
        f"{filename} is neither on this machine nor can it be downloaded now ({why}): fetch {url} into "
        f"{file.parent}, or note that {MINI_HINT}."
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def reason(error: Exception) -> str:
    """A few words on why something could not be downloaded."""
    if _offline():
        return "offline mode"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return {401: "no such repository, or a private one", 403: "access is restricted", 404: "not found there"}.get(
        status, "no connection" if status is None else f"the server answered {status}"
    )
