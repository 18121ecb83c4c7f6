"""A comparison as a zip: what goes in comes out the same elsewhere, and nothing that somebody else put in does any harm."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rift import bundle, dataset, example, export, history, measuring, report, sealed, service, trained, visitors, watching
from rift.config import Choice
from rift.errors import DataError, RunError
from rift.runs import Lab


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Lab, str]:
    lab = example.place(tmp_path_factory.mktemp("bundle") / "example")
    return lab, service.comparisons(lab)[0]


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> Path:
    return bundle.write(*source, tmp_path_factory.mktemp("whole") / "b.zip", pictures=True, weights=True)


@pytest.fixture(scope="module")
def bare(source, tmp_path_factory) -> Path:
    return bundle.write(*source, tmp_path_factory.mktemp("bare") / "b.zip")


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path / "lab")


def drawn(lab: Lab, name: str) -> list[str]:
    return [one["figure"].to_json() + one["sentence"] for one in report.sections(service.measures(lab, name))]


def opened(lab: Lab, path: Path) -> tuple[Lab, str]:
    home, name = bundle.open_(lab, path)
    return visitors.Labs(lab)[home], name


@pytest.mark.parametrize("kind", ["whole", "bare"])
def test_what_goes_in_comes_out_the_same(source, lab, kind, request):
    there, name = opened(lab, request.getfixturevalue(kind))
    home, first = source
    assert name == first and there.read_only and not home.read_only
    assert service.result(there, name) == service.result(home, name)
    assert service.measures(there, name) == service.measures(home, name)
    assert drawn(there, name) == drawn(home, name)
    assert watching.curves(there, name) == watching.curves(home, name)
    assert export.numbers(there, name) == export.numbers(home, name)
    assert export.predictions(there, name) == export.predictions(home, name)
    status = service.status(there, name)
    assert status.state == "done" and not list(there.root.glob("worker*")), "nothing is started there"
    row = history.entry("opened-x", there, name)
    assert row[1:] == history.entry("opened-x", home, name)[1:]


def test_pictures_and_weights_are_in_it_only_where_ticked(source, whole, bare, lab):
    home, name = source
    order, _ = service.order_of(home, name)
    names = {kind: zipfile.ZipFile(path).namelist() for kind, path in (("whole", whole), ("bare", bare))}
    assert any(one.endswith("weights.safetensors") for one in names["whole"]) and f"data/{order.data}/blobs.bin" in names["whole"]
    assert not [one for one in names["bare"] if one.endswith((".bin", ".safetensors", ".npz"))], (
        "captures of the example are pictures"
    )
    there, _ = opened(lab, bare)
    assert not dataset.load(there.data / order.data).has_pictures
    assert dataset.load(there.data / order.natural).has_pictures, "those that come with the app are this app's own"
    with pytest.raises(DataError, match="only their numbers came along"):
        dataset.load(there.data / order.data).picture(0, 32)
    for diagnostic in ("stir", "corruption", "retrieval"):
        rows = list(measuring.pictures(there, name, diagnostic, measuring.results(there, name, diagnostic)))
        assert not [cell for row in rows for cell in row["pictures"] if cell["place"][1] != order.natural]
        assert list(measuring.pictures(home, name, diagnostic, measuring.results(home, name, diagnostic)))


def test_the_whole_one_can_be_asked_about_a_photo(source, whole, lab):
    there, name = opened(lab, whole)
    ours, theirs = (trained.build(one, service.runs(service.arms(one, name))[1]).state_dict() for one in (source[0], there))
    assert all((value == theirs[key]).all() for key, value in ours.items())


def test_an_opened_one_is_a_lab_that_is_looked_at_only(bare, lab):
    home, name = bundle.open_(lab, bare)
    labs = visitors.Labs(lab, lab)
    assert list(labs) == ["lab", "example", home] and len(labs) == 3 and home in labs
    assert bundle.open_(lab, bare) == (home, name) and len(labs) == 3, "the same one again"
    with pytest.raises(RunError, match="read-only") as caught:
        measuring.start(lab, labs[home], name, Choice(name="drift"))
    assert caught.value.code == "run.read_only"
    for wrong in ("opened-../../x", "opened-", "opened-" + "0" * 16, "other"):
        assert wrong not in labs
    bundle.close(lab, "opened-../..")
    bundle.close(lab, home)
    assert list(labs) == ["lab", "example"] and lab.data.exists()


def test_the_place_where_the_images_lay_is_not_told(source, tmp_path):
    shutil.copytree(source[0].root, tmp_path / "lab")
    lab, name = Lab(tmp_path / "lab"), source[1]
    path = lab.comparisons / name / "order.json"
    stored = json.loads(path.read_bytes())
    path.write_text(json.dumps({**stored, "source": "/home/jane/patients.zip"}))
    service.forget()
    made = bundle.write(lab, name, tmp_path / "b.zip")
    with zipfile.ZipFile(made) as archive:
        assert json.loads(archive.read(f"comparisons/{name}/order.json"))["source"] == "patients.zip"


def test_an_unfinished_comparison_is_no_bundle(source, tmp_path):
    shutil.copytree(source[0].root, tmp_path / "lab")
    lab = Lab(tmp_path / "lab")
    order = service.order_of(lab, source[1])[0].model_copy(update={"seeds": 2})
    with pytest.raises(RunError, match="2 of 4 runs are finished"):
        bundle.write(lab, service.place(lab, order), tmp_path / "b.zip")
    assert not list(tmp_path.glob("b*"))


# ---- bundles that somebody made by hand


def remade(path: Path, target: Path, change: Callable[[dict[str, bytes]], None], *, honest: bool = True) -> Path:
    """Write a bundle again after a change of its files; an honest one has an index of the changed ones."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if honest and bundle.INDEX in files:
        index = json.loads(files[bundle.INDEX])
        index["files"] = {name: bundle._entry(data).model_dump() for name, data in files.items() if name != bundle.INDEX}
        files[bundle.INDEX] = json.dumps(index).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def the(files: dict[str, bytes], ending: str) -> str:
    return next(name for name in files if name.endswith(ending))


def edit(ending: str, change: Callable[[dict], object]) -> Callable[[dict[str, bytes]], None]:
    def apply(files: dict[str, bytes]) -> None:
        name = the(files, ending)
        document = json.loads(files[name])
        change(document)
        files[name] = json.dumps(document).encode()

    return apply


def put(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({name: data})


def over(ending: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({the(files, ending): data})


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def boasting() -> bytes:
    """An array whose header claims a terabyte."""
    plain = io.BytesIO()
    np.lib.format.write_array_header_1_0(plain, {"descr": "<f8", "fortran_order": False, "shape": (10**11,)})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", plain.getvalue() + b"\0" * 64)
    return out.getvalue()


RUN = "runs/6f1b3558c95c62e3"
CAPTURE = f"{RUN}/captures/stir-{'0' * 16}.npz"
PICKLE = npz(a=np.array([{"x": 1}], dtype=object))
HOSTILE = {
    "a file that is not known": (put("runs/evil.py", b"import os"), "A bundle has no file"),
    "a way out": (put("../outside.json", b"{}"), "leads outside"),
    "an absolute name": (put("/tmp/x.json", b"{}"), "leads outside"),
    "a way out within a known folder": (put(f"{RUN}/measures/../../../x.json", b"{}"), "leads outside"),
    "a hidden file": (put(f"{RUN}/.lock", b""), "has no file"),
    "a stop of another's run": (put(f"{RUN}/checkpoint/step-1.pt", b"pickle"), "has no file"),
    "no index": (lambda files: files.pop(bundle.INDEX), "no bundle of RIFT Lab"),
    "a lost file": (lambda files: files.pop(the(files, "result.json")), "is missing|not the finished ones"),
    "JSON that is none": (over("order.json", b"{"), "not what its name says"),
    "a number that is none": (over("result.json", b'{"run": NaN}'), "not what its name says"),
    "JSON without a bottom": (over("comparison.json", b"[" * 100_000), "not what its name says"),
    "another version": (edit(bundle.INDEX, lambda index: index.update(format=2)), "of another version"),
    "settings of another name": (edit("order.json", lambda one: one["order"].update(seeds=3)), "not those that its comparison"),
    "a million runs": (edit("order.json", lambda one: one["order"].update(strengths=[*range(9999)])), "more than 2000 runs"),
    "an unknown setting": (edit("order.json", lambda one: one["order"].update(evil=1)), "not what its name says"),
    "a run of another name": (edit("experiment.json", lambda one: one.update(seed=7)), "not those that the run is named by"),
    "numbers of another run": (edit("result.json", lambda one: one.update(run="0" * 16)), "another run's"),
    "words for numbers": (
        edit("drift.json", lambda one: next(iter(one["runs"].values())).update(cka_debiased="<b>")),
        "fit together|shown",
    ),
    "no differences": (edit("comparison.json", lambda one: one.pop("differences")), "not what its name says"),
    "labels beyond the classes": (
        edit("manifest.json", lambda one: one.update(labels=[99] * len(one["labels"]))),
        "not fit its classes",
    ),
    "lists of two lengths": (edit("manifest.json", lambda one: one["ids"].pop()), "differ in length"),
    "a step without a number": (
        over("events.jsonl", b'{"event": "step", "time": 1, "step": "x", "steps": 3}\n'),
        "not what its name says",
    ),
    "a map without places": (
        put(f"{RUN}/places.jsonl", b'{"labels": [0], "classes": ["a"], "share": [1, 0], "start": []}'),
        "a map has places for all",
    ),
    "weights that are none": (put(f"{RUN}/weights.safetensors", b"\x80\x04pickle"), "not what its name says"),
    "a pickle among arrays": (put(CAPTURE, PICKLE), "holds objects|allow_pickle|not what"),
    "an array of a terabyte": (put(CAPTURE, boasting()), "not as large as they say"),
    "a bomb among arrays": (put(CAPTURE, npz(a=np.zeros(400_000_000, np.uint8))), "would expand|not what its name says"),
    "predictions that are none": (over("predictions.csv", b"<html>"), "not what its name says"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused_in_one_sentence_and_leaves_nothing(kind, bare, lab, tmp_path):
    change, sentence = HOSTILE[kind]
    path = remade(bare, tmp_path / "evil.zip", change)
    with pytest.raises(DataError, match=sentence) as caught:
        bundle.open_(lab, path)
    said = caught.value.sentence
    assert said.endswith(".") and len(said) < 400 and "\n" not in said and str(tmp_path) not in said
    assert not list((lab.root / "opened").iterdir()) and not list(tmp_path.glob("*.json"))


def test_a_flipped_bit_is_noticed(bare, lab, tmp_path):
    def flip(files: dict[str, bytes]) -> None:
        name = the(files, "predictions.csv")
        data = bytearray(files[name])
        data[len(data) // 2] ^= 1
        files[name] = bytes(data)

    with pytest.raises(DataError, match="SHA-256 differs"):
        bundle.open_(lab, remade(bare, tmp_path / "b.zip", flip, honest=False))
    data = bytearray(bare.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "torn.zip").write_bytes(data)
    with pytest.raises(DataError):
        bundle.open_(lab, tmp_path / "torn.zip")
    (tmp_path / "half.zip").write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(DataError, match="zip"):
        bundle.open_(lab, tmp_path / "half.zip")


def test_any_other_zip_is_told_where_it_belongs(lab, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cat/1.png", b"x")
    with pytest.raises(DataError, match="Images go to the Data tab"):
        bundle.open_(lab, tmp_path / "images.zip")
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="no zip"):
        bundle.open_(lab, tmp_path / "x.zip")


def test_hostile_words_are_only_words(bare, lab, tmp_path):
    """Names of arms and classes are a user's text and are escaped wherever they are shown."""
    evil = "<img src=x onerror=alert(1)>"

    def change(files: dict[str, bytes]) -> None:
        name = the(files, "comparison.json")
        files[name] = files[name].replace(b'"phantoms-blood-smear"', json.dumps(evil).encode())

    there, name = opened(lab, remade(bare, tmp_path / "b.zip", change))
    page = service.write_report(there, name).read_text()
    assert evil not in page and "&lt;img src=x" in page


def test_only_so_many_are_open_at_once(bare, lab, monkeypatch):
    monkeypatch.setattr(bundle, "MOST_OPENED", 0)
    with pytest.raises(DataError, match="close one"):
        bundle.open_(lab, bare)


def test_every_known_name_is_checked_as_what_it_is(bare):
    """No name that a bundle may hold falls through to nothing."""
    with zipfile.ZipFile(bare) as archive:
        for name in archive.namelist():
            assert name == bundle.INDEX or any(re.fullmatch(pattern, name) for pattern in bundle.KNOWN)
    with pytest.raises(ValueError, match="no such file"):
        sealed._check(Path("x"), "opened.json")
