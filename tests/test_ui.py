"""The web app without a browser: text becomes harmless, controls read back, addresses are signed, every tab is built."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from itsdangerous import BadSignature
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.testclient import TestClient

from rift import api, catalog, history, images, jobs, ui, visitors
from rift.config import Choice, Training
from rift.dataset import store
from rift.errors import DataError, SettingError
from rift.review import Entry
from rift.runs import Lab
from rift.ui import history as ui_history
from rift.ui import hosted, shared, widgets
from rift.ui.files import Files
from rift.ui.state import duration
from rift.ui.tabs import watch
from tests.spaces_stand_in import lent_gpus  # noqa: F401

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module", autouse=True)
def event_loops() -> Iterator[None]:
    """Gradio makes two event loops for each page and forgets them; here they are closed, since a leak is an error."""
    made, make = [], asyncio.new_event_loop

    def remembered() -> asyncio.AbstractEventLoop:
        made.append(make())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", remembered)
        yield
    asyncio.set_event_loop(None)
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("ui") / "lab")


@pytest.fixture(scope="module")
def page(lab):
    return ui.build(lab)


def test_a_value_is_escaped_and_markup_is_not():
    assert widgets.html("<p>{a}{b}</p>", a=HOSTILE, b=Markup("<b>x</b>")) == ("<p>&lt;img src=x onerror=alert(1)&gt;<b>x</b></p>")
    assert widgets.join("<i>{a}</i>", [{"a": "&"}, {"a": '"{b}'}]) == "<i>&amp;</i><i>&#34;{b}</i>"
    shown = widgets.problem(DataError("data.label", f"No {HOSTILE}."))
    assert "<img" not in shown and "<code>data.label</code>" in shown and 'role="alert"' in shown


def test_an_error_becomes_a_message_that_keeps_its_code():
    def handler(text: str) -> None:
        raise SettingError("setting.range", f"{text} is not allowed")

    with pytest.raises(gr.Error) as caught:
        widgets.told(handler)(HOSTILE)
    assert "&lt;img src=x" in caught.value.message and "<img" not in caught.value.message
    assert "setting.range" in caught.value.message
    assert widgets.told(len)("abc") == 3
    with pytest.raises(ZeroDivisionError):
        widgets.told(lambda: 1 / 0)()


@pytest.mark.parametrize("menu", sorted(set(catalog.DOORS) - {"tasks", "diagnostics"}))
def test_a_menu_reads_back_the_default_of_each_choice(menu):
    for name in catalog.names(menu):
        with gr.Blocks():
            one = widgets.Menu(menu, name, menu)
        values = [component.value for component in one.inputs]
        assert values[0] == name and len(values) == 1 + sum(
            len(catalog.settings(menu, each).model_fields) for each in catalog.names(menu)
        )
        if any(field.is_required() for field in catalog.settings(menu, name).model_fields.values()):
            with pytest.raises(SettingError, match="required"):
                one.read(values)
        else:
            assert one.read(values) == catalog.check(menu, Choice(name=name))


def test_a_form_reads_back_its_defaults_and_leaves_out_what_is_empty():
    with gr.Blocks():
        form = widgets.Form(Training)
    values = [component.value for component in form.inputs]
    assert api.settings_of(form.read(values)) == Training()
    assert api.settings_of(form.read([None] * len(values))) == Training()
    assert api.settings_of(form.read(form.show({"epochs": 3}))) == Training(epochs=3)
    with pytest.raises(SettingError, match="epochs = 0 is not allowed"):
        api.settings_of(form.read(form.show({"epochs": 0})))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (8.4, "8 s"), (12, "10 s"), (44, "45 s"), (89, "90 s"), (90, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")],
)
def test_a_duration_is_said_as_a_person_says_it(seconds, words):
    assert duration(seconds) == words


def test_every_tab_is_there_in_order_with_a_figure_for_each_diagnostic(page):
    blocks, _ = page
    titles = [module.TITLE for _, module in ui.pages()]
    assert titles == ["1 Data", "2 Train", "3 Watch", "4 Compare", "5 Keep", "6 Learn"]
    assert [module.ORDER for _, module in ui.pages()] == sorted(module.ORDER for _, module in ui.pages())
    marks = {block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    assert {f"tab-{name}" for name, _ in ui.pages()} <= marks
    for name in catalog.names("diagnostics"):
        assert {f"tab-{name}", f"figure-{name}"} <= marks
        asks = hasattr(catalog.module("diagnostics", name), "look")
        assert ({f"ask-{name}", f"photo-{name}"} <= marks) == asks
    public = [one["api_name"] for one in blocks.config["dependencies"] if one["api_visibility"] != "private"]
    assert public == ["start", "status", "stop", "result"], "all else is the page's own"


def test_an_empty_lab_gets_a_page_too(lab, monkeypatch):
    monkeypatch.setattr(ui.example, "place", lambda root: None)
    blocks, files = ui.build(lab)
    assert list(files.labs) == ["lab"] and blocks.blocks


@pytest.fixture(scope="module")
def served(lab):
    """Addresses of a lab with one set, and a client that asks for them."""
    draw = np.random.default_rng(0)
    entries = [Entry(f"{name}/{i}.png", name, draw.integers(0, 255, (9, 16, 3), np.uint8)) for name in "ab" for i in range(4)]
    data = store(entries, lab.data, name="two").digest
    files = Files(visitors.Labs(lab), lab)
    with TestClient(Starlette(routes=files.routes())) as client:
        yield files, data, client


def test_a_picture_comes_back_under_its_token(served):
    files, data, client = served
    answer = client.get(files.picture("lab", data, np.int64(3), 24))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    assert images.read(answer.content).pixels.shape == (24, 24, 3)
    assert answer.headers["x-content-type-options"] == "nosniff" and "private" in answer.headers["cache-control"]
    huge = client.get(files.picture("lab", data, 0, 100_000))
    assert images.read(huge.content).pixels.shape == (512, 512, 3), "nobody asks for more than is shown"


def test_a_token_that_was_not_given_out_opens_nothing(served, lab, tmp_path):
    files, data, client = served
    address = files.picture("lab", data, 0)
    head, _, signature = address.rpartition(".")
    for forged in (f"{head}.{signature[::-1]}", f"{head}x.{signature}", head, "rift/picture/", "rift/picture/..%2fsecret"):
        assert client.get(forged).status_code == 404, forged
    foreign = Files(visitors.Labs(lab), Lab(tmp_path / "other")).picture("lab", data, 0)
    assert client.get(foreign).status_code == 404, "another lab has another secret"
    assert client.get(address.replace("picture", "photo")).status_code == 404, "of another kind"
    assert Files(visitors.Labs(lab), lab).picture("lab", data, 0) == address, "a restart keeps the addresses"
    with pytest.raises(BadSignature):
        files._sign.loads(address.rpartition("/")[2])


def test_the_numbers_of_a_comparison_that_was_stopped_half_way_can_be_taken_away(served, monkeypatch):
    """They are not kept as a file, since they would not be the last ones."""
    files, _, client = served
    monkeypatch.setattr(ui.files.service, "result", lambda lab, name: {"arms": ["none"]})
    answer = client.get(files.document("lab", "0" * 16, "comparison.json"))
    assert answer.status_code == 200 and answer.json() == {"arms": ["none"]}
    assert 'filename="comparison.json"' in answer.headers["content-disposition"]


def test_what_is_gone_is_told_as_gone(served):
    files, data, client = served
    for address in (
        files.picture("lab", data, 99),
        files.picture("lab", "0" * 64, 0),
        files.picture("example", data, 0),
        files.photo("lab", "0" * 32),
        files.document("lab", "0" * 16, "report.html"),
    ):
        answer = client.get(address)
        assert answer.status_code == 410 and str(files.labs["lab"].root) not in answer.text


def test_the_secret_is_readable_by_its_owner_only(served, lab):
    assert (lab.root / "secret").stat().st_mode & 0o077 == 0


def test_a_set_of_findings_is_summed_up_finding_by_finding(served, lab):
    from types import SimpleNamespace

    from rift.ui.tabs import data

    draw, marks = np.random.default_rng(1), [("mass",), (), ("mass", HOSTILE), (HOSTILE,)] * 6
    entries = [Entry(f"{i:02d}.png", label, draw.integers(0, 255, (9, 9, 3), np.uint8)) for i, label in enumerate(marks)]
    digest = store(entries, lab.data, name="chest").digest
    page = data.summary(SimpleNamespace(labs={"lab": lab}, files=served[0]), "lab", digest)
    assert "24 images in 2 findings, of which an image may show several or none" in page and "<img src=x" not in page
    assert ">mass<small>12 images</small>" in page and page.count('<img loading="lazy"') == 2 * data.THUMBNAILS


def test_the_table_of_epochs_is_of_what_the_task_is_judged_by():
    event = {"event": "epoch", "epoch": 1, "epochs": 2, "validation_accuracy": 0.9, "validation_average_precision": 0.4}
    shown = watch._table({"none": [event]}, HOSTILE, "validation_average_precision")
    assert "<td>0.400</td>" in shown and "<img" not in shown and "0.900" not in shown
    assert "<td>–</td>" in watch._table({"none": [event]}, "Error", "validation_reconstruction_error")


def test_where_gpus_are_lent_the_page_adds_an_event_and_nothing_elsewhere(spaces, monkeypatch):
    class App:
        device, memory = "auto", None

    def built() -> tuple[set[str], str, int]:
        with gr.Blocks() as blocks:
            app = App()
            app.memory = gr.State({})
            hosted.build(app)
        marks = {block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
        return marks, app.device, len(blocks.fns)

    assert built() == ({"where"}, jobs.IN_EVENT, 1)
    monkeypatch.setenv("SPACES_ZERO_GPU", "")
    assert built() == (set(), "auto", 0)
    monkeypatch.setenv("SPACE_ID", "someone/rift-lab")
    assert "duplicate" in built()[0]


def test_no_two_listeners_of_one_change_wait_for_each_other(page):
    """In Gradio 6.31 the end of each would ask the other again, for ever; changes of a State are told to each by itself."""
    waiting = Counter(
        target
        for one in page[0].fns.values()
        if one.trigger_mode == "always_last" and one.fn is not None
        for target in one.targets
        if not isinstance(page[0].blocks[target[0]], gr.State)
    )
    assert waiting and [target for target, many in waiting.items() if many > 1] == []


def test_what_a_training_costs_comes_of_one_event_so_that_no_older_answer_comes_last(page):
    blocks, _ = page
    (cost,) = (one["id"] for one in blocks.config["components"] if one["props"].get("elem_id") == "cost")
    (event,) = (one for one in blocks.config["dependencies"] if cost in one["outputs"])
    assert event["trigger_mode"] == "always_last" and len(event["targets"]) > 10


def test_what_was_drawn_goes_with_the_data(tmp_path, monkeypatch):
    forgot: list[str] = []
    monkeypatch.setattr(shared.Made, "forget", lambda made: forgot.append("made"))
    blocks, _ = ui.build(Lab(tmp_path / "lab"))
    button = next(id for id, one in blocks.blocks.items() if one.elem_id == "sure-erase")
    (erase,) = [one.fn for one in blocks.fns.values() if (button, "click") in one.targets]
    erase()
    assert forgot == ["made"]


def test_what_was_drawn_of_a_comparison_goes_with_it(lab, monkeypatch):
    gone: list[str] = []
    monkeypatch.setattr(history, "delete", lambda lab, name: gone.append(name))
    app = SimpleNamespace(lab=lab, made=SimpleNamespace(forget=lambda: gone.append("made")))
    page = SimpleNamespace(app=app, _place=lambda key: ("lab", key), _fresh=lambda memory: "rows", _quiet=list)
    memory, *_ = ui_history.History._delete(page, "0123456789abcdef", {"comparison": "0123456789abcdef"})
    assert gone == ["0123456789abcdef", "made"] and memory["comparison"] == ""
