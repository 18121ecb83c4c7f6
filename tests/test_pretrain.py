"""The embedded model's recipe: folding changes nothing, names find their rows, and the whole of it runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rift import pretrain, vocabulary
from rift.backbones import embedded
from rift.pretrain import image, text


def test_folding_batch_normalization_changes_nothing():
    tower, x = embedded.image_tower(norm=True), torch.randn(16, 3, 48, 48)
    tower.train()(x)  # running statistics that are not 0 and 1
    tower.eval()
    plain = embedded.fold(tower)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    assert torch.allclose(plain(x), tower(x), atol=1e-4) and torch.allclose(
        plain(x[:, :, :32, :32]), tower(x[:, :, :32, :32]), atol=1e-4
    )


def test_a_crop_keeps_size_range_and_differs_by_generator():
    x = torch.rand(4, 3, 64, 64)
    first, again, other = (image.crop(x, 48, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 3, 48, 48) and torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_plurals_are_ones_the_vocabulary_can_take_off():
    names = ["dog", "fox", "butterfly", "church", "bus", "donkey"]
    assert [text.plural(name) for name in names] == ["dogs", "foxes", "butterflies", "churches", "buses", "donkeys"]
    known = [name for name in vocabulary.names() if vocabulary.rows(text.plural(name)) == vocabulary.rows(name)]
    assert len(known) > 0.98 * len(vocabulary.names())


def test_the_text_tower_gives_a_name_the_direction_of_its_rows():
    rows = F.normalize(torch.randn(1000, embedded.WIDTH), dim=1)
    tower = text.distill(rows, steps=2, log=lambda line: None)
    names, targets = text.name_rows(rows)
    with torch.no_grad():
        cosine = (F.normalize(tower(tower.encode(names)), dim=1) * targets).sum(1)
    assert float(cosine.mean()) > 0.95


def test_the_shipped_model_is_small_knows_names_and_marks_other_words():
    assert embedded.PATH.stat().st_size <= 10_000_000
    backbone = embedded.load()
    head = backbone.natural_head(["dog", "Dogs", "a photo of a dog", "mitochondrion", "cell", "ship"])
    assert head.unknown == ("mitochondrion", "cell") and head.classes == ("dog", "Dogs", "a photo of a dog", "ship")
    assert torch.allclose(head.rows.norm(dim=1), torch.ones(4), atol=1e-5)
    assert float(head.rows[0] @ head.rows[1]) > 0.999 and float(head.rows[0] @ head.rows[3]) < 0.5
    assert backbone.natural_head(["mitochondrion"]).rows.shape == (0, embedded.WIDTH)
    card = json.loads((embedded.PATH.parent / "embedded.json").read_text())
    assert card["bytes"] == embedded.PATH.stat().st_size and card["seen_200_classes"]["accuracy"] >= 0.30


@pytest.mark.slow
def test_dog_dogs_and_a_photo_of_a_dog_agree(shared):
    pixels, _, _ = image.read_pack(shared / "data" / "natural_tiny_imagenet_val_25pc_64px.npz", lambda line: None)
    names = [str(n) for n in np.load(shared / "data" / "natural_tiny_imagenet_val_25pc_64px.npz")["class_names"]]
    agreement = pretrain._agreement(embedded.load().eval(), pixels[::10], names)
    assert min(agreement.values()) >= 0.95, agreement


@pytest.mark.slow
def test_the_whole_recipe_runs_resumes_and_writes_a_card(shared, tmp_path, monkeypatch):
    source = shared / "data" / "natural_tiny_imagenet_val_25pc_64px.npz"
    pack = dict(np.load(source, allow_pickle=False))
    few = np.arange(0, 5000, 20)
    chunks = [pack["data"][pack["offsets"][i] : pack["offsets"][i + 1]] for i in few]
    offsets = np.concatenate([[0], np.cumsum([len(chunk) for chunk in chunks])])
    small = tmp_path / "small.npz"
    np.savez(small, **{**pack, "data": np.concatenate(chunks), "offsets": offsets, "labels": pack["labels"][few]})
    monkeypatch.setattr(image, "TEACHER_PIXELS", 64)
    monkeypatch.setattr(text, "distill", functools.partial(text.distill, steps=3))
    said: list[str] = []
    common = {"teacher": next((shared / "weights").glob("*.safetensors")), "cifar": None, "unseen": None, "log": said.append}
    pretrain.run(small, small, tmp_path / "work", tmp_path / "out", stages=[(1, 32)], **common)
    pretrain.run(small, small, tmp_path / "work", tmp_path / "out", stages=[(1, 32), (1, 48)], **common)
    epochs = [line.split(":")[0] for line in said if line.startswith("epoch")]
    assert epochs == ["epoch 1/1 at 32 px", "epoch 2/2 at 48 px"]
    card = json.loads((tmp_path / "out" / "embedded.json").read_text())
    assert card["seen_200_classes"]["n"] == 250 and card["bytes"] == (tmp_path / "out" / "embedded.safetensors").stat().st_size
    assert embedded.of_file(tmp_path / "out" / "embedded.safetensors").width == 192


def test_reading_a_pack_gives_pixels_labels_and_ids(tmp_path: Path):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(buffer, "PNG")
    data = np.frombuffer(buffer.getvalue() * 2, np.uint8)
    size = len(buffer.getvalue())
    np.savez(
        tmp_path / "p.npz", data=data, offsets=[0, size, 2 * size], labels=[1, 0], class_names=["a", "b"], wnids=["n1", "n2"]
    )
    pixels, labels, wnids = image.read_pack(tmp_path / "p.npz", lambda line: None)
    assert (
        pixels.shape == (2, 64, 64, 3)
        and (pixels[..., 0] > 250).all()
        and labels.tolist() == [1, 0]
        and list(wnids) == ["n1", "n2"]
    )
