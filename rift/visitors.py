"""Visitors of a public server: every browser has a lab of its own, under a key that only it knows, for a day.

The key is 128 bits at random, made by the browser and sent with each request, never in an address. The server keeps its hash, as
the name of a folder in `visitors/`, so that not even a listing of the folder opens a lab. Nothing in one lab can be reached from
another: whatever a page shows is looked up among the labs of whoever asks (in one's own lab there is only oneself). The example
is the same for all and read-only.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from rift import jobs, quota
from rift.bundle import ID
from rift.errors import DataError, RunError
from rift.runs import VISITORS, Lab

KEY, NAME = "[0-9a-f]{32}", "[0-9a-f]{32}"
SEEN = "seen"  # a file whose age is the time since its visitor was here
CONSENT = "consent"
SEEN_SECONDS, TIDY_SECONDS, LEFTOVER_SECONDS = 60.0, 60.0, 3600.0
LEFTOVERS = (".reading-*", ".grouping-*", ".draft-*", ".bundle-*", ".deleted-*", ".pixels-*")  # what killed processes leave

_named: ContextVar[str] = ContextVar("named", default="")


class Labs(Mapping[str, Lab]):
    """The labs that a page over one lab shows: itself ("lab"), the example, and every opened bundle, as they are now."""

    def __init__(self, lab: Lab, example: Lab | None = None):
        self._fixed = {"lab": lab} | ({"example": example} if example else {})

    def __getitem__(self, home: str) -> Lab:
        if home in self._fixed:
            return self._fixed[home]
        root = self._fixed["lab"].root / "opened" / home.removeprefix("opened-")
        if re.fullmatch(f"opened-{ID}", home) and (root / "opened.json").exists():
            return Lab(root)
        raise KeyError(home)

    def __iter__(self) -> Iterator[str]:
        yield from self._fixed
        found = (self._fixed["lab"].root / "opened").glob("*/opened.json")
        yield from (f"opened-{path.parent.name}" for path in sorted(found) if re.fullmatch(ID, path.parent.name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def address(self, home: str) -> str:
        """Return a name of a lab for a signed address; with one's own labs it is the same name."""
        return home

    def at(self, address: str) -> Lab:
        """Return the lab of such a name; KeyError where there is none."""
        return self[address]

    def of(self, name: str) -> Labs:
        """Return the labs of a visitor; in one's own lab there is only oneself, without a name."""
        if name:
            raise KeyError(name)
        return self


class Everyone(Mapping[str, Lab]):
    """The labs of whoever asks, by the names that `Labs` gives them; `who` returns the key of the visitor at work."""

    def __init__(self, root: Path, example: Lab | None, who: Callable[[], str]):
        self.root, self.example, self._who = root, example, who

    def _mine(self) -> Labs:
        return Labs(lab(self.root, _named.get() or self._who()), self.example)

    def __getitem__(self, home: str) -> Lab:
        return self._mine()[home]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())

    def address(self, home: str) -> str:
        """Return a name of a lab that says whose it is, for what is fetched without a key: signed addresses."""
        return home if home == "example" else f"{self['lab'].root.name}/{home}"

    def at(self, address: str) -> Lab:
        """Return the lab of such a name; KeyError where there is none."""
        name, _, home = address.rpartition("/")
        if not name and home == "example" and self.example is not None:
            return self.example
        return self.of(name)[home]

    def of(self, name: str) -> Labs:
        """Return the labs of the visitor whose folder has this name; KeyError where there is none."""
        folder = self.root / VISITORS / name
        if not re.fullmatch(NAME, name) or not folder.is_dir():
            raise KeyError(name)
        return Labs(Lab(folder), self.example)


def name_of(key: str) -> str:
    """Return the name of the folder of the visitor with this key."""
    return hashlib.sha256(f"rift visitor {key}".encode()).hexdigest()[:32]


def lab(root: Path, key: str) -> Lab:
    """Return a visitor's lab, made when it first comes; `run.missing` for what is no key."""
    if not re.fullmatch(KEY, key or ""):
        raise RunError(
            "run.missing",
            "This server keeps every visitor apart, by a key of 32 hexadecimal digits that the page sends; reload the page, "
            "or give the endpoints a random one as `lab`.",
        )
    folder = root / VISITORS / name_of(key)
    seen = folder / SEEN
    if not seen.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        seen.touch()
    elif time.time() - seen.stat().st_mtime > SEEN_SECONDS:
        with suppress(FileNotFoundError):
            os.utime(seen)
    return Lab(folder)


@contextmanager
def as_(key: str) -> Iterator[None]:
    """Act for the visitor with this key, as the endpoints do, whose callers have no page; "" changes nothing."""
    token = _named.set(key)
    try:
        yield
    finally:
        _named.reset(token)


def consented(lab: Lab) -> bool:
    """Whether the visitor has said that the pictures may be here; in one's own lab nobody is asked."""
    return not lab.visiting or (lab.root / CONSENT).exists()


def admit(lab: Lab) -> None:
    """Raise `data.consent` or `run.quota` where a visitor may not bring anything now; in one's own lab everything may come."""
    if not consented(lab):
        said = "tick on the Data tab (or give the endpoint `consent`) that you may, and that nobody can be recognized in them"
        raise DataError("data.consent", f"This is a public server. Before any picture of yours comes here, {said}.")
    quota.refuse_more(lab)


def consent(lab: Lab, given: bool) -> None:
    """Remember what the visitor said of the pictures."""
    if given:
        (lab.root / CONSENT).touch()
    else:
        (lab.root / CONSENT).unlink(missing_ok=True)


def sweep(root: Path, now: float | None = None) -> list[str]:
    """Delete the labs whose visitors were not here for as long as data are kept, and what killed processes left half done.

    It needs nothing but the folder, so that it also does what an earlier server did not live to do. Returns the deleted names.
    """
    now, gone = time.time() if now is None else now, []
    for folder in [root, *sorted((root / VISITORS).glob("*"))]:
        visiting = folder.parent.name == VISITORS
        if visiting and now - _last_seen(folder) > quota.VISITOR.retention_seconds:
            gone.append(folder.name)
            _remove(folder, root)
            continue
        places = (folder, folder / "data", folder / "runs", folder / "opened", *(folder / "data").glob("*"))
        for left in (one for place in places for pattern in LEFTOVERS for one in place.glob(pattern)):
            if now - _changed(left) > LEFTOVER_SECONDS:
                _remove(left, root)
    return gone


def _last_seen(folder: Path) -> float:
    return _changed(folder / SEEN) or _changed(folder)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path, root: Path) -> None:
    """Delete a file or folder; a folder is moved aside first, so that nobody sees half of one."""
    with suppress(OSError):
        if not path.is_dir():
            path.unlink()
            return
        aside = path if path.name.startswith(".deleted-") else root / f".deleted-{path.name}-{time.time_ns()}"
        if aside != path:
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def keep_house(root: Path, device: str) -> threading.Thread:
    """Sweep now and once a minute, and see that whatever is queued has a worker, for as long as the server lives."""

    def go_on() -> None:
        while True:
            with suppress(OSError):
                sweep(root)
                for folder in (root / VISITORS).glob("*"):
                    if re.fullmatch(NAME, folder.name):
                        jobs.ensure_worker(Lab(folder), device)
            time.sleep(TIDY_SECONDS)

    thread = threading.Thread(target=go_on, daemon=True, name="keep-house")
    thread.start()
    return thread
