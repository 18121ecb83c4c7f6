"""Pages without a browser: what a page of the app asks of its server, in Gradio's own protocol, each as a session of its own.

An event is a POST to /queue/join, and its answer comes over /queue/data; its time is from the one until the other. The server
runs as behind the proxy of a Space, which gives every page an address of its own (X-Forwarded-For) and leaves the public rates as
they are. What follows from an answer is asked as the page asks it: what comes after an event (`then`), and who listens to a state
that changed. What a page does by itself (its JavaScript, its pictures) is no part of it. Below: uploads of those who mean harm.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import httpx
import numpy as np

from rift.ui.visit import HEADER

API, MB = "/gradio_api", 1_000_000
FIRST_ADDRESS = ipaddress.ip_address("11.0.0.1")
FORM = {"content-type": "multipart/form-data; boundary=BOUND"}
Found = dict[str, tuple[float, int]]  # what was measured: its value, and of how many


class Asked(NamedTuple):
    """One answer: what was asked, how long it took, and what was wrong ("" where nothing was)."""

    kind: str
    seconds: float
    error: str = ""


class Site:
    """A server as all its pages know it, and the answers that they got."""

    def __init__(self, url: str, http: httpx.AsyncClient, config: dict[str, Any]):
        self.url, self.http, self.answers = url, http, list[Asked]()
        self.components = {one["id"]: one["props"] | {"type": one["type"]} for one in config["components"]}
        self.events = {one["id"]: one for one in config["dependencies"] if one["backend_fn"]}
        self.ids = {one.get("elem_id") or one.get("label"): id for id, one in self.components.items()}
        self.memory = next(id for id, one in self.components.items() if one["type"] == "browserstate")
        self.tabs = [f"tab-{one['id']}" for one in self.components.values() if one["type"] == "tabitem" and self._drawn(one)]
        ticks = [id for id, one in self.events.items() if one["api_name"].startswith("look") and one["targets"][0][1] == "tick"]
        self.tick = ticks[0]  # of the status bar
        self.timer = self.events[self.tick]["targets"][0][0]

    def _drawn(self, tab: dict[str, Any]) -> bool:
        return f"figure-{tab.get('id')}" in self.ids and bool(self.on(f"tab-{tab['id']}", "select"))

    def on(self, element: str | int, what: str) -> list[int]:
        """Return the events that something done to an element begins; it is named by elem_id, label or number."""
        return [id for id, one in self.events.items() if [self.ids.get(element, element), what] in one["targets"]]

    def endpoint(self, name: str) -> list[int]:
        """Return the event behind a public endpoint."""
        return [id for id, one in self.events.items() if one["api_name"] == name]


@asynccontextmanager
async def site(url: str) -> AsyncIterator[Site]:
    """Give a server as a page knows it."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)  # before the server closes it
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        answer = await http.get(f"{url}/config", headers={"X-Forwarded-For": str(FIRST_ADDRESS)})
        yield Site(url, http, answer.raise_for_status().json())


class Page:
    """One page; `number` is its address, `key` its visitor's, a new one where none is given."""

    def __init__(self, site: Site, number: int, key: str = ""):
        self.site, self.key, self.session = site, key or secrets.token_hex(16), secrets.token_hex(6)
        self.headers = {HEADER: self.key, "X-Forwarded-For": str(FIRST_ADDRESS + number)}
        self.values = {id: "" if one["type"] == "textbox" else None for id, one in site.components.items()}
        self.values |= {id: one["value"] for id, one in site.components.items() if one.get("value") is not None}
        self.values[site.memory] = dict(site.components[site.memory]["default_value"])
        self._beat: asyncio.Task[None] | None = None

    def fill(self, **values: Any) -> None:
        """Fill in controls by their labels."""
        self.values |= {self.site.ids[label.replace("_", " ")]: value for label, value in values.items()}

    async def fetch(self) -> None:
        """Fetch the page itself."""
        began = time.perf_counter()
        try:
            answer = await self.site.http.get(f"{self.site.url}/", headers=self.headers)
            error = "" if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:200]}"
        except httpx.HTTPError as failed:
            error = repr(failed)
        self.site.answers.append(Asked("page", time.perf_counter() - began, error))

    async def open(self) -> None:
        """Fetch the page, hold the connection by which the server knows that it is there, and ask what it asks at first."""
        await self.fetch()
        self._beat = asyncio.create_task(self._hold())
        await self.ask("load", [id for id, one in self.site.events.items() if "load" in [what for _, what in one["targets"]]])

    async def look(self) -> None:
        """Ask as the status bar does every second while something runs."""
        await self.ask("look", [self.site.tick])

    async def tab(self, name: str) -> None:
        """Open a sub-tab."""
        await self.ask("sub-tab", self.site.on(name, "select"))

    async def preview(self) -> None:
        """Ask what a comparison takes, as the Train tab does at every change of it."""
        await self.ask("preview", self.site.on("Epochs", "change"))

    async def ask(self, kind: str, events: Iterable[int], data: list[Any] | None = None) -> list[Any]:
        """Ask these at once, then what follows from the answers; return the answer of the last of them, [] where it has none."""
        waiting, first = list(events), None
        while waiting:
            outputs = await self._round(kind, waiting, data)
            first = outputs[waiting[-1]].get("data", []) if first is None else first
            changed = sorted({id for output in outputs.values() for id in output.get("changed_state_ids") or ()})
            waiting = [id for id, one in self.site.events.items() if one["trigger_after"] in outputs]
            waiting += [event for id in changed for event in self.site.on(id, "change")]
            kind, data, waiting = kind if not changed else "results", None, list(dict.fromkeys(waiting))
        return first or []

    async def _round(self, kind: str, events: list[int], data: list[Any] | None) -> dict[int, dict[str, Any]]:
        """Join with these at once, read until all are answered, and return what came, {} for an error."""
        began, outputs = time.perf_counter(), dict[int, dict[str, Any]]()
        joined = await asyncio.gather(*(self._join(event, data) for event in events))
        waits = {name: event for event, (name, _) in zip(events, joined, strict=True) if name}

        def answered(event: int, error: str, output: dict[str, Any]) -> None:
            self.site.answers.append(Asked(kind, time.perf_counter() - began, error))
            outputs[event] = {} if error else output

        for event, (name, error) in zip(events, joined, strict=True):
            if not name:
                answered(event, error, {})
        wrong = "no answer"
        try:
            async for message in self._stream() if waits else _nothing():
                if (event := waits.pop(message["event_id"], -1)) >= 0:
                    output = message["output"] or {}
                    answered(event, "" if message["success"] else output.get("error") or "an error without words", output)
                    self._take(event, output)
        except httpx.HTTPError as failed:
            wrong = repr(failed)
        for event in waits.values():
            answered(event, wrong, {})
        return outputs

    async def _join(self, event: int, data: list[Any] | None) -> tuple[str, str]:
        """Return the name of the event that is under way, or else what was said instead."""
        values = [self.values.get(id) for id in self.site.events[event]["inputs"]] if data is None else data
        asked = {"data": values, "fn_index": event, "session_hash": self.session, "event_data": None, "trigger_id": None}
        try:
            answer = await self.site.http.post(f"{self.site.url}{API}/queue/join", json=asked, headers=self.headers)
        except httpx.HTTPError as failed:
            return "", repr(failed)
        ok = answer.status_code == 200
        return (answer.json()["event_id"], "") if ok else ("", f"{answer.status_code}: {answer.text[:300]}")

    async def _stream(self) -> AsyncIterator[dict[str, Any]]:
        address = f"{self.site.url}{API}/queue/data?session_hash={self.session}"
        async with self.site.http.stream("GET", address, headers=self.headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:") and '"process_completed"' in line[:200]:
                    yield json.loads(line[5:])

    def _take(self, event: int, output: dict[str, Any]) -> None:
        """Keep what came for the controls, so that it is sent with the next event."""
        for id, value in zip(self.site.events[event]["outputs"], output.get("data") or (), strict=False):
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                self.values[id] = value
            elif "value" in value:
                self.values[id] = value["value"]

    async def _hold(self) -> None:
        address = f"{self.site.url}{API}/heartbeat/{self.session}"
        with suppress(httpx.HTTPError):
            async with self.site.http.stream("GET", address, headers=self.headers, timeout=None) as answer:
                async for _ in answer.aiter_raw():
                    pass

    async def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)


async def _nothing() -> AsyncIterator[dict[str, Any]]:
    return
    yield


def times(answers: Iterable[Asked]) -> Found:
    """Return percentiles in milliseconds of pages, of events and of each kind of them, and the errors, of which some are told."""
    kinds: dict[str, list[float]] = {"event": [], "page": []}
    errors = Counter(one.error for one in answers if one.error)
    for one in answers:
        for kind in {one.kind, "page" if one.kind == "page" else "event"}:
            kinds.setdefault(kind, []).append(1000 * one.seconds)
    for said, count in errors.most_common(3):
        print(f"  {count} x {said[:200]}", flush=True)
    found: Found = {"errors": (errors.total(), len(kinds["event"]) + len(kinds["page"]))}
    for kind, taken in kinds.items():
        found |= {f"{kind}_p{share}_ms": (float(np.percentile(taken, share)), len(taken)) for share in (50, 95, 99) if taken}
    return found


async def arrive(pages: list[Page], each: float = 0.1) -> None:
    """Open pages, the next one a moment after the one before."""

    async def come(page: Page, place: int) -> None:
        await asyncio.sleep(each * place)
        await page.open()

    await asyncio.gather(*(come(page, place) for place, page in enumerate(pages)))


async def act(pages: list[Page], seconds: float, think: float, watch: bool = False) -> None:
    """Let pages act for a while with a pause after each action, their first ones spread over one pause.

    Some only `watch`, as rarely as the server asks them to. Of six actions two are looks of the status bar, two open a
    sub-tab, one is a change on the Train tab, one fetches the page.
    """
    end = time.perf_counter() + seconds

    async def visit(page: Page, place: int) -> None:
        await asyncio.sleep(think * place / len(pages))
        turn = place
        while time.perf_counter() < end:
            match 0 if watch else turn % 6:
                case 0 | 3:
                    await page.look()
                case 1 | 4:
                    await page.tab(page.site.tabs[turn // 3 % len(page.site.tabs)])
                case 2:
                    await page.preview()
                case _:
                    await page.fetch()
            turn += 1
            await asyncio.sleep(float(page.values[page.site.timer]) if watch else think)

    await asyncio.gather(*(visit(page, place) for place, page in enumerate(pages)))


async def harm(site: Site, seconds: float) -> Counter[str]:
    """Send for a while what no browser sends, each kind from addresses of its own; return how often which answer came.

    At once: 20 uploads that drip, a form field of 300 MB, 1000 files in one form, JSON of 100 MB, and uploads that are cut off.
    """
    end, said = time.perf_counter() + seconds, Counter[str]()
    part = b'--BOUND\r\nContent-Disposition: form-data; name="files"; filename="%d.png"\r\n\r\n%s\r\n'
    field = b'--BOUND\r\nContent-Disposition: form-data; name="note"\r\n\r\n'

    async def drip() -> AsyncIterator[bytes]:
        yield part[:-2] % (0, b"")
        while time.perf_counter() < end:
            yield bytes(1000)
            await asyncio.sleep(0.2)
        yield b"\r\n--BOUND--\r\n"

    async def large(head: bytes, megabytes: int) -> AsyncIterator[bytes]:
        yield head
        for _ in range(megabytes):
            yield b"x" * MB

    async def many() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield part % (number, bytes(10_000))
        yield b"--BOUND--\r\n"

    async def cut() -> AsyncIterator[bytes]:
        yield part[:-2] % (0, bytes(MB))
        await asyncio.sleep(0.2)
        raise ConnectionError("the laptop was closed")

    async def again(what: str, number: int, body: Callable[[], AsyncIterator[bytes]], pause: float, path: str = "upload") -> None:
        headers = {"X-Forwarded-For": str(FIRST_ADDRESS + number)} | (FORM if path == "upload" else {})
        while time.perf_counter() < end:
            try:
                answer = await site.http.post(f"{site.url}{API}/{path}", content=body(), headers=headers)
                said[f"{what}: {answer.status_code}"] += 1
            except (httpx.HTTPError, ConnectionError) as failed:
                said[f"{what}: {type(failed).__name__}"] += 1
            await asyncio.sleep(pause)

    kinds: list[Awaitable[None]] = [again("slow", 70_000 + number, drip, 1) for number in range(20)]
    kinds += [again("field of 300 MB", 70_100, lambda: large(field, 300), 2), again("1000 files", 70_200, many, 2)]
    kinds += [again("JSON of 100 MB", 70_300, lambda: large(b"[", 100), 2, "queue/join")]
    kinds += [again("cut off", 70_400 + number, cut, 0.5) for number in range(5)]
    await asyncio.gather(*kinds)
    return said
