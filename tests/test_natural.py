"""Natural sets: the bundled photos are there and known by name; the downloaded ones are read from local stand-ins."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import io
import pickle
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rift import catalog, vocabulary
from rift.config import Choice
from rift.errors import ModelError, SettingError
from rift.natural import bundled, cifar10, flowers102, pets

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; yields the folder that it serves and its address."""
    (folder := tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


def md5(data: bytes | Path) -> str:
    return hashlib.md5(data.read_bytes() if isinstance(data, Path) else data).hexdigest()


def photo(seed: int, size: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size + 8, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> str:
    """Write a tar.gz and return its MD5."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return md5(path)


def fake_cifar10(monkeypatch, server) -> np.ndarray:
    from torchvision.datasets import CIFAR10

    folder, address = server
    data = np.random.default_rng(0).integers(0, 256, (40, 3072), np.uint8)
    batch = pickle.dumps({"data": data, "labels": [i % 10 for i in range(40)]})
    meta = pickle.dumps({"label_names": CLASSES})
    name = "cifar-10-batches-py/"
    monkeypatch.setattr(
        CIFAR10, "tgz_md5", pack(folder / "cifar.tar.gz", {name + "test_batch": batch, name + "batches.meta": meta})
    )
    monkeypatch.setattr(CIFAR10, "url", address + "cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "filename", "cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batch)]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5(meta)})
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def fake_flowers(monkeypatch, server) -> dict[int, bytes]:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder, address = server
    photos = {i: photo(i) for i in range(1, 13)}
    archive = pack(folder / "102flowers.tgz", {f"jpg/image_{i:05d}.jpg": data for i, data in photos.items()})
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 49, 74] * 4])})
    savemat(folder / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [list(range(3, 13))]})
    files = {"image": ("102flowers.tgz", archive)}
    files |= {key: (name, md5(folder / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(Flowers102, "_download_url_prefix", address)
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    return photos


def fake_pets(monkeypatch, server) -> None:
    from torchvision.datasets import OxfordIIITPet

    folder, address = server
    rows = [
        (f"{breed}_{i}", number, kind) for number, breed, kind in ((1, "Siamese", 1), (2, "great_pyrenees", 2)) for i in range(3)
    ]
    lines = "".join(f"{name} {number} {kind} 1\n" for name, number, kind in rows)
    images = pack(folder / "images.tar.gz", {f"images/{row[0]}.jpg": photo(i) for i, row in enumerate(rows)})
    annotations = pack(folder / "annotations.tar.gz", {"annotations/test.txt": lines.encode()})
    resources = ((address + "images.tar.gz", images), (address + "annotations.tar.gz", annotations))
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)


def test_bundled_photos_are_all_there_and_known_by_name(tmp_path):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("Gradio is not installed, and its photos are part of the set")
    images = bundled.load(tmp_path / "data")
    assert len(images) == 11 and images.report.kept == 11 and images.report.skipped == ()
    assert images.classes == ("cat", "cheetah", "coffee", "flower", "lion", "motorcycle", "palace", "rocket", "tower")
    assert vocabulary.class_rows(images.classes)[2] == []
    assert set(images.classes) & vocabulary.nearest() == {"flower", "motorcycle", "rocket", "tower"}  # as the docstring says
    assert bundled.load(tmp_path / "other").digest == images.digest


def test_bundled_imports_none_of_the_packages(tmp_path):
    import subprocess

    code = "import sys, pathlib, rift.natural.bundled as b; b.load(pathlib.Path(sys.argv[1])); assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True, cwd=Path(vocabulary.__file__).parents[1])


def test_bundled_without_a_package_or_a_file_warns(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest))
    monkeypatch.setitem(bundled.PHOTOS, "sklearn", {"datasets/images/gone.jpg": "palace"})
    images = bundled.load(tmp_path / "data")
    messages = {item.message for item in images.report.warnings if item.code == "data.missing"}
    assert "The package gradio is not installed, so its photos are left out: cheetah, lion, tower." in messages
    assert "This version of sklearn has no datasets/images/gone.jpg, so the photo is left out." in messages
    assert images.classes == ("cat", "coffee", "motorcycle", "rocket")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tarfile inside torchvision, on Python 3.12 and later
def test_cifar10(tmp_path, monkeypatch, server):
    pixels = fake_cifar10(monkeypatch, server)
    images = cifar10.load(tmp_path / "data", images_per_class=3)
    assert images.classes == tuple(CLASSES) and len(images) == 30
    first = images.ids.tolist().index("bird/00002.png")
    assert (images.pixels(32)[first] == pixels[2]).all()
    assert (tmp_path / "downloads").is_dir()  # beside the sets, not among them
    (server[0] / "cifar.tar.gz").unlink()
    assert len(cifar10.load(tmp_path / "data", images_per_class=4)) == 40  # not fetched again


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flowers102(tmp_path, monkeypatch, server):
    photos = fake_flowers(monkeypatch, server)
    images = flowers102.load(tmp_path / "data", images_per_class=2)
    assert images.classes == ("oxeye daisy", "pink primrose", "rose") and len(images) == 6  # classes 49, 1 and 74 of the authors
    assert images.ids[images.labels == 2].tolist() == ["rose/image_00003.jpg", "rose/image_00006.jpg"]
    assert photos[3] in (images.folder / "blobs.bin").read_bytes()  # encoded as the authors did


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pets_by_breed_and_by_species(tmp_path, monkeypatch, server):
    fake_pets(monkeypatch, server)
    breeds = pets.load(tmp_path / "data", images_per_class=2)
    assert breeds.classes == ("Great Pyrenees", "Siamese") and len(breeds) == 4
    assert vocabulary.class_rows(breeds.classes)[2] == []
    species = pets.load(tmp_path / "data", labels="species")
    assert species.classes == ("cat", "dog") and len(species) == 6


@pytest.mark.parametrize(("module", "name"), [(cifar10, "CIFAR-10"), (flowers102, "Oxford Flowers"), (pets, "Oxford-IIIT Pets")])
def test_offline_says_what_works_instead(tmp_path, monkeypatch, module, name):
    import urllib.request

    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(ModelError) as caught:
        module.load(tmp_path / "data")
    assert caught.value.code == "model.offline"
    assert str(caught.value).startswith(f"{name} is not on this machine and could not be downloaded (URLError:")
    assert "Name or service not known" in str(caught.value)
    assert "--natural bundled needs no download, and neither does a zip of your own" in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_checksum_is_not_used(tmp_path, monkeypatch, server):
    from torchvision.datasets import CIFAR10

    fake_cifar10(monkeypatch, server)
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(ModelError, match=r"could not be downloaded.*not found or corrupted"):
        cifar10.load(tmp_path / "data")


def test_settings_are_bounded():
    for name in catalog.names("natural"):
        assert catalog.summary("natural", name)
        catalog.check("natural", Choice(name=name))
    with pytest.raises(SettingError, match="images_per_class"):
        catalog.check("natural", Choice(name="cifar10", options={"images_per_class": "0"}))
    assert catalog.check("natural", catalog.parse("pets:labels=species,images_per_class=7")).options["images_per_class"] == 7
