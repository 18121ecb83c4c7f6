"""A shared link opens one page: numbers and plots; pictures and names of files only where ticked; nothing once revoked."""

from __future__ import annotations

import re
import shutil

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from rift import dataset, disk, example, service, sharing, visitors
from rift.errors import RunError
from rift.runs import Lab, write_json
from rift.ui.files import Files


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> tuple[Lab, str]:
    root = tmp_path_factory.mktemp("sharing") / "lab"
    example.place(root)
    (root / "placed").unlink()
    lab = Lab(root)
    return lab, service.comparisons(lab)[0]


@pytest.fixture(scope="module")
def client(lab):
    with TestClient(Starlette(routes=Files(visitors.Labs(lab[0]), lab[0]).routes())) as client:
        yield client


def ids(lab: Lab, name: str) -> list[str]:
    order, _ = service.order_of(lab, name)
    return [str(id) for data in (order.data, order.natural) for id in dataset.load(lab.data / data).ids]


def test_without_the_tick_there_are_numbers_and_plots_and_no_picture_and_no_file_name(lab, client):
    lab, name = lab
    token = sharing.create(lab, "lab", name, pictures=False)
    answer = client.get(f"/rift/shared/{token}")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert "sandbox" in answer.headers["content-security-policy"] and answer.headers["x-robots-tag"] == "noindex"
    page = answer.text
    assert "<h1>phantoms-blood-smear" in page and page.count('class="plot"') >= 10 and "Balanced accuracy" in page
    assert "<img" not in page and not re.search(r"data:image/(?!svg)[a-z]+;base64,/9j", page)
    assert not [one for one in ids(lab, name) if one in page], "no name of a file"
    assert str(lab.root) not in page and token not in page


def test_what_was_said_of_single_files_is_not_shared(lab, tmp_path):
    """Neither in the door's remarks, which name files that are in no set, nor in what a diagnostic measured."""
    shutil.copytree(lab[0].root, tmp_path / "lab")
    other, name = Lab(tmp_path / "lab"), lab[1]
    path = other.comparisons / name / "comparison.json"
    document, left_out, kept = disk.unsealed(path.read_bytes()), "ward/Jane Doe.png", ids(other, name)[0]
    document["data"]["skipped"] = [{"file": left_out, "code": "data.image", "message": f"{left_out} is damaged."}]
    write_json(path, document)
    path = next(service.runs(service.arms(other, name))[0].path.glob("measures/accuracy.json"))
    document = disk.unsealed(path.read_bytes())
    next(iter(document["runs"].values()))["worst"] = kept
    write_json(path, document)
    labs = visitors.Labs(other)
    for pictures in (True, False):
        share = sharing.find(other, sharing.create(other, "lab", name, pictures=pictures))
        page = sharing.page(other, labs, share).read_text()
        assert (left_out in page, kept in page) == (pictures, pictures)


def test_with_the_tick_the_pictures_are_there(lab, client):
    lab, name = lab
    token = sharing.create(lab, "lab", name, pictures=True)
    page = client.get(f"/rift/shared/{token}").text
    assert page.count("<img") > 12 and 'id="pictures"' in page and 'id="photos"' in page


def test_the_token_is_128_bits_and_is_not_kept(lab):
    lab, name = lab
    tokens = {sharing.create(lab, "lab", name, pictures=False) for _ in range(3)}
    assert len(tokens) == 3 and all(re.fullmatch("[A-Za-z0-9_-]{22}", token) for token in tokens)
    kept = b"".join(path.read_bytes() + path.name.encode() for path in (lab.root / "shares").glob("*.json"))
    assert not [token for token in tokens if token.encode() in kept]
    for token in tokens:
        assert sharing.find(lab, token).comparison == name


def test_a_revoked_unknown_or_made_up_link_opens_nothing(lab, client):
    lab, name = lab
    token = sharing.create(lab, "lab", name, pictures=False)
    other = sharing.create(lab, "lab", name, pictures=False)
    assert client.get(f"/rift/shared/{token}").status_code == 200
    share = sharing.find(lab, token)
    sharing.revoke(lab, share.name)
    sharing.revoke(lab, share.name)
    sharing.revoke(lab, "../../secret")
    for wrong in (token, share.name, "x" * 22, "..%2f..%2fsecret", "%00", token[:-1]):
        answer = client.get(f"/rift/shared/{wrong}")
        assert answer.status_code == 404, wrong
    assert "There is nothing under this link" in client.get(f"/rift/shared/{token}").text
    assert not (lab.root / "shares" / f"{share.name}.html").exists(), "its page is gone too"
    assert client.get(f"/rift/shared/{other}").status_code == 200, "others stay"
    with pytest.raises(RunError, match="revoked"):
        sharing.find(lab, token)


def test_what_is_shared_is_listed_newest_first_and_ends_with_its_comparison(lab):
    lab, name = lab
    sharing.create(lab, "lab", name, pictures=True)
    sharing.create(lab, "example", name, pictures=False)
    (lab.root / "shares" / "broken.json").write_text("{")
    found = sharing.shares(lab)
    assert [share.created for share in found] == sorted((share.created for share in found), reverse=True)
    sharing.revoke_all(lab, "lab", name)
    assert {share.home for share in sharing.shares(lab)} == {"example"}
    with pytest.raises(RunError, match="deleted"):
        sharing.page(lab, visitors.Labs(lab), sharing.shares(lab)[0])


def test_a_page_is_drawn_once_and_again_when_more_was_measured(lab):
    lab, name = lab
    share = sharing.find(lab, sharing.create(lab, "lab", name, pictures=False))
    labs = visitors.Labs(lab)
    first = sharing.page(lab, labs, share).stat().st_mtime_ns
    assert sharing.page(lab, labs, share).stat().st_mtime_ns == first
    (next(service.runs(service.arms(lab, name))[0].path.glob("measures/*.json"))).touch()
    assert sharing.page(lab, labs, share).stat().st_mtime_ns > first


def test_a_page_of_deleted_images_is_not_shown_with_their_names(lab, tmp_path):
    shutil.copytree(lab[0].root, tmp_path / "lab")
    other, name = Lab(tmp_path / "lab"), lab[1]
    token = sharing.create(other, "lab", name, pictures=False)
    shutil.rmtree(other.data / service.order_of(other, name)[0].data)
    with TestClient(Starlette(routes=Files(visitors.Labs(other), other).routes())) as client:
        assert client.get(f"/rift/shared/{token}").status_code == 404


def test_names_are_replaced_wherever_they_stand():
    names = {"ward/0001.png": "image 1"}
    found = sharing._nameless({"ids": ["ward/0001.png"], "deep": [{"x": ("ward/0001.png", 1)}], "n": 1}, names)
    assert found == {"ids": ["image 1"], "deep": [{"x": ["image 1", 1]}], "n": 1}
