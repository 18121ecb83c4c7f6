"""The four public endpoints: the words of the command line become an order, and a client does the whole job through them."""

from __future__ import annotations

import inspect
import json
import shutil
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from gradio_client import Client, handle_file

from rift import catalog, cli, jobs, remote, service
from rift.config import Choice, Training
from rift.dataset import store
from rift.errors import UserError
from rift.review import Entry
from rift.runs import Lab
from tests.browser.server import Server
from tests.uploads import picture, zipped


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("remote") / "lab")


@pytest.fixture(scope="module")
def images(lab):
    draw = np.random.default_rng(0)
    entries = [Entry(f"{kind}/{i}.png", kind, draw.integers(0, 255, (16, 16, 3), np.uint8)) for kind in "ab" for i in range(6)]
    return store(entries, lab.data, name="two kinds")


def test_settings_are_the_options_of_the_command_line(lab, images):
    asked = {
        "backbone": "embedded:init=random",
        "method": "lora:rank=2",
        "regularizer": ["rift:map=procrustes", "rsc"],
        "strength": 3,
        "epochs": 2,
        "seeds": 3,
        "set": {"batch_size": 4},
        "natural": images.digest,
    }
    order, source = remote.read(lab, images.digest, asked)
    assert source == "" and order.data == order.natural == images.digest
    assert order.backbone == catalog.check("backbones", Choice(name="embedded", options={"init": "random"}))
    assert order.methods == (catalog.check("methods", Choice(name="lora", options={"rank": 2})),)
    assert [one.name for one in order.regularizers] == ["rift", "rsc"] and order.regularizers[0].options["map"] == "procrustes"
    assert (order.strengths, order.seeds, order.training) == ((3.0,), 3, Training(epochs=2, batch_size=4))
    listed = {**asked, "set": ["batch_size = 4"], "leave-out-small": True}
    assert remote.read(lab, images.digest, listed)[0] == order, "as it is repeated there, and with its dashes"
    arms = remote.read(lab, images.digest, {"arm": ["full+none", "full+rift@1", "lora+rsc@2"]})[0]
    assert [arm.method.name for arm in arms.arms] == ["full", "full", "lora"]
    names = {option.replace("-", "_") for option in remote.Asked.model_fields}
    decided = {"data", "out", "device", "devices", "lab", "json"}
    options = {name.strip("_") for name in inspect.signature(cli.compare).parameters} - decided
    assert names == options, "what the server decides is left out, all else is there"


def test_an_order_without_settings_is_the_default_one(lab, images):
    order, _ = remote.read(lab, images.digest, None)
    assert order.regularizers == (catalog.check("regularizers", Choice(name="rift")),) and order.training == Training()
    assert order.natural == catalog.door("natural", "bundled")(lab.data).digest


@pytest.mark.parametrize(
    ("data", "settings", "code", "says"),
    [
        (
            "sample:phantoms",
            {"epoch": 3},
            "setting.unknown",
            "settings has no setting 'epoch'; its settings are backbone, method",
        ),
        ("sample:phantoms", {"device": "cuda"}, "setting.unknown", "no setting 'device'"),
        ("sample:phantoms", "epochs=3", "setting.unknown", "give an object of options"),
        ("sample:phantoms", {"epochs": 0}, "setting.range", "epochs = 0 is not allowed"),
        ("sample:phantoms", {"strength": -1}, "setting.range", "strength"),
        ("sample:phantoms", {"seeds": 1000}, "setting.range", "seeds = 1000 is not allowed"),
        ("sample:phantoms", {"method": "nonsense"}, "setting.unknown", "nonsense"),
        ("sample:nonsense", {}, "setting.unknown", "nonsense"),
        ("/etc", {}, "data.missing", "give sample:NAME"),
        (None, {}, "data.missing", "give sample:NAME"),
        ({"path": "/etc/passwd"}, {}, "data.missing", "give sample:NAME"),
        ("DIGEST", {"natural": "/etc"}, "setting.unknown", "etc"),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing_queued(lab, images, data, settings, code, says):
    with pytest.raises(UserError) as caught:
        remote.start(lab, images.digest if data == "DIGEST" else data, settings)
    assert caught.value.code == code and says in caught.value.sentence
    assert lab.runs() == []


def test_a_start_an_end_and_what_is_missing(lab, images, monkeypatch):
    monkeypatch.setattr(jobs, "ensure_worker", lambda lab, device="auto": None)
    name = remote.start(lab, images.digest, {"epochs": 1, "natural": images.digest})
    assert name == remote.start(lab, images.digest, {"epochs": 1, "natural": images.digest}), "the same order is the same one"
    assert set(remote.status(lab, name)) == {"state", "progress", "seconds_left", "message"}
    remote.stop(lab, name)
    assert remote.status(lab, name)["state"] == "stopped"
    for ask in (remote.status, remote.stop, remote.result):
        with pytest.raises(UserError, match="no comparison") as caught:
            ask(lab, "../../etc")
        assert caught.value.code == "run.missing"
    for run in lab.runs():
        shutil.rmtree(run.path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("app"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def client(server):
    one = Client(server.url, verbose=False, download_files=False)
    yield one
    one.close()


def test_exactly_four_endpoints_are_listed_and_described(client, server):
    listed = client.view_api(return_format="dict")
    assert set(listed["named_endpoints"]) == {"/start", "/status", "/stop", "/result"} and not listed["unnamed_endpoints"]
    for one in listed["named_endpoints"].values():
        assert one.get("description"), "said what it does"
    assert [one["parameter_name"] for one in listed["named_endpoints"]["/start"]["parameters"]] == ["data", "settings", "lab"]
    for hidden in ("/look", "/fresh", "/begin"):
        with pytest.raises(ValueError, match="Cannot find a function"):
            client.predict(api_name=hidden)


def test_an_error_is_a_sentence_with_its_code(client, server):
    for call, says in (
        (("sample:phantoms", {"epoch": 3}, "/start"), r"error\[setting.unknown\]: settings has no setting 'epoch'"),
        (("/etc/passwd", {}, "/start"), r"error\[data.missing\]"),
        (("0" * 16, "/status"), r"error\[run.missing\]: There is no comparison"),
    ):
        *values, name = call
        with pytest.raises(Exception, match=says) as caught:
            client.predict(*values, api_name=name)
        assert "Traceback" not in str(caught.value) and str(server.root) not in str(caught.value)
    assert "Traceback" not in server.log.read_text()
    forged = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert "root:" not in _post(server, "start", [forged, {}])
    assert server.lab.runs() == []


def _post(server: Server, name: str, data: list) -> str:
    """Ask as curl would, without the client's own checks."""
    request = urllib.request.Request(
        f"{server.url}/gradio_api/call/{name}", json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            event = json.loads(answer.read())["event_id"]
        with urllib.request.urlopen(f"{server.url}/gradio_api/call/{name}/{event}") as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


@pytest.mark.slow
def test_a_client_uploads_starts_follows_stops_and_reads(client, server, tmp_path):
    files = {f"{kind}/{number}.png": picture(10 * place + number) for place, kind in enumerate("ab") for number in range(8)}
    archive = zipped(tmp_path / "kinds.zip", files)
    name = client.predict(handle_file(archive), {"epochs": 1, "set": {"batch_size": 4}}, api_name="/start")
    states, until = [], time.monotonic() + 240
    while time.monotonic() < until:
        states.append(client.predict(name, api_name="/status"))
        if states[-1]["state"] in ("done", "failed", "lost", "stopped"):
            break
        time.sleep(0.3)
    assert states[-1] == {"state": "done", "progress": 1.0, "seconds_left": None, "message": "All 2 runs are finished."}
    told = [round(one["progress"], 9) for one in states]
    assert told == sorted(told), "it never goes back"
    assert {one["state"] for one in states} & {"preparing", "training", "evaluating"}
    assert client.predict(name, api_name="/result") == service.result(server.lab, name)
    assert not list(server.uploads.rglob("*.zip")), "the uploaded file is gone once it was read"

    digest = service.order_of(server.lab, name)[0].data
    second = client.predict(digest, {"epochs": 500}, api_name="/start")
    while client.predict(second, api_name="/status")["state"] != "training":
        time.sleep(0.2)
    client.predict(second, api_name="/stop")
    while (state := client.predict(second, api_name="/status")["state"]) == "training":
        time.sleep(0.2)  # a busy machine takes its time to end a process
    assert state == "stopped"
    with pytest.raises(Exception, match=r"error\[run.missing\]: No run of this comparison is finished yet"):
        client.predict(second, api_name="/result")
