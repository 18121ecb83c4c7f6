"""What comes in is counted: requests of an address, bytes of a body, and whose request it is; nothing of it is kept."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from python_multipart.multipart import FormParserError, MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Scope

from rift.archive import MB

FIELD_BYTES = MB  # of a form, all that is not the content of a file: boundaries, headers, fields of text
MOST_ADDRESSES = 10_000  # whose rates are remembered


class Rate(NamedTuple):
    """So many a second for ever, and so many at once after a pause."""

    steady: float
    burst: int


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


def _public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False
