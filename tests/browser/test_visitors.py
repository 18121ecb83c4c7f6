"""A public server with two browsers: what is one visitor's is neither seen nor touched by the other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from gradio_client import Client
from playwright.sync_api import expect

from rift import example, service, visitors
from rift.runs import VISITORS, Lab
from tests.browser.actions import drop, kinds, reload, state, tab, zipped
from tests.browser.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # a server of its own; tests/reliability/test_visitors.py is quick


@pytest.fixture(scope="module")
def public(chromium, tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("public"), "--public")
    yield server
    server.close()


def key(page) -> str:
    return page.evaluate("localStorage.getItem('rift-visitor')")


def finished(server: Server, page) -> tuple[Lab, str]:
    """Put a finished comparison into the lab of a page's visitor."""
    lab = visitors.lab(server.root, key(page))
    for kind in ("comparisons", "runs", "data"):
        shutil.copytree(example.PATH / kind, lab.root / kind, dirs_exist_ok=True)
    return lab, service.comparisons(lab)[0]


def rows(page):
    tab(page, "Keep")
    page.get_by_role("tab", name="History", exact=True).first.click()
    expect(page.locator("#history tbody tr").first).to_be_visible()
    return page.locator("#history tbody tr:not([hidden])")


def test_pictures_come_only_after_consent_and_only_to_their_owner(public, visit):
    page, other = visit(public), visit(public)
    assert re.fullmatch("[0-9a-f]{32}", key(page)) and key(page) != key(other)
    expect(page.locator("#privacy")).to_contain_text("deleted 24 hours after you were last here")
    pack = zipped(kinds(1, each=8))
    drop(page, "upload", "mine.zip", pack)
    expect(page.locator("#data-problem")).to_contain_text("Before any picture of yours comes here")
    page.get_by_label("I may use the pictures").check()
    drop(page, "upload", "mine.zip", pack)
    expect(page.locator("#data-summary h2")).to_have_text("mine")
    expect(page.locator("#data-summary img").first).to_be_visible()
    reload(other)
    expect(other.locator("#data-summary h2")).to_have_text("phantoms-blood-smear")
    assert not other.get_by_label("I may use the pictures").is_checked()
    mine, theirs = (visitors.lab(public.root, key(one)) for one in (page, other))
    assert len(list(mine.data.glob("[0-9a-f]*"))) > len(list(theirs.data.glob("[0-9a-f]*")))
    assert not list((public.root / "data").glob("[0-9a-f]*")), "nothing of a visitor lies outside their lab"
    reload(page)
    expect(page.locator("#data-summary h2")).to_have_text("mine")
    expect(page.get_by_label("I may use the pictures")).to_be_checked()


def test_a_comparison_is_listed_linked_and_shared_by_its_owner_alone(public, visit):
    page, other = visit(public), visit(public)
    lab, name = finished(public, page)
    page.goto(f"{public.url}/?run={name}")
    state(page, "Finished")
    expect(rows(page)).to_have_count(2)
    other.goto(f"{public.url}/?run={name}")
    state(other, "Example")
    expect(rows(other)).to_have_count(1)
    picture = page.request.get(f"{public.url}/" + page.locator("#photos img, #data-summary img").first.get_attribute("src"))
    assert picture.ok and lab.root.name not in page.content()
    page.get_by_role("tab", name="Share", exact=True).first.click()
    page.locator("#share").click()
    link = page.locator("#link textarea, #link input")
    expect(link).to_have_value(re.compile(rf"/rift/shared/{lab.root.name}\.[A-Za-z0-9_-]{{22}}$"), timeout=120_000)
    opened = other.request.get(link.input_value())
    assert opened.ok and "phantoms-blood-smear" in opened.text() and key(page) not in opened.text()
    for wrong in (link.input_value() + "x", link.input_value().replace(lab.root.name, "0" * 32), f"{public.url}/rift/shared/x"):
        assert other.request.get(wrong).status == 404
    other.get_by_role("tab", name="Share", exact=True).first.click()
    expect(other.locator("#shares")).to_contain_text("Nothing is shared")


def test_endpoints_need_a_key_and_open_what_is_its_owner_s(public, visit):
    page = visit(public)
    _, name = finished(public, page)
    client = Client(public.url, verbose=False)
    for wrong in ("", "0" * 32, "../x"):
        with pytest.raises(Exception, match=r"run\.missing"):
            client.predict(name, wrong, api_name="/status")
    assert client.predict(name, key(page), api_name="/status")["state"] == "done"
    assert client.predict(name, key(page), api_name="/result")["data"]["name"] == "phantoms-blood-smear"
    with pytest.raises(Exception, match="hexadecimal"):
        client.predict("sample:phantoms", {}, "", api_name="/start")
    assert not list(public.root.glob("runs/[0-9a-f]*")) and (public.root / VISITORS).exists()


def test_a_session_is_of_the_key_that_began_it(public, visit):
    page, other = visit(public), visit(public)
    finished(public, page)
    joined = []
    page.on("request", lambda request: joined.append(request.post_data_json) if "/queue/join" in request.url else None)
    reload(page)
    expect(page.locator("#data-summary img").first).to_be_visible()
    session = joined[-1]["session_hash"]
    ask = "([path, how]) => fetch(path, how).then(async one => [one.status, how.method ? await one.text() : ''])"
    stream = f"gradio_api/queue/data?session_hash={session}"
    other.watch.expect("Failed to load resource: the server responded with a status of 404")
    assert other.evaluate(ask, [stream, {}])[0] == 404
    assert other.request.get(f"{public.url}/{stream}").status == 404, "nor without any key"
    post = {"method": "POST", "headers": {"Content-Type": "application/json"}}
    body = json.dumps({**joined[-1], "event_id": "0" * 32})
    assert other.evaluate(ask, ["gradio_api/cancel", {**post, "body": body}])[0] == 404
    page.locator("#status .state").wait_for()
    before = page.locator("#status").inner_html()
    for event in {one["fn_index"]: one for one in joined}.values():
        assert other.evaluate(ask, ["gradio_api/queue/join", {**post, "body": json.dumps(event)}])[0] == 200, "Gradio takes it"
    page.wait_for_timeout(1500)
    assert page.locator("#status").inner_html() == before, "and it changes nothing for the owner"
    expect(rows(page)).to_have_count(2)


def test_deleting_one_s_data_leaves_those_of_others(public, visit):
    page, other = visit(public), visit(public)
    mine, _ = finished(public, page)
    theirs, _ = finished(public, other)
    tab(page, "Keep")
    page.get_by_role("tab", name="Your data", exact=True).first.click()
    page.locator("#erase").click()
    page.locator("#sure-erase").click()
    page.wait_for_url(re.compile("deleted"))
    state(page, "Example")
    assert service.comparisons(mine) == [] and len(service.comparisons(theirs)) == 1
