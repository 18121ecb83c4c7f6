"""Who asks, on a server for everybody: the key that a browser sends along, and whose a session of Gradio is.

Gradio's page draws its session's name with `Math.random` and sends it in addresses, and its server takes it from anybody. Here a
session belongs to the key that came with it first: under another key it shows nothing, and no event in it finds anything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from urllib.parse import parse_qs

from gradio.context import LocalContext
from starlette.datastructures import Headers
from starlette.types import Scope

from rift import visitors

HEADER = "X-Rift-Visitor"
# A visitor's key is made in the browser, kept there, and sent with every request to this server and to no other. Where a browser
# keeps nothing (a private window within a frame) it lasts as long as the page.
KEY = (
    """<script>(() => {
  const made = [...crypto.getRandomValues(new Uint8Array(16))].map(one => one.toString(16).padStart(2, '0')).join('')
  let key = made
  try { key = localStorage.getItem('rift-visitor') || made; localStorage.setItem('rift-visitor', key) } catch {}
  const plain = window.fetch
  window.fetch = (what, how = {}) => {
    const request = new Request(what, how)
    if (new URL(request.url).origin === location.origin) request.headers.set('"""
    + HEADER
    + """', key)
    return plain(request)
  }
})()</script>"""
)
MOST_REMEMBERED = 10_000
STREAM = "/gradio_api/queue/data"


class Sessions:
    """Which key each session came with first; the session that was not used for longest is forgotten first."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def own(self, session: str, key: str) -> bool:
        """Return whether a session is this key's; one that was nobody's is from now on."""
        name = visitors.name_of(key)
        with self._lock:
            owner = self._owners.setdefault(session, name)
            self._owners.move_to_end(session)
            if len(self._owners) > MOST_REMEMBERED:
                self._owners.popitem(last=False)
        return owner == name

    def open(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a request may have what it asks for, which only a session's stream is not for everybody."""
        if str(scope["path"]).rstrip("/") != STREAM:
            return True  # the heartbeat, which a page sends without any key, tells nothing
        session = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [""])[-1]
        return self.own(session, headers.get(HEADER, ""))


SESSIONS = Sessions()


def who() -> str:
    """Return the key that the page of the event at work sent along; "" where there is none, or the session is another's."""
    request = LocalContext.request.get(None)
    if request is None:
        return ""
    key, session = str(request.headers.get(HEADER, "")), request.session_hash
    return key if not session or SESSIONS.own(session, key) else ""
