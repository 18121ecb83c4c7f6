"""What was found in the files of a lab, noted on its disk for the next process, for as long as these files stay as they were.

Nothing is noted that the files do not say themselves: without notes, or with damaged ones, all of it is found again, only slower.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from rift import disk
from rift.errors import RunError

FORMAT = 1  # notes of another one are not read
FEW = 200  # so many are found again sooner than a file is written and synced


class Notes:
    """The notes of one lab: what was found, of a file of it, and the stamps (`disk.stamp`) of all that this follows from."""

    def __init__(self, root: Path):
        self._root, self._file, self._new = root, root / "noted.json", 0
        self._found: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):
            document = disk.unsealed(self._file.read_bytes())
            if document.get("format") == FORMAT:
                self._found = document["found"]

    def find(self, what: str, path: str, stamps: object, look: Callable[[], Any]) -> Any:
        """Return what was noted of the file at `path` within the lab while it had these stamps, else look, and note that.

        What `look` returns is plain JSON; what it raises is passed on, and nothing is noted.
        """
        name, mark = f"{what} {path}", str(stamps)
        known = self._found.get(name)
        if known is None or known[0] != mark:
            known = self._found[name] = [mark, look()]
            self._new += 1
        return known[1]

    def keep(self, deleted: bool = False) -> None:
        """Write the notes for the next process, where more than a few are new; those of files that are gone are dropped.

        Where something was `deleted` they are written in any case, so that the disk holds nothing of it.
        """
        if not (deleted and self._file.exists()) and self._new < max(FEW, len(self._found) // 100):
            return
        there = {name: note for name, note in list(self._found.items()) if os.path.exists(self._root / name.partition(" ")[2])}
        with suppress(RunError):  # a disk that is full or read-only: then the next process looks again
            disk.write_bytes(self._file, json.dumps(disk.sealed({"format": FORMAT, "found": there})).encode())
        self._found, self._new = there, 0


@lru_cache(maxsize=64)
def of(root: Path) -> Notes:
    """Return the notes of the lab in a folder, read once."""
    return Notes(root)
