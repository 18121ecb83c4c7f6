"""The embedded model's recipe: folding changes nothing, names find their rows, and the whole of it runs."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rift import pretrain, vocabulary
from rift.backbones import _image_tower, embedded
from rift.pretrain import image, muon, photos, text
from rift.pretrain.lessons import Lessons, ask, probe


def test_folding_batch_normalization_changes_nothing():
    torch.manual_seed(0)
    tower, x = _image_tower.image_tower(norm=True), torch.randn(16, 3, 48, 48)
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:  # as after training: neither gain 1 nor shift 0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        tower.train()(x)  # running statistics that are not 0 and 1
        tower.eval()
        plain = _image_tower.fold(tower)
        assert len(norms) == 9 and not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
        assert set(plain.state_dict()) == set(_image_tower.image_tower().state_dict())
        assert torch.allclose(plain(x), tower(x), atol=1e-4)
        assert torch.allclose(plain(x[:, :, :32, :32]), tower(x[:, :, :32, :32]), atol=1e-4)


def test_each_image_is_embedded_for_itself_also_in_training_mode():
    tower, x = _image_tower.image_tower().train(), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(tower(x)[:1], tower(x[:1]), atol=1e-5)


def test_muon_steps_along_every_direction_alike():
    torch.manual_seed(0)
    spread = torch.randn(48, 24) @ torch.diag(torch.logspace(0, -2, 24)) @ torch.randn(24, 96)
    for matrix in (spread, spread.T):
        found = muon.orthogonal(matrix)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = torch.linalg.svdvals(matrix) > 1e-2 * torch.linalg.matrix_norm(matrix, 2)
        gains = torch.diagonal(u.T @ found @ v.T)[rank]
        assert found.shape == matrix.shape and float(gains.min()) > 0.5 and float(gains.max()) < 1.3


def test_muon_learns_and_leaves_alone_what_has_no_gradient():
    torch.manual_seed(0)
    weight, idle = torch.nn.Parameter(torch.zeros(8, 3, 3, 3)), torch.nn.Parameter(torch.ones(2, 2))
    goal = torch.randn(8, 3, 3, 3)
    optimizer = muon.Muon([weight, idle], 0.1, weight_decay=0.1)
    losses = []
    for _ in range(60):
        loss = (weight - goal).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0] and torch.equal(idle, torch.ones(2, 2))


def photos_of(n: int) -> Lessons:
    torch.manual_seed(1)
    return Lessons(
        pixels=torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8),
        targets=torch.randn(n, embedded.WIDTH),
        logits=torch.randn(n, 1000),
        rows=F.normalize(torch.randn(1000, embedded.WIDTH), dim=1),
        questions=(),
        repeats=torch.ones(n, dtype=torch.long),
    )


def test_a_question_that_does_not_fit_a_photo_teaches_nothing():
    some = photos_of(6)
    directions, ids, scale = torch.eye(embedded.WIDTH)[:3], torch.arange(6), torch.tensor(2.0)
    question = ask(directions, torch.tensor([0, 1, 2, 1, -1, -1]), some.targets)
    assert torch.allclose(question.targets.sum(1), torch.tensor([1.0, 1, 1, 1, 0, 0]))
    embeddings = torch.randn(6, embedded.WIDTH, requires_grad=True)
    question.loss(ids, F.normalize(embeddings, dim=1), scale).backward()
    moved = embeddings.grad.norm(dim=1) > 0
    assert moved.tolist() == [True] * 4 + [False] * 2
    plain, cosine = some.loss(ids, embeddings.detach(), scale)
    asked, same = dataclasses.replace(some, questions=(question,)).loss(ids, embeddings.detach(), scale)
    assert float(asked) > float(plain) and torch.equal(cosine, same)


def test_the_probe_finds_a_linear_rule_and_gives_probabilities():
    torch.manual_seed(0)
    features = torch.randn(3000, 8)
    answers = (features @ torch.randn(8, 3)).argmax(1)
    found = probe(features * 100 + 5, answers, 3)
    assert torch.allclose(found.sum(1), torch.ones(3000), atol=1e-5) and float((found.argmax(1) == answers).float().mean()) > 0.9


def test_a_seen_class_answers_the_one_everyday_word_that_names_it():
    seen = torch.tensor([vocabulary.rows(name)[0] for name in ("goldfish", "Persian cat", "bullfrog", "chihuahua")])
    named, word = pretrain.everyday(np.array(["cat", "frog", "animal", "dog"]), seen)
    assert named[0] == vocabulary.rows("cat") and word.tolist() == [2, -1, -1, -1]  # a cat is an animal too
    assert pretrain.everyday(np.array(["cat", "frog", "dog"]), seen)[1].tolist() == [-1, 0, 1, 2]


@pytest.mark.slow
def test_a_stopped_training_resumes_with_the_same_bits(tmp_path: Path, monkeypatch):
    lessons, quiet = photos_of(8), {"batch_size": 4, "lanes": 1, "log": lambda line: None}
    cycles = [[(1, 16)], [(1, 16)]]
    whole = image.distill(lessons, cycles=cycles, checkpoint=tmp_path / "whole.pt", **quiet)

    def stop(*args, keep=image._keep):
        keep(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(image, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        image.distill(lessons, cycles=cycles, checkpoint=tmp_path / "cut.pt", **quiet)
    monkeypatch.undo()
    resumed = image.distill(lessons, cycles=cycles, checkpoint=tmp_path / "cut.pt", **quiet)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_blurring_touches_the_first_share_of_a_batch_alone():
    x = torch.rand(10, 3, 64, 64) * 2 - 1
    blurred = photos.blur(x, torch.Generator().manual_seed(0))
    rough = (blurred[..., 1:] - blurred[..., :-1]).abs().mean((1, 2, 3))
    assert torch.equal(blurred[3:], x[3:]) and float(rough[:3].max()) < 0.5 * float(rough[3:].min())
    assert float(blurred.min()) >= -1 and float(blurred.max()) <= 1


def test_a_crop_keeps_size_range_and_differs_by_generator():
    x = torch.rand(4, 3, 64, 64)
    first, again, other = (photos.crop(x, 48, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 3, 48, 48) and torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_plurals_are_ones_the_vocabulary_can_take_off():
    names = ["dog", "fox", "butterfly", "church", "bus", "donkey"]
    assert [text.plural(name) for name in names] == ["dogs", "foxes", "butterflies", "churches", "buses", "donkeys"]
    known = [name for name in vocabulary.names() if vocabulary.rows(text.plural(name)) == vocabulary.rows(name)]
    assert len(known) > 0.98 * len(vocabulary.names())


@pytest.mark.slow
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
    assert card["bytes"] == embedded.PATH.stat().st_size and card["seen_200_classes"]["accuracy"] >= 0.40


@pytest.mark.slow
def test_dog_dogs_and_a_photo_of_a_dog_agree(shared):
    pixels, _, _ = photos.read_pack(shared / "data" / "natural_tiny_imagenet_val_25pc_64px.npz", lambda line: None)
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
    small, words = tmp_path / "small.npz", tmp_path / "words.npz"
    np.savez(small, **{**pack, "data": np.concatenate(chunks), "offsets": offsets, "labels": pack["labels"][few]})
    cifar = dict(np.load(shared / "data" / "natural_cifar10_32px.npz", allow_pickle=False))
    np.savez(words, **{**cifar, "is_test": cifar["is_test"] | (np.arange(4000) % 100 > 0)})
    monkeypatch.setattr(photos, "TEACHER_PIXELS", 64)
    monkeypatch.setattr(text, "distill", functools.partial(text.distill, steps=3))
    said: list[str] = []
    common = {
        "teacher": next((shared / "weights").glob("*.safetensors")),
        "coarse": None,
        "cifar": None,
        "unseen": None,
        "log": said.append,
    }
    pretrain.run(small, small, tmp_path / "work", tmp_path / "out", cycles=[[(1, 32)]], **common)
    pretrain.run(small, small, tmp_path / "work", tmp_path / "out", cycles=[[(1, 32), (1, 48)]], **common)
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
    pixels, labels, wnids = photos.read_pack(tmp_path / "p.npz", lambda line: None)
    assert (
        pixels.shape == (2, 64, 64, 3)
        and (pixels[..., 0] > 250).all()
        and labels.tolist() == [1, 0]
        and list(wnids) == ["n1", "n2"]
    )
    pack = dict(np.load(tmp_path / "p.npz"))
    np.savez(tmp_path / "p.npz", **pack, is_test=[True, False])
    pixels, labels, _ = photos.read_pack(tmp_path / "p.npz", lambda line: None)
    assert len(pixels) == 1 and labels.tolist() == [0]
