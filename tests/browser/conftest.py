"""Browsers that visit the app, and a watch on what a page must never do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.browser.server import Server

# What Gradio says of the event that was in flight when its page was left for another
LEAVING = ("AbortError: signal is aborted", "Unexpected error Connection errored out")
PATIENCE_MS = 120_000  # the machine may be busy with other work; nothing here waits for a fixed time


class Watch:
    """Remembers errors of a page's scripts, its messages to the console, dialogs, and requests to any other host."""

    def __init__(self, home: str):
        self.home, self.problems, self.expected, self.documents = home, [], (), 0

    def attach(self, page) -> None:
        def dialog(one) -> None:
            self.problems.append(f"dialog: {one.message}")
            one.dismiss()

        page.on("console", lambda said: self.problems.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("dialog", dialog)
        page.on("request", self._asked)

    def expect(self, *beginnings: str) -> None:
        """Take messages to the console that begin so for what the test provokes itself."""
        self.expected += tuple(f"console: {one}" for one in beginnings)

    @property
    def unexpected(self) -> list[str]:
        return [one for one in self.problems if not one.startswith(self.expected)]

    def _asked(self, request) -> None:
        self.documents += request.resource_type == "document"
        if self.documents > 1:
            self.expect(*LEAVING)
        url = request.url
        if not url.startswith((f"{self.home}/", "data:", "blob:", "about:")):
            self.problems.append(f"request to another host: {url}")


@pytest.fixture(scope="package")
def chromium() -> Iterator:
    """The system's Chromium without a window; Playwright's own is never downloaded."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")  # of a package there would be one for each file, since other tests come in between
def shared_server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("app"))
    yield server
    server.close()


@pytest.fixture
def server(shared_server) -> Iterator[Server]:
    """The server that the tests share; what a test leaves running is stopped after it."""
    yield shared_server
    shared_server.rest()


@pytest.fixture
def own_server(chromium, tmp_path) -> Iterator[Server]:
    """A server for one test, which may kill it."""
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def visit(chromium, request) -> Iterator[Callable]:
    """Open a page as a new visitor, or as one who is there already (`context`); each page is watched to the test's end."""
    contexts, watches = [], []

    def open_page(server: Server, path: str = "/", *, context=None, wide: int = 1280):
        if context is None:
            context = chromium.new_context(viewport={"width": wide, "height": 900}, locale="en-US")
            context.set_default_timeout(PATIENCE_MS)
            contexts.append(context)
        page, watch = context.new_page(), Watch(server.url)
        watch.attach(page)
        watches.append(watch)
        page.watch = watch
        page.goto(server.url + path)
        page.locator("#status .state").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    problems = [problem for watch in watches for problem in watch.unexpected]
    assert not problems, "\n".join(problems)


@pytest.fixture
def page(server, visit):
    """A new visitor's page, just opened."""
    return visit(server)
