"""What must never come out of the app: a user's files, a picture without its token, and endpoints nobody meant to open."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from playwright.sync_api import expect

from rift import service
from rift.runs import Lab
from tests.browser.actions import drop, kinds, tab, upload, zipped

pytestmark = pytest.mark.browser


def get(server, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"{server.url}/{path}", timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_picture_is_served_for_its_own_token_only(page, server):
    address = page.locator("#data-summary img").first.get_attribute("src")
    status, picture = get(server, address)
    assert status == 200 and picture.startswith(b"\xff\xd8"), "a JPEG"
    token = address.rpartition("/")[2]
    head, _, signature = token.rpartition(".")
    for forged in ("made-up", f"{head}.{signature[::-1]}", f"{head[:-2]}AA.{signature}", f"{head}.", "%00"):
        assert get(server, f"rift/picture/{forged}")[0] == 404, forged
    assert get(server, f"rift/photo/{token}")[0] in (404, 410), "a token of one kind opens nothing of another"
    assert get(server, f"rift/document/{token}/report.html")[0] in (404, 410)


def test_the_labs_folder_cannot_be_read(page, server):
    upload(page, "private.zip", zipped(kinds(20)))
    root = server.root.resolve()
    stored = next(root.glob("data/*/manifest.json"))
    for path in (root / "secret", stored, root / "example" / "placed", root):
        for name in (str(path), urllib.parse.quote(str(path), safe=""), f"{server.uploads.resolve()}/../lab/{path.name}"):
            status, body = get(server, f"gradio_api/file={name}")
            assert status in (403, 404), f"{name}: {status}"
            assert (root / "secret").read_bytes() not in body


def test_no_copy_of_an_upload_stays_in_gradios_cache(page, server):
    data = zipped(kinds(21))
    upload(page, "cached.zip", data)
    drop(page, "upload", "broken.zip", b"not a zip at all")
    expect(page.locator("#data-problem [role=alert]")).to_be_visible()
    left = [path for path in server.uploads.rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix == ".zip" or path.read_bytes() in (data, b"not a zip at all")]


def test_four_endpoints_are_public_and_no_more(server):
    described = json.loads(get(server, "gradio_api/info")[1])
    assert set(described["named_endpoints"]) == {"/start", "/status", "/stop", "/result"}
    assert described["unnamed_endpoints"] == {}
    status, body = get(server, "config")
    handlers = json.loads(body)["dependencies"]
    public = {one["api_name"] for one in handlers if one["api_visibility"] != "private"}
    assert status == 200 and len(handlers) > 20 and public == {"start", "status", "stop", "result"}
    assert str(server.root).encode() not in body, "no path of this machine"
    for path in ("docs", "redoc", "openapi.json", "monitoring", "gradio_api/openapi.json"):
        status, body = get(server, path)
        assert status >= 400 or b"/gradio_api/run" not in body, path


def test_report_and_numbers_can_be_taken_away(page, server):
    example = Lab(server.root / "example")
    (name,) = service.comparisons(example)
    tab(page, "Compare")
    got = {}
    for link in ("Report", "All numbers"):
        with page.expect_download() as download:
            page.get_by_role("link", name=link).click()
        got[download.value.suggested_filename] = download.value.path().read_text()
    assert json.loads(got["comparison.json"]) == service.result(example, name)
    assert "phantoms-blood-smear" in got["report.html"] and str(server.root) not in got["report.html"]
    assert got["report.html"].rstrip().endswith("</html>")


def test_nothing_is_missed_where_every_other_host_is_blocked(server, visit, chromium):
    """Fonts, scripts and styles are the app's own: the page is whole on a machine without a network."""
    context, blocked = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-US"), []
    context.set_default_timeout(60_000)

    def guard(route) -> None:
        if route.request.url.startswith(f"{server.url}/"):
            route.continue_()
        else:
            blocked.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    page = visit(server, context=context)
    for name in ("Train", "Watch", "Compare", "Learn"):
        tab(page, name)
    expect(page.get_by_role("heading", name="Break it")).to_be_visible()
    assert not [address for address in blocked if not address.startswith(("data:", "blob:"))]
    context.close()
