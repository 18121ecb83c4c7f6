"""The door of the server: every request passes here before Gradio sees it, and is refused in plain words or let through.

Gradio limits each file of an upload, but holds text fields and JSON of any size in memory, serves pages that this app does not
have, fetches what `/file=https://…` names, and answers any other site's page. A refusal is a sentence with a code:
door.size (413), door.rate (429), door.origin and door.host (403), door.closed (404).
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections import Counter
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rift.archive import MB
from rift.ui.intake import FIELD_BYTES, Body, Buckets, Rate, Refused, client, too_fast, too_large
from rift.ui.visit import Sessions

JSON_BYTES = 8 * MB  # ten pictures of a webcam in one event are about 2 MB
UPLOADS_AT_ONCE = 8  # of one address
# A page polls once or twice a second and asks for some hundred files and pictures at once; a class may share one address.
PAGES, EVENTS, UPLOADS = Rate(200, 3000), Rate(100, 1000), Rate(2, 60)
API = "/gradio_api/"
# Of Gradio's own interface the parts that the page and `gradio_client` use; a part that is new in a later version stays closed.
OPEN = frozenset(
    (
        *("app_id", "call", "cancel", "heartbeat", "info", "login_check", "queue", "reset", "run", "startup-events", "theme.css"),
        *("token", "upload", "upload_progress", "user"),  # and file= of a file that is here
    )
)
CANCEL = f"{API}cancel"  # an event of whatever session it is told; the page does without
CLOSED_PAGES = ("/docs", "/login", "/logout", "/monitoring", "/openapi.json", "/redoc", "/svelte")
LOOPBACK = frozenset(["127.0.0.1", "::1", "localhost"])
POLICY = (
    # Gradio's page is made of inline scripts, and its templates of functions from text: both must be let
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Rules:
    """What this server takes; `hosts` are the names it is asked under, none where every name is its own."""

    upload_bytes: int
    pages: Rate = PAGES
    events: Rate = EVENTS
    uploads: Rate = UPLOADS
    hosts: frozenset[str] = frozenset()
    sessions: Sessions | None = None  # whose they are, where visitors are kept apart
    behind_proxy: bool = False  # then the last public address that it adds to X-Forwarded-For is the visitor's


def public(upload_bytes: int) -> Rules:
    """Return the rules of a server for everybody, behind a proxy that tells whose request it is."""
    return Rules(upload_bytes, Rate(50, 1000), Rate(30, 300), Rate(0.5, 20), behind_proxy=True)


class Guard:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules):
        self.app, self.rules = app, rules
        self.pages, self.events, self.uploads = (Buckets(rate) for rate in (rules.pages, rules.events, rules.uploads))
        self.uploading: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, answer = Headers(scope=scope), _dressed(send)
        address = client(scope, headers, self.rules.behind_proxy)
        if refused := self.refuse(scope, headers, address):
            await _refuse(scope, answer, refused)
            return
        uploads = scope["path"].rstrip("/") == f"{API}upload"
        self.uploading[address] += uploads
        try:
            await self._pass(scope, headers, receive, answer, uploads)
        finally:
            self.uploading[address] -= uploads
            self.uploading += Counter()  # forgets those who have none

    def refuse(self, scope: Scope, headers: Headers, address: str) -> Refused | None:
        """Return why a request is refused by what its head says, None where it is not."""
        path, kind = scope["path"], _kind(scope)
        for buckets in (self.pages, {"upload": self.uploads, "event": self.events}.get(kind)):
            if buckets is not None and (wait := buckets.take(address)):
                return too_fast(math.ceil(wait))
        if kind == "upload" and self.uploading[address] >= UPLOADS_AT_ONCE:
            return too_fast(5)
        if self.rules.hosts and _name(headers.get("host", "")) not in self.rules.hosts:
            why = "This server answers under its own name only. Where a proxy stands before it, name it in RIFT_HOSTS."
            return Refused(403, "door.host", why)
        if (origin := headers.get("origin")) and not self._own(origin, headers):
            why = "The request comes from another site's page. Open the app itself; a proxy before it has to pass Host on."
            return Refused(403, "door.origin", why)
        theirs = self.rules.sessions is not None and (path == CANCEL or not self.rules.sessions.open(scope, headers))
        return Refused(404, "door.closed", "There is nothing under this address.") if theirs or closed(path) else None

    def _own(self, origin: str, headers: Headers) -> bool:
        """Whether a page that asks is this server's own: same name and port, whatever a proxy makes of http and https."""
        asked = [headers.get("host", "")]
        asked += [headers.get("x-forwarded-host", "").split(",")[0].strip()] if self.rules.behind_proxy else []
        place = origin.partition("://")[2].lower()
        if _name(place) in LOOPBACK and _name(asked[0]) in LOOPBACK:  # localhost is 127.0.0.1
            place, asked = place.rpartition(":")[2], [asked[0].rpartition(":")[2]]
        return bool(place) and (place in map(str.lower, asked) or _name(place) in self.rules.hosts - LOOPBACK)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send, uploads: bool) -> None:
        """Let a request through and count its body while it is read; when it grows too large, the answer is ours."""
        kind, options = parse_options_header(headers.get("content-type"))
        boundary = options.get(b"boundary") if uploads and kind == b"multipart/form-data" else None
        body = Body(self.rules.upload_bytes + FIELD_BYTES if boundary else JSON_BYTES, boundary)
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told) > body.most:
            await _refuse(scope, send, too_large(body.most))
            return
        refused: Refused | None = None
        began = False

        async def counted() -> Message:
            nonlocal refused
            message = await receive()
            if message["type"] == "http.request":
                refused = refused or body.take(message.get("body", b""))
            if refused or (uploads and message["type"] == "http.disconnect" and not began):
                # what Gradio answers by deleting what it has of the upload; from any other error files would stay
                raise MultiPartException("The upload was broken off.")
            return message

        async def answered(message: Message) -> None:
            nonlocal began
            if refused and not began:
                return
            began = True
            await send(message)

        try:
            await self.app(scope, counted, answered)
        except MultiPartException:
            if not refused:
                raise
        if refused and not began:
            await _refuse(scope, send, refused)


def closed(path: str) -> bool:
    """Whether an address is one that this app does not have, or does not want to have."""
    if path.startswith(API):
        first = path.removeprefix(API).partition("/")[0]
        if first.startswith("file="):
            target = path.removeprefix(f"{API}file=")
            return "://" in target or target.startswith(("//", "\\"))  # the server would fetch it
        return first not in OPEN
    return path.startswith(("/file=", "/proxy=")) or any(path == one or path.startswith(f"{one}/") for one in CLOSED_PAGES)


def is_loopback(host: str) -> bool:
    """Whether a server that listens there is reached from its own machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _kind(scope: Scope) -> str:
    first = scope["path"].removeprefix(API).partition("/")[0] if scope["path"].startswith(API) else ""
    if scope["method"] == "POST" and first in ("queue", "run", "call", "upload"):
        return "upload" if first == "upload" else "event"
    return "page"


def _name(netloc: str) -> str:
    """Return the host of `host:port`, in small letters and without brackets."""
    head, _, port = netloc.lower().rpartition(":")
    return (head if head and port.isdecimal() else netloc.lower()).strip("[]")


def _dressed(send: Send) -> Send:
    """Give every answer the headers that it has not got."""

    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return dressed


async def _refuse(scope: Scope, send: Send, refused: Refused) -> None:
    """Answer with the sentence: as JSON to a program, where the page shows `detail`, else as plain text."""
    program = scope["path"].startswith(API) and _kind(scope) != "upload"
    said = f"{refused.sentence} [{refused.code}]"
    body = (json.dumps({"detail": said, "code": refused.code}) if program else said).encode()
    headers = {
        "content-type": "application/json" if program else "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        "cache-control": "no-store",
    } | ({"retry-after": str(refused.wait)} if refused.wait else {})
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
