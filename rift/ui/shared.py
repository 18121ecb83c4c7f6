"""What the pages of a server share: a part is made once for all, and the more of them watch, the more rarely each asks."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
POLL_SECONDS = 1.0
MOST_MADE = 32  # parts of pages that are remembered as they were last; a few hundred kB each
MOST_LOOKS = 3.0 * (os.cpu_count() or 1)  # a second, of all pages that watch: what they take, the training that they watch lacks


class Made:
    """Parts of pages as they were last made: of pages that ask for the same one at once, one makes it and all get it."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Any, ...], Future[list[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def once(self, key: tuple[Any, ...], make: Callable[[], list[Any]]) -> list[Any]:
        """Return what was made for a key, made now where it was not; what raises is made again when it is asked for again."""
        with self._lock:
            mine = key not in self._made
            found = self._made.setdefault(key, Future())
            self._made.move_to_end(key)
            while len(self._made) > MOST_MADE:
                self._made.popitem(last=False)
        if mine:
            try:
                found.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._made.pop(key, None)
                found.set_exception(error)
        return found.result()

    def forget(self) -> None:
        """Drop all of it, as when something that it was made of was deleted."""
        with self._lock:
            self._made.clear()


class Seen:
    """How something was a moment ago, for all who ask soon after: of many pages that watch it one looks."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[float, Any]] = {}

    def once(self, key: Hashable, seconds: float, look: Callable[[], T]) -> T:
        """Return what was seen at most so long ago, else look."""
        until, found = self._seen.get(key, (0.0, None))
        now = time.monotonic()
        if now >= until:
            found = look()
            kept = {one: seen for one, seen in list(self._seen.items()) if seen[0] > now}
            self._seen = {**kept, key: (time.monotonic() + seconds, found)}
        return found

    def forget(self, key: Hashable) -> None:
        """Let the next one look, as when somebody has changed it."""
        self._seen.pop(key, None)


class Pace:
    """How long each page waits until it asks again how something moves: together they ask so often, and no more."""

    def __init__(self, looks: float = MOST_LOOKS) -> None:
        self._looks, self._asked, self._lock = looks, dict[str, float](), threading.Lock()

    def seconds(self, page: str) -> float:
        """Return the seconds, whole ones so that few pages that come or go move nobody, for a page that asks now."""
        now = time.monotonic()
        with self._lock:
            self._asked[page] = now
            away = now - 3 * max(POLL_SECONDS, len(self._asked) / self._looks)  # it has missed three turns
            self._asked = {name: then for name, then in self._asked.items() if then >= away}
            return self.now

    @property
    def now(self) -> float:
        """The seconds that each of those who watch waits now."""
        return max(POLL_SECONDS, float(math.ceil(len(self._asked) / self._looks)))
