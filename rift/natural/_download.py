"""Where downloaded sets are kept, and what is said when one cannot be had."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rift.errors import ModelError

SECONDS = 20.0  # how long a server may be silent; torchvision itself would wait forever
Opened = TypeVar("Opened")


def folder(root: Path) -> Path:
    """Return the folder of downloaded files, beside the folder of the image sets, so that no set is fetched twice."""
    path = root.parent / "downloads"
    path.mkdir(parents=True, exist_ok=True)
    return path


def fetch(what: str, open_set: Callable[[], Opened]) -> Opened:
    """Open a set that downloads itself on first use; raises `model.offline` when the files are not here and cannot be had."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        return open_set()
    except (OSError, RuntimeError, EOFError) as error:  # no network, a wrong checksum, or half an archive
        reason = (str(error).strip() or "no answer").splitlines()[0]
        raise ModelError(
            "model.offline",
            f"{what} is not on this machine and could not be downloaded ({type(error).__name__}: {reason}). Go online once "
            "to fetch it (after a download that broke off, delete the folder downloads first); without that, --natural bundled "
            "needs no download, and neither does a zip of your own with one folder per label.",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def first_of_each(labels: Iterable[int], count: int) -> Iterator[int]:
    """Yield the positions of the first `count` members of every class, in order."""
    seen: dict[int, int] = {}
    for position, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            yield position
