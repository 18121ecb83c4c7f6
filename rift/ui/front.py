"""The page itself, which is the same for everybody: made once for each address under which it is asked, and compressed.

Gradio makes it anew for every visitor and sends it as it is. What a visitor sees in it comes later, by events of their own.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import OrderedDict
from typing import NamedTuple
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_PAGES = 8  # a server has few addresses; who invents others pays with the time that Gradio takes
ADDRESS = ("host", "x-forwarded-host", "x-forwarded-proto", "x-gradio-server")  # what Gradio makes the page's own address of
OTHERS = frozenset(["deep_link", "all_endpoints"])  # of a query: what changes the page


class Made(NamedTuple):
    """A page as it is sent, plain and compressed."""

    plain: bytes
    small: bytes
    kind: str


class Front:
    """The ASGI middleware; it stands behind the guard."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.pages: OrderedDict[tuple[str, ...], Made] = OrderedDict()
        self.making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        if not plain or OTHERS & parse_qs(scope["query_string"].decode("latin-1")).keys():
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key = (scope["scheme"], scope.get("root_path", ""), *(headers.get(name, "") for name in ADDRESS))
        async with self.making:  # of many who come at once, one waits for Gradio
            if key not in self.pages and (failed := await self._make(key, scope, receive)):
                for message in failed:
                    await send(message)
                return
            self.pages.move_to_end(key)
            made = self.pages[key]
        small = "gzip" in headers.get("accept-encoding", "")
        about = {"content-type": made.kind, "vary": "Accept-Encoding"} | ({"content-encoding": "gzip"} if small else {})
        await Response(made.small if small else made.plain, headers=about)(scope, receive, send)

    async def _make(self, key: tuple[str, ...], scope: Scope, receive: Receive) -> list[Message]:
        """Keep what Gradio answers; where it is no page, return that instead."""
        said: list[Message] = []

        async def heard(message: Message) -> None:
            said.append(message)

        await self.app(scope, receive, heard)
        headers = Headers(raw=said[0]["headers"])
        body = b"".join(message.get("body", b"") for message in said[1:])
        if said[0]["status"] != 200 or "content-encoding" in headers:
            return said
        self.pages[key] = Made(body, await asyncio.to_thread(gzip.compress, body, 6), headers.get("content-type", "text/html"))
        while len(self.pages) > MOST_PAGES:
            self.pages.popitem(last=False)
        return []
