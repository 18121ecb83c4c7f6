"""The door of the server: every request passes here before Gradio sees it, and is refused in plain words or let through.

Gradio limits each file of an upload, but holds text fields and JSON of any size in memory, serves pages that this app does not
have, fetches what `/file=https://…` names, and answers any other site's page. A refusal is a sentence with a code:
door.size (413), door.rate (429), door.origin and door.host (403), door.closed (404).
"""

from __future__ import annotations

import ipaddress
import json
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from python_multipart.multipart import FormParserError, MultipartParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rift.archive import MB

JSON_BYTES = 8 * MB  # ten pictures of a webcam in one event are about 2 MB
FIELD_BYTES = MB  # of a form, all that is not the content of a file: boundaries, headers, fields of text
UPLOADS_AT_ONCE = 8  # of one address
MOST_ADDRESSES = 10_000  # whose rates are remembered
API = "/gradio_api/"
# Of Gradio's own interface the parts that the page and `gradio_client` use; a part that is new in a later version stays closed.
OPEN = frozenset(
    "app_id call cancel file= heartbeat info login_check queue reset run startup-events theme.css token upload upload_progress "
    "user".split()
)
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


class Rate(NamedTuple):
    """So many a second for ever, and so many at once after a pause."""

    steady: float
    burst: int


@dataclass(frozen=True)
class Rules:
    """What this server takes; `hosts` are the names it is asked under, none where every name is its own."""

    upload_bytes: int
    pages: Rate = Rate(200, 3000)
    events: Rate = Rate(100, 1000)
    uploads: Rate = Rate(2, 60)
    hosts: frozenset[str] = frozenset()
    behind_proxy: bool = False  # then the last public address that it adds to X-Forwarded-For is the visitor's


def public(upload_bytes: int) -> Rules:
    """Return the rules of a server for everybody, behind a proxy that tells whose request it is."""
    rates = {"pages": Rate(50, 1000), "events": Rate(30, 300), "uploads": Rate(0.5, 20)}
    return Rules(upload_bytes, **rates, behind_proxy=True)


class Refused(NamedTuple):
    """Why a request goes no further."""

    status: int
    code: str
    sentence: str
    wait: int = 0  # seconds after which it may be asked again


class Buckets:
    """One token bucket for each address; the address that was not seen for longest is forgotten first."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic):
        self.rate, self.clock = rate, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> float:
        """Take one token; return 0, or the seconds until there is one."""
        now = self.clock()
        left, then = self._left.pop(address, (float(self.rate.burst), now))
        left = min(self.rate.burst, left + (now - then) * self.rate.steady)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate.steady


class Body:
    """Counts what comes in: all of it, and of a form what is not the content of a file."""

    def __init__(self, most: int, boundary: bytes | None = None):
        self.most, self.whole, self.files, self.boundary = most, 0, 0, boundary
        self._parser = MultipartParser(boundary, self._callbacks()) if boundary else None
        self._name = self._value = b""
        self._is_file = False

    def take(self, chunk: bytes) -> Refused | None:
        """Count a piece; return why no more is read, if so."""
        self.whole += len(chunk)
        if self._parser is not None:
            try:
                self._parser.write(chunk)
            except FormParserError:  # it is no form: from here on nothing is a file
                self._parser = None
        if self.whole > self.most or (self.boundary and self.whole - self.files > FIELD_BYTES):
            return too_large(self.most if self.whole > self.most else FIELD_BYTES)
        return None

    def _callbacks(self) -> Any:
        def begin() -> None:
            self._is_file, self._name, self._value = False, b"", b""

        def name(data: bytes, start: int, end: int) -> None:
            self._name += data[start:end]

        def value(data: bytes, start: int, end: int) -> None:
            self._value += data[start:end]

        def end_of_header() -> None:
            if self._name.lower() == b"content-disposition":
                self._is_file = b"filename" in parse_options_header(self._value)[1]
            self._name = self._value = b""

        def content(data: bytes, start: int, end: int) -> None:
            self.files += (end - start) * self._is_file

        return {
            "on_part_begin": begin,
            "on_header_field": name,
            "on_header_value": value,
            "on_header_end": end_of_header,
            "on_part_data": content,
        }


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
        return Refused(404, "door.closed", "There is nothing under this address.") if closed(path) else None

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


def client(scope: Scope, headers: Headers, behind_proxy: bool) -> str:
    """Return whose request it is: an address, of IPv6 the network of one household (/64)."""
    found = (scope.get("client") or ("",))[0]
    if behind_proxy:
        for one in reversed(headers.get("x-forwarded-for", "").split(",")):
            if _public(one.strip()):
                found = one.strip()
                break
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return found
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def too_large(most: int) -> Refused:
    """Return the refusal of what is larger than `most` bytes."""
    return Refused(413, "door.size", f"That is more than the {most // MB} MB that are taken here; send less, or in parts.")


def too_fast(seconds: int) -> Refused:
    """Return the refusal of one request too many."""
    return Refused(429, "door.rate", f"Too many requests at once; try again in {seconds} s.", seconds)


def _kind(scope: Scope) -> str:
    first = scope["path"].removeprefix(API).partition("/")[0] if scope["path"].startswith(API) else ""
    if scope["method"] == "POST" and first in ("queue", "run", "call", "upload"):
        return "upload" if first == "upload" else "event"
    return "page"


def _name(netloc: str) -> str:
    """Return the host of `host:port`, in small letters and without brackets."""
    head, _, port = netloc.lower().rpartition(":")
    return (head if head and port.isdecimal() else netloc.lower()).strip("[]")


def _public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


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
