"""The guard before the app: sizes, rates, other sites, closed addresses, headers; alone, and before a real server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import stat
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from gradio import processing_utils
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rift import archive, ui
from rift.archive import MB
from rift.ui import fresh, front, guard, intake, visit
from tests.browser.server import Server
from tests.test_ui import event_loops  # noqa: F401 - gr.Blocks leaves two open

HOST = "testserver"


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def door(**rules) -> TestClient:
    """A client of an app that answers everything with the size of what it got."""
    inner = Starlette(routes=[Route("/{rest:path}", hello, methods=["GET", "POST"])])
    return TestClient(guard.Guard(inner, guard.Rules(**{"upload_bytes": 20 * MB, **rules})))


def form(*parts: tuple[str, str | None, int]) -> tuple[bytes, dict[str, str]]:
    """A multipart body of parts (name, file name or None, bytes) and its header."""
    body = b""
    for name, file, size in parts:
        filename = f'; filename="{file}"' if file is not None else ""
        body += f'--BOUND\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode() + b"x" * size + b"\r\n"
    return body + b"--BOUND--\r\n", {"content-type": "multipart/form-data; boundary=BOUND"}


SIZES = [
    ("a file", "/gradio_api/upload", (("files", "a.zip", 15 * MB),), 200),
    ("a file over the limit", "/gradio_api/upload", (("files", "a.zip", 22 * MB),), 413),
    ("many files over it", "/gradio_api/upload", (("files", "a.png", 8 * MB),) * 3, 413),
    ("a thousand small ones", "/gradio_api/upload", (("files", "picture of something.png", 300),) * 1000, 200),
    ("a small field", "/gradio_api/upload", (("note", None, 1000), ("files", "a.zip", 2 * MB)), 200),
    ("a large field", "/gradio_api/upload", (("note", None, 2 * MB),), 413),
    ("a large field after a file", "/gradio_api/upload", (("files", "a.zip", MB), ("note", None, 2 * MB)), 413),
    ("many fields", "/gradio_api/upload", (("note", None, 300_000),) * 4, 413),
    ("a form where JSON belongs", "/gradio_api/queue/join", (("files", "a.zip", 9 * MB),), 413),
]


@pytest.mark.parametrize(("what", "path", "parts", "status"), SIZES, ids=[one[0] for one in SIZES])
@pytest.mark.parametrize("told", [True, False], ids=["length told", "length not told"])
def test_no_body_is_larger_than_it_may_be(what, path, parts, status, told):
    body, headers = form(*parts)
    pieces = (body[i : i + 65536] for i in range(0, len(body), 65536))
    answer = door().post(path, content=body if told else pieces, headers=headers)
    assert answer.status_code == status, what
    if status == 413:
        assert "[door.size]" in answer.text and re.search(r"more than the \d+ MB that are taken here", answer.text)
    else:
        assert answer.text == str(len(body)), "all of it went through"


@pytest.mark.parametrize("size", [8 * MB, 8 * MB + 1])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/call/start", "/gradio_api/cancel", "/anything"])
def test_json_has_a_limit_of_its_own(path, size):
    pieces = (b"x" * (size // 16) for _ in range(16)) if size % 16 == 0 else iter([b"x" * size])
    answer = door().post(path, content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == (200 if size <= 8 * MB else 413)


def test_what_is_said_to_be_a_form_and_is_none_counts_as_a_field():
    for body in (b"x" * 2 * MB, b"--BOUND\r\nbroken" + b"\0" * 2 * MB):
        answer = door().post("/gradio_api/upload", content=iter([body]), headers=form()[1])
        assert answer.status_code == 413 and "1 MB" in answer.text
    lies = form()[1] | {"content-length": "10"}
    assert door().post("/gradio_api/upload", content=b"x" * 10, headers=lies).status_code == 200


def test_a_body_is_never_held(monkeypatch):
    """What is counted is not kept: the parser holds no more than a piece."""
    body = guard.Body(400 * MB, b"BOUND")
    head, _ = form(("files", "a.zip", 0))
    assert body.take(head[: -len(b"\r\n--BOUND--\r\n")]) is None
    for _ in range(50):
        assert body.take(b"y" * MB) is None
    assert body.files >= 50 * MB - 100 and len(body._value) + len(body._name) < 100


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_and_then_its_steady_rate():
    clock = Clock()
    buckets = guard.Buckets(guard.Rate(2, 5), clock)
    assert [buckets.take("a") for _ in range(5)] == [0] * 5
    assert buckets.take("a") == pytest.approx(0.5) and buckets.take("b") == 0, "each address has its own"
    clock.now += 0.5
    assert buckets.take("a") == 0 and buckets.take("a") > 0
    clock.now += 1e6
    assert sum(buckets.take("a") == 0 for _ in range(20)) == 5, "no more than the burst is saved up"
    for number in range(intake.MOST_ADDRESSES + 10):
        buckets.take(str(number))
    assert len(buckets._left) == intake.MOST_ADDRESSES


RATES = [
    ("pages", "GET", "/", 3),
    ("events", "POST", "/gradio_api/queue/join", 2),
    ("events", "POST", "/gradio_api/call/start", 2),
    ("events", "POST", "/gradio_api/run/predict", 2),
    ("uploads", "POST", "/gradio_api/upload", 1),
]


@pytest.mark.parametrize(("kind", "method", "path", "burst"), RATES)
def test_too_many_requests_are_refused_in_words(kind, method, path, burst):
    one = door(**{kind: guard.Rate(0.01, burst)})
    answers = [one.request(method, path) for _ in range(burst + 1)]
    assert [answer.status_code for answer in answers] == [200] * burst + [429]
    last = answers[-1]
    assert "Too many requests at once; try again in" in last.text and "door.rate" in last.text
    assert 0 < int(last.headers["retry-after"]) <= 100
    if kind != "pages":
        assert one.get("/").status_code == 200, "the page itself can still be looked at"


def test_an_address_has_so_many_uploads_at_once():
    async def ask() -> list[int]:
        going, statuses = asyncio.Event(), []

        async def slow(scope, receive, send):
            await going.wait()
            await PlainTextResponse("done")(scope, receive, send)

        one = guard.Guard(slow, guard.Rules(20 * MB))

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        def scope(address):
            upload = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [(b"host", b"x")]}
            return {**upload, "client": (address, 1)}

        tasks = [asyncio.create_task(one(scope("192.0.2.1"), receive, send)) for _ in range(10)]
        tasks.append(asyncio.create_task(one(scope("192.0.2.2"), receive, send)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = list(statuses)
        going.set()
        await asyncio.gather(*tasks)
        assert not one.uploading, "nothing is remembered of who is done"
        return refused

    assert asyncio.run(ask()) == [429, 429]


@pytest.mark.parametrize(
    ("peer", "forwarded", "behind", "found"),
    [
        ("192.0.2.7", "1.1.1.1", False, "192.0.2.7"),  # anybody can write such a header
        ("10.0.0.3", "1.1.1.1", True, "1.1.1.1"),
        ("10.0.0.3", "6.6.6.6, 8.8.8.8, 10.1.2.3", True, "8.8.8.8"),  # the first is what the visitor wrote
        ("10.0.0.3", "nonsense, unknown", True, "10.0.0.3"),
        ("10.0.0.3", "", True, "10.0.0.3"),
        ("2001:db8:1:2:3:4:5:6", "", False, "2001:db8:1:2::/64"),
        ("testclient", "", False, "testclient"),
    ],
)
def test_whose_request_it_is(peer, forwarded, behind, found):
    headers = guard.Headers({"x-forwarded-for": forwarded} if forwarded else {})
    assert guard.client({"client": (peer, 1)}, headers, behind) == found
    assert guard.client({}, headers, False) == ""


CLOSED = """/docs /redoc /openapi.json /monitoring /monitoring/summary /login /logout /svelte/x /file=https://example.org /proxy=x
/gradio_api/deep_link /gradio_api/openapi.json /gradio_api/runs /gradio_api/run-history/records /gradio_api/proxy=https://x
/gradio_api/file=https://example.org/x /gradio_api/file=http://169.254.169.254/ /gradio_api/file=//example.org/x
/gradio_api/file=file:///etc/passwd /gradio_api/component_server /gradio_api/stream/x /gradio_api/vibe-edit
/gradio_api/process_recording /gradio_api/profiling/traces /gradio_api/dev/reload /gradio_api/file/x /gradio_api/api/predict
/gradio_api/custom_component/x /gradio_api/something-new /gradio_api/mcp"""


@pytest.mark.parametrize("path", CLOSED.split())
def test_what_this_app_does_not_have_is_not_there(path):
    one = door()
    for answer in (one.get(path), one.post(path), one.get(path.replace("://", ":%2F%2F"))):
        assert answer.status_code == 404 and "[door.closed]" in answer.text and path not in answer.text


def test_where_visitors_are_kept_apart_nobody_cancels_what_a_session_asked():
    body = {"session_hash": "of another", "fn_index": 0, "event_id": "x"}
    assert door().post("/gradio_api/cancel", json=body).status_code == 200
    answer = door(sessions=visit.Sessions()).post("/gradio_api/cancel", json=body)
    assert answer.status_code == 404 and "[door.closed]" in answer.text


def test_what_the_app_has_is_there():
    one = door()
    for path in (
        "/",
        "/config",
        "/assets/x.js",
        "/static/y",
        "/theme.css",
        "/favicon.ico",
        "/rift/picture/token",
        "/rift/shared/x",
    ):
        assert one.get(path).status_code == 200, path
    for name in ("info", "queue/data", "upload_progress", "heartbeat/abc", "startup-events", "file=/tmp/gradio/x.png"):
        assert one.get(f"/gradio_api/{name}").status_code == 200, name


ORIGINS = [  # Origin, other headers, hosts of the rules, behind a proxy: what is answered
    (None, {}, (), False, 200),
    (f"http://{HOST}", {}, (), False, 200),
    (f"https://{HOST}", {}, (), False, 200),  # a proxy took the s away
    ("https://evil.example", {}, (), False, 403),
    (f"http://{HOST}.evil.example", {}, (), False, 403),
    (f"http://{HOST}:81", {}, (), False, 403),
    ("null", {}, (), False, 403),  # a document in a sandbox
    ("", {}, (), False, 200),
    ("https://lab.example", {"x-forwarded-host": "lab.example"}, (), False, 403),  # a page can write it
    ("https://lab.example", {"x-forwarded-host": "lab.example"}, (), True, 200),
    ("https://lab.example", {"host": "127.0.0.1:7860"}, ("lab.example", *guard.LOOPBACK), False, 200),
    ("http://localhost:7860", {"host": "127.0.0.1:7860"}, guard.LOOPBACK, False, 200),
    ("http://localhost:8888", {"host": "127.0.0.1:7860"}, guard.LOOPBACK, False, 403),
    ("http://127.0.0.1", {"host": "127.0.0.1:7860"}, guard.LOOPBACK, False, 403),
    ("http://[::1]:7860", {"host": "[::1]:7860"}, guard.LOOPBACK, False, 200),
    (None, {"host": "evil.example:7860"}, guard.LOOPBACK, False, 403),  # a name that was bound to this machine's address
]


@pytest.mark.parametrize(("origin", "more", "hosts", "behind", "status"), ORIGINS)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload"), ("GET", "/config")]
)
def test_another_sites_page_gets_nothing(origin, more, hosts, behind, status, method, path):
    headers = more | ({"origin": origin} if origin is not None else {})
    answer = door(hosts=frozenset(hosts), behind_proxy=behind).request(method, path, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert re.search(r"\[door\.(origin|host)\]", answer.text) and "evil" not in answer.text


def test_every_answer_has_the_headers_and_keeps_its_own():
    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", headers={"Content-Security-Policy": "sandbox", "Referrer-Policy": "no-referrer"})

    inner = Starlette(routes=[Route("/own", own)])
    one = TestClient(guard.Guard(inner, guard.Rules(MB)))
    kept = one.get("/own").headers
    assert (kept["content-security-policy"], kept["referrer-policy"]) == ("sandbox", "no-referrer")
    for answer in (one.get("/missing"), one.get("/docs"), one.post("/own", content=b"x" * 9 * MB)):
        assert answer.status_code in (404, 413)
        assert {name.lower() for name in guard.HEADERS} <= set(answer.headers)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'self' https://huggingface.co" in answer.headers["content-security-policy"]


def test_a_client_that_goes_away_breaks_its_upload_off_and_nothing_else():
    """Gradio deletes what it has of an upload on this one error only."""

    async def ask(path: str, answered: bool) -> str:
        async def app(scope, receive, send):
            if answered:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                seen.append((await receive())["type"])
            except guard.MultiPartException:
                seen.append("broken off")
                raise

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        seen: list[str] = []
        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"x")], "client": ("a", 1)}
        with suppress(guard.MultiPartException):
            await guard.Guard(app, guard.Rules(MB))(scope, receive, send)
        return seen[0]

    assert asyncio.run(ask("/gradio_api/upload", False)) == "broken off"
    assert asyncio.run(ask("/gradio_api/upload", True)) == "http.disconnect"
    assert asyncio.run(ask("/gradio_api/queue/join", False)) == "http.disconnect"


def test_folder_and_seed_are_new_and_private_and_those_of_the_dead_go(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(processing_utils, "hash_seed", b"known")
    monkeypatch.setattr(fresh, "_mine", {})
    (tmp_path / "hash_seed.txt").write_text("known")
    monkeypatch.setattr(fresh.utils, "HASH_SEED_PATH", str(tmp_path / "hash_seed.txt"))
    for name in ("dead", "alive"):
        (tmp_path / f"{fresh.BEGINNING}{name}").mkdir()
        (tmp_path / f"{fresh.BEGINNING}{name}" / "patient.zip").write_bytes(b"x")
        (tmp_path / f"{fresh.BEGINNING}{name}.lock").touch()
    (tmp_path / "of another program").mkdir()
    with FileLock(tmp_path / f"{fresh.BEGINNING}alive.lock"):
        folder = fresh.begin()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ["GRADIO_TEMP_DIR"] == str(folder) == fresh.utils.get_upload_folder()
    assert len(processing_utils.hash_seed) == 64 and not (tmp_path / "hash_seed.txt").exists()
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {folder.name, f"{fresh.BEGINNING}alive", "of another program"}
    seed = processing_utils.hash_seed
    assert fresh.begin() == folder and processing_utils.hash_seed != seed, "one folder for all pages of a process"
    fresh._end(folder, fresh._mine[str(folder)])
    assert not folder.exists() and not Path(f"{folder}.lock").exists()


def test_which_addresses_are_this_machine_alone():
    assert all(map(guard.is_loopback, ("127.0.0.1", "127.0.0.53", "::1", "localhost")))
    assert not any(map(guard.is_loopback, ("0.0.0.0", "::", "192.168.1.5", "lab.example", "")))
    everybody = guard.public(archive.PUBLIC.upload_bytes)
    assert (
        everybody.behind_proxy and everybody.upload_bytes == 200 * MB and everybody.events.steady < guard.Rules(1).events.steady
    )


LAUNCHES = [  # host, environment: loud, public, behind a proxy, MB of an upload, names that are answered
    ("127.0.0.1", {}, False, False, False, 500, guard.LOOPBACK),
    ("127.0.0.1", {"RIFT_HOSTS": "lab.example"}, False, False, False, 500, guard.LOOPBACK | {"lab.example"}),
    ("0.0.0.0", {}, True, True, False, 500, frozenset()),
    ("0.0.0.0", {"RIFT_HOSTS": "lab.example, "}, True, True, False, 500, guard.LOOPBACK | {"lab.example"}),
    ("0.0.0.0", {"SPACE_ID": "someone/rift"}, False, True, True, 200, frozenset()),
]


@pytest.mark.parametrize(("host", "environment", "loud", "public", "proxy", "most", "hosts"), LAUNCHES)
def test_how_the_server_is_started(host, environment, loud, public, proxy, most, hosts, tmp_path, monkeypatch, capsys):
    class Started(Exception):
        pass

    asked: dict[str, Any] = {}

    def launch(blocks, **values):
        asked.update(values, waiting=blocks._queue.max_size)
        raise Started

    for name in ("SPACE_ID", "RIFT_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(fresh, "_mine", {})
    monkeypatch.setattr(ui.gr.Blocks, "launch", launch)
    built: list[bool] = []

    def build(lab: Any, device: str, public: bool, apart: bool) -> tuple[ui.gr.Blocks, Any]:
        built.append(public)
        return ui.gr.Blocks(), SimpleNamespace(routes=list)

    monkeypatch.setattr(ui, "build", build)
    with pytest.raises(Started):
        ui.serve(tmp_path / "lab", host, 7860, apart=proxy)  # on Spaces, as app.py has it
    assert ("RIFT Lab has no password" in capsys.readouterr().err) == loud and built == [public]
    one, page = asked["app_kwargs"]["middleware"]
    rules = one.kwargs["rules"]
    assert page.cls is front.Front  # behind the guard
    assert one.cls is guard.Guard and (rules.behind_proxy, rules.upload_bytes, rules.hosts) == (proxy, most * MB, hosts)
    off = ("share", "run_history", "enable_monitoring", "show_error", "ssr_mode", "mcp_server", "pwa")
    assert not any(asked[name] for name in off) and asked["strict_cors"] is True and asked["allowed_paths"] == []
    assert asked["state_session_capacity"] == 500 and asked["max_file_size"] == most * MB and 0 < asked["waiting"] <= 256
    assert asked["blocked_paths"] == [str((tmp_path / "lab").resolve())]
    assert all(asked["app_kwargs"][name] is None for name in ("docs_url", "redoc_url", "openapi_url"))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("door"))
    yield one
    one.close()


def memory(server: Server) -> float:
    """MB that the server holds now."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1000


def ask(server: Server, method: str, path: str, body=None, **headers: str) -> tuple[int, dict[str, str], str]:
    one = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        one.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = one.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode(errors="replace")
    finally:
        one.close()


def pieces(head: bytes, megabytes: int) -> Iterator[bytes]:
    yield head
    for _ in range(megabytes):
        yield b"x" * MB


FIELD = b'--BOUND\r\nContent-Disposition: form-data; name="note"\r\n\r\n'
FILE = b'--BOUND\r\nContent-Disposition: form-data; name="files"; filename="a.zip"\r\n\r\n'
MULTIPART = "multipart/form-data; boundary=BOUND"


def test_a_field_of_300_mb_costs_the_server_nothing(server):
    before = memory(server)
    began, parts = time.monotonic(), pieces(FIELD, 300)
    status, _, said = ask(
        server, "POST", "/gradio_api/upload", parts, content_type=MULTIPART, content_length=str(len(FIELD) + 300 * MB)
    )
    took = time.monotonic() - began
    assert status == 413 and "[door.size]" in said
    assert memory(server) < before + 50 and took < 5, (memory(server) - before, took)
    status, _, said = ask(server, "POST", "/gradio_api/queue/join", b"[" + b"1," * 5 * MB, content_type="application/json")
    assert status == 413 and json.loads(said)["code"] == "door.size" and memory(server) < before + 50
    assert ask(server, "GET", "/")[0] == 200, "and it lives on"


def test_an_upload_too_large_or_broken_off_leaves_nothing(server):
    status, _, said = ask(server, "POST", "/gradio_api/upload", None, content_type=MULTIPART, content_length=str(502 * MB))
    assert status == 413 and "501 MB" in said
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as one:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MULTIPART}\r\n"
        one.sendall(f"{head}Content-Length: {9 * MB}\r\n\r\n".encode() + FILE + b"z" * 3 * MB)
        until = time.monotonic() + 20
        while not held(server) and time.monotonic() < until:
            time.sleep(0.02)
        assert held(server), "it was being read"
    until = time.monotonic() + 20
    while held(server) and time.monotonic() < until:
        time.sleep(0.02)
    assert not held(server)


def held(server: Server) -> list[Path]:
    return [path for path in server.uploads.rglob("*") if path.is_file() and path.stat().st_size]


def test_the_servers_own_page_headers_and_folder(server):
    status, headers, page = ask(server, "GET", "/")
    assert status == 200 and headers["content-security-policy"] == guard.POLICY and headers["x-content-type-options"] == "nosniff"
    (folder,) = server.uploads.glob(f"{fresh.BEGINNING}*/")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in CLOSED.split():
        assert ask(server, "GET", urllib.parse.quote(path, safe="/:=%"))[0] == 404, path
    assert ask(server, "POST", "/gradio_api/queue/join", b"{}", origin="https://evil.example")[0] == 403
    assert ask(server, "GET", "/config", host="evil.example")[0] == 403
    picture = re.search(r"rift/picture/[^\"'\\ ]+", page)
    if picture:
        assert ask(server, "GET", f"/{picture[0]}")[0] == 200
