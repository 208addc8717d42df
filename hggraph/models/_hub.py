"""Files of the Hugging Face hub: fetched once and kept, and without a network an answer in seconds."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

__all__ = ["fetch"]

PATIENCE = 3.0  # seconds to reach the hub in; its own client tries again for half a minute


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """Return the path of a file of the hub; one that was fetched before is there without a network too.

    Args:
        repository: ``"owner/name"``.
        file: Its name in there.
        revision: Branch, tag or commit; None for the main branch.

    Raises:
        ConnectionError: if the hub cannot be reached and the file was never fetched.
        Exception: whatever else the hub's client says.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    trouble = _trouble(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=trouble is not None))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached: {trouble or error}") from error


def _trouble(endpoint: str) -> str | None:
    """Return why a server does not answer, None if it does or a proxy is to ask."""
    if urllib.request.getproxies():
        return None
    address = urllib.parse.urlsplit(endpoint)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
