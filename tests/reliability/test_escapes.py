"""X1 to X9: hostile text as the name of anything, on every page: no script runs, no link does, and nothing is fetched elsewhere.

The example that the app opens with is rewritten, so that every name in it that could be a person's is a payload: it has every
diagnostic measured, so nothing has to be trained for it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from playwright.sync_api import expect

from rift import bundle, catalog, example, figures, naming, report, service, sharing, visitors
from rift.errors import DataError
from rift.runs import Lab
from rift.ui import widgets
from rift.ui.diagnostic import title
from tests.browser.actions import drop, kinds, tab, zipped
from tests.browser.server import Server

ALIEN = "evil.example"
PAYLOADS = {
    "X1": "</script><script>alert(1)</script>",
    "X2": "<img src=x onerror=alert(2)>",
    "X3": "<svg/onload=alert(3)>",
    "X4": "[go](javascript:alert(4))",
    "X5": '<a href="javascript:alert(5)">go</a>',
    "X6": "${alert(6)} {{7*7}} ${7*7} #{7*7}",
    "X7": f"'\"><iframe src=//{ALIEN}/x></iframe>",
    "X8": "\u202egnp.exe\u202c <b onmouseover=alert(8)>bold</b>",
    "X9": f"![x](http://{ALIEN}/p.png) <http://{ALIEN}/> &lt;img src=x onerror=alert(9)&gt;",
}
WORDS = {  # what the example calls things, and what a stranger would
    "round_red_cells": PAYLOADS["X1"],
    "sickle_cells": PAYLOADS["X2"],
    "target_cells": PAYLOADS["X5"],
    "white_cell_round_nucleus": PAYLOADS["X7"],
    "white_cell_segmented_nucleus": PAYLOADS["X6"],
    "phantoms-blood-smear": PAYLOADS["X3"] + PAYLOADS["X9"],
}
WORD = re.compile("|".join(sorted(map(re.escape, WORDS), key=len, reverse=True)))


def poisoned(value: Any) -> Any:
    """The same document with every such word replaced, in keys too."""
    if isinstance(value, dict):
        return {poisoned(key): poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    return WORD.sub(lambda found: WORDS[found[0]], value) if isinstance(value, str) else value


def poison(root: Path) -> Lab:
    """Place the example and rewrite it; remarks of the upload and reasons become payloads too."""
    lab = example.place(root)
    assert lab is not None
    for path in sorted(root.rglob("*")):
        if path.suffix == ".json":
            document = poisoned(json.loads(path.read_bytes()))
            if path.name in ("manifest.json", "comparison.json"):
                about = document["report"] if path.name == "manifest.json" else document["data"]
                file = next(iter(document.get("ids") or [PAYLOADS["X4"]]))
                remark = {"file": file, "code": "data.image", "message": " ".join(PAYLOADS.values())}
                for kind in ("changed", "skipped", "warnings"):
                    about[kind] = [*about[kind], remark]
            path.write_text(json.dumps(document))
        elif path.suffix == ".jsonl":
            lines = [json.dumps(poisoned(json.loads(line))) for line in path.read_text().splitlines() if line]
            path.write_text("".join(f"{line}\n" for line in lines))
        elif path.suffix == ".csv":
            text = io.StringIO(newline="")
            csv.writer(text).writerows(poisoned(list(csv.reader(io.StringIO(path.read_text(), newline="")))))
            path.write_text(text.getvalue())
    (name,) = service.comparisons(lab)
    naming.rename(lab, name, PAYLOADS["X2"] + PAYLOADS["X4"])
    return lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    service.forget()
    return poison(tmp_path_factory.mktemp("poisoned") / "lab")


class Reader(HTMLParser):
    """Collects what could run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.scripts += tag == "script" and given.get("type") != "application/json"
        self.found += [f"<{tag}>"] if tag in ("iframe", "object", "embed", "base", "link", "form") else []
        for name, value in given.items():
            runs = name.startswith("on") or value.strip().lower().startswith(("javascript:", "vbscript:", "data:text"))
            fetches = name in ("src", "href", "action", "srcset") and re.match(r"\s*(?:https?:)?//", value)
            self.found += [f"<{tag} {name}={value[:60]}>"] if runs or fetches else []


def read(text: str) -> Reader:
    one = Reader()
    one.feed(text)
    one.close()
    return one


def test_the_reader_sees_every_payload_that_is_not_escaped():
    for name in ("X1", "X2", "X3", "X5", "X7", "X8"):
        one = read(f"<p>{PAYLOADS[name]}</p>")
        assert one.found or one.scripts, name


@pytest.mark.parametrize("pictures", [False, True], ids=["bare", "with pictures"])
def test_report_and_shared_page_are_text(lab, pictures):
    (name,) = service.comparisons(lab)
    shared = sharing.page(lab, {"lab": lab}, sharing.find(lab, sharing.create(lab, "lab", name, pictures=pictures)))
    for path in (shared, service.write_report(lab, name)):
        text = path.read_text()
        found = read(text)
        assert not found.found and found.scripts == 2, "the library and our own"
        assert str(Markup.escape(PAYLOADS["X2"])) in text and "onerror" in text, "they are on the page as text"
        assert not re.search(r"(?<!\d)49(?!\d)", re.sub(r"<script.*?</script>|[\d.,]*\d[.,]\d+", "", text, flags=re.S)[:3000])


def test_no_figure_carries_markup(lab):
    """Plotly takes some tags and links of a text for markup, so a name must come without any."""
    (name,) = service.comparisons(lab)
    whole = ""
    for section in report.sections(service.measures(lab, name)):
        loose = json.dumps(json.loads(section["figure"].to_json()), ensure_ascii=False)
        whole += loose
        for sign in ("<img", "<svg", "<script", "<a ", "<iframe", "</script"):
            assert sign not in loose, f"{section['name']} holds {sign}"
    assert whole.count("&lt;img") > 5, "the names are in them"


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_sink_of_the_page_makes_text_of_it(name):
    payload = PAYLOADS[name]
    shown = [
        widgets.html("<p title='{a}'>{a}</p>", a=payload),
        widgets.join('<i alt="{a}">{a}</i>', [{"a": payload}]),
        widgets.problem(DataError("data.label", payload)),
    ]
    for one in shown:
        assert not read(one).found and not read(one).scripts
    assert "<" not in figures.text(payload) and "\u202e" not in figures.text(payload)

    def failing() -> None:
        raise DataError("data.label", payload)

    with pytest.raises(Exception) as caught:
        widgets.told(failing)()
    assert not read(str(caught.value.message)).found and not read(str(caught.value.message)).scripts


def test_a_bundle_of_a_stranger_is_shown_as_text_too(lab, tmp_path):
    (name,) = service.comparisons(lab)
    made = bundle.write(lab, name, tmp_path / "b.zip", pictures=True)
    home, there = bundle.open_(Lab(tmp_path / "other"), made)
    text = service.write_report(visitors.Labs(Lab(tmp_path / "other"))[home], there).read_text()
    assert not read(text).found and read(text).scripts == 2


RAN = """() => [
  ...[...document.querySelectorAll('a')].map(one => one.href).filter(one => /^(javascript|data|vbscript):/i.test(one)),
  ...[...document.querySelectorAll('a, img, iframe, object, embed')].map(one => one.outerHTML)
    .filter(one => /evil\\.example/.test(one.match(/(?:src|href|data)=("[^"]*"|\\S+)/)?.[0] ?? '')),
  ...[...document.querySelectorAll('*')].filter(one => one.getAttributeNames().some(name => name.startsWith('on')))
    .map(one => one.outerHTML.slice(0, 90)).filter(one => /alert/.test(one)),
  ...[...document.querySelectorAll('iframe, object, embed')].map(one => one.outerHTML.slice(0, 90)),
]"""


def harmless(page) -> None:
    assert page.evaluate(RAN) == []
    assert page.get_by_text("49 49").count() == 0, "no template was computed"
    assert not page.watch.unexpected, page.watch.unexpected


@pytest.fixture(scope="module")
def hostile_server(chromium, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    poison(folder / "lab" / "example")
    one = Server(folder)
    yield one
    one.close()


@pytest.mark.browser
@pytest.mark.slow
def test_every_tab_shows_hostile_names_as_text(hostile_server, visit: Callable, chromium):
    page = visit(hostile_server)
    expect(page.locator("#data-summary")).to_contain_text(PAYLOADS["X2"])
    expect(page.locator("#data-summary h2")).to_contain_text("alert(3)")
    harmless(page)
    for name in ("Train", "Watch"):
        tab(page, name)
        page.wait_for_timeout(800)
        harmless(page)
    tab(page, "Compare")
    expect(page.locator("#compare-heading h2")).to_contain_text(PAYLOADS["X2"])
    for name in catalog.names("diagnostics"):
        tab(page, title(name))
        if list(example.PATH.glob(f"runs/*/measures/{name}.json")):
            page.locator(f"#figure-{name} .js-plotly-plot .main-svg").first.wait_for()
            page.mouse.move(640, 500)
        harmless(page)
    for name in ("Photos",):
        tab(page, name)
        harmless(page)
    tab(page, "Keep")
    for name in ("History", "Share"):
        page.get_by_role("tab", name=name, exact=True).first.click()
        page.wait_for_timeout(500)
        harmless(page)
    page.locator("#share").click()
    link = page.locator("#link textarea, #link input")
    expect(link).to_have_value(re.compile("/rift/shared/"), timeout=120_000)
    context = chromium.new_context()
    try:
        other, problems = context.new_page(), []
        other.on("dialog", lambda one: (problems.append(one.message), one.dismiss()))
        other.on("request", lambda one: problems.append(one.url) if ALIEN in one.url else None)
        other.goto(link.input_value(), timeout=120_000)
        other.locator(".plot .main-svg").first.wait_for(state="attached", timeout=120_000)
        assert other.evaluate(RAN) == [] and not problems
    finally:
        context.close()


@pytest.mark.browser
@pytest.mark.slow
def test_what_a_visitor_types_and_drops_comes_back_as_text(hostile_server, visit: Callable):
    page = visit(hostile_server)
    safe = [PAYLOADS[name].replace("/", "_") for name in ("X2", "X5")]
    drop(page, "upload", f"{PAYLOADS['X2']}.zip", zipped(kinds(1, names=(safe[0],))))
    expect(page.locator("#data-problem [role=alert]")).to_contain_text("alert(2)")
    harmless(page)
    drop(page, "upload", f"{safe[1]}.csv", f"file,{PAYLOADS['X2']}\na.png,{PAYLOADS['X1']}\n".encode())
    expect(page.locator("#data-problem [role=alert]")).not_to_contain_text("alert(2).")
    harmless(page)
    drop(page, "upload", "names.zip", zipped(kinds(2, names=tuple(safe), prefix=PAYLOADS["X6"].replace("/", ""))))
    expect(page.locator("#data-summary h2")).to_have_text("names")
    expect(page.locator("#data-summary")).to_contain_text("onerror=alert(2)")
    harmless(page)
    tab(page, "Compare")
    tab(page, "Zero-shot")
    words = page.locator("#words-zero_shot textarea, #words-zero_shot input")
    words.fill(", ".join(PAYLOADS.values()))
    page.locator("#ask-zero_shot").click()
    page.locator(".toast-body").first.wait_for()
    harmless(page)
    words.fill(f"cat, dog, {PAYLOADS['X2']}")
    page.locator("#ask-zero_shot").click()
    expect(page.locator("#answer-zero_shot")).to_contain_text(PAYLOADS["X2"])
    harmless(page)
    page.goto(f"{hostile_server.url}/?run={PAYLOADS['X2']}&__theme=light&view={PAYLOADS['X4']}")
    page.locator("#status .state").wait_for()
    harmless(page)
