"""The page is made once for each address under which it is asked, and is what Gradio would send."""

from __future__ import annotations

import asyncio
import gzip

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

from rift.ui import front


class Site:
    """A site that says under which address it was asked and counts how often it was."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken = False
        routes = [Route("/", self.page, methods=["GET", "POST"]), Route("/other", self.page)]
        self.app = front.Front(Starlette(routes=routes))

    async def page(self, request: Request) -> HTMLResponse:
        self.asked.append(str(request.url))
        await asyncio.sleep(0.01)  # so that others come meanwhile
        if self.broken:
            return PlainTextResponse("no", 500, {"x-why": "broken"})
        address = request.headers.get("x-forwarded-host", request.url.netloc)
        return HTMLResponse(f"<p>{request.headers.get('x-forwarded-proto', 'http')}://{address}</p>" * 100)

    def get(self, path: str = "/", count: int = 1, method: str = "GET", **headers: str) -> list[httpx.Response]:
        async def go() -> list[httpx.Response]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://one") as client:
                names = {name.replace("_", "-"): value for name, value in headers.items()}
                return await asyncio.gather(*(client.request(method, path, headers=names) for _ in range(count)))

        return asyncio.run(go())


@pytest.fixture
def site() -> Site:
    return Site()


def test_of_many_who_come_at_once_one_lets_it_be_made(site):
    answers = site.get(count=20)
    assert {answer.text for answer in answers} == {"<p>http://one</p>" * 100}
    assert len(site.asked) == 1
    (later,) = site.get("/?run=lab/abc&__theme=dark")
    assert later.text == answers[0].text and len(site.asked) == 1


def test_an_address_of_its_own_has_a_page_of_its_own(site):
    assert site.get(x_forwarded_host="a.example")[0].text.startswith("<p>http://a.example</p>")
    secure = {"x_forwarded_host": "a.example", "x_forwarded_proto": "https"}
    assert site.get(**secure)[0].text.startswith("<p>https://a.example</p>")
    assert site.get()[0].text.startswith("<p>http://one</p>")
    assert len(site.asked) == 3


def test_it_is_compressed_for_whoever_reads_that(site):
    (small,) = site.get(accept_encoding="gzip, br")
    (plain,) = site.get(accept_encoding="identity")
    assert small.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert small.text == plain.text == "<p>http://one</p>" * 100
    assert int(small.headers["content-length"]) == len(gzip.compress(plain.content, 6)) < len(plain.content) / 5
    assert small.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert small.headers["content-type"] == plain.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(("path", "method"), [("/?deep_link=x", "GET"), ("/other", "GET"), ("/", "POST")])
def test_what_is_not_the_page_passes(path, method, site):
    for _ in range(2):
        site.get(path, method=method)
    assert len(site.asked) == 2


def test_a_failure_is_told_and_not_kept(site):
    site.broken = True
    (failed,) = site.get()
    assert failed.status_code == 500 and failed.text == "no" and failed.headers["x-why"] == "broken"
    site.broken = False
    assert site.get()[0].status_code == 200


def test_who_invents_addresses_fills_no_memory(site):
    for number in range(3 * front.MOST_PAGES):
        site.get(x_forwarded_host=f"{number}.example")
    assert len(site.app.pages) == front.MOST_PAGES
