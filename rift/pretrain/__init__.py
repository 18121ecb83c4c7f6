"""The recipe of the embedded model: a small image tower and a text tower distilled from a ViT-tiny, then measured and shipped.

The teacher is timm's `vit_tiny_patch16_224.augreg_in21k_ft_in1k`. The image tower learns its embeddings of small photos and the
photos' names, the text tower the L2-normalized rows of its classifier for the names of the 1000 classes: both meet in the
teacher's own 192-dimensional space. All of it is our choice.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from rift import statistics, vocabulary
from rift.backbones import _image_tower, embedded
from rift.model import Backbone, to_float
from rift.pretrain import image, photos, text
from rift.pretrain.lessons import Lessons, ask

Log = Callable[[str], None]
REPEATS = 2  # how often an epoch shows each of the few photos of everyday words


def run(
    images: Path,
    validation: Path,
    work: Path,
    out: Path,
    *,
    teacher: Path | None,
    coarse: Path | None,
    cifar: Path | None,
    unseen: Path | None,
    cycles: Sequence[Sequence[tuple[int, ...]]],
    device: str = "cpu",
    log: Log = print,
) -> None:
    """Distill both towers, ship them as `out/embedded.safetensors` and measure them; `work` lets it resume."""
    began = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    teacher_model = photos.load_teacher(teacher)
    rows = F.normalize(_classifier(teacher_model).weight.detach(), dim=1)
    held_out, held_out_labels, wnids = photos.read_pack(validation, log)
    lessons = _lessons(images, coarse, work, teacher_model, device, log)
    seen = rows[photos.imagenet_rows(wnids)]
    tower = image.distill(
        lessons,
        cycles=cycles,
        checkpoint=work / "tower.pt",
        device=device,
        log=log,
        check=lambda model, size: image.accuracy(model, held_out[::5], held_out_labels[::5], seen, size),
    )
    state = _cached(work / "text.pt", lambda: _trained_text(rows, log))
    ship(_image_tower.fold(tower), state, out / "embedded.safetensors")
    log(f"trained in {(time.perf_counter() - began) / 60:.0f} minutes of this call")
    numbers = measure(out / "embedded.safetensors", teacher_model, held_out, held_out_labels, validation, cifar, unseen, log)
    (out / "embedded.json").write_text(json.dumps({"cycles": cycles, "photos": len(lessons.pixels), **numbers}, indent=1) + "\n")


def _lessons(images: Path, coarse: Path | None, work: Path, teacher: VisionTransformer, device: str, log: Log) -> Lessons:
    """Ask every photo which seen class it shows and, where there are photos of everyday words, which of these words."""
    head = _classifier(teacher)
    rows = F.normalize(head.weight.detach(), dim=1)
    pixels, labels, wnids = photos.read_pack(images, log)
    targets = _cached(work / "teacher.pt", lambda: photos.teach(teacher, pixels, log, device))
    answers, seen = torch.from_numpy(labels), photos.imagenet_rows(wnids)
    asked, repeats = [(rows[seen], answers)], torch.ones(len(pixels), dtype=torch.long)
    if coarse:
        more, more_labels, names = photos.read_pack(coarse, log)
        more_targets = _cached(work / "teacher_coarse.pt", lambda: photos.teach(teacher, more, log, device))
        words, word_of_class = everyday(names, seen)
        asked = [
            (rows[seen], torch.cat([answers, torch.full((len(more),), -1)])),
            (text.directions(rows, words), torch.cat([word_of_class[answers], torch.from_numpy(more_labels)])),
        ]
        pixels, targets = np.concatenate([pixels, more]), torch.cat([targets, more_targets])
        repeats = torch.cat([repeats, torch.full((len(more),), REPEATS)])
    with torch.no_grad():
        logits = head(targets.float()).half()
    questions = tuple(ask(directions, found, targets) for directions, found in asked)
    return Lessons(torch.from_numpy(pixels), targets, logits, rows, questions, repeats)


def everyday(names: np.ndarray, seen: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """Return the classifier rows of each name and, for every seen class `(k,)`, the one name that its row has, or -1."""
    _, named, unknown = vocabulary.class_rows([str(name) for name in names])
    assert not unknown, f"{unknown} are no known words"
    hits = [[i for i, some in enumerate(named) if row in some] for row in seen.tolist()]
    return named, torch.tensor([found[0] if len(found) == 1 else -1 for found in hits])


def _cached(path: Path, make: Callable[[], Any]) -> Any:
    """Return the tensors stored at `path`, made and stored first where it is missing."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, weights_only=True)


def _classifier(teacher: VisionTransformer) -> torch.nn.Linear:
    assert isinstance(teacher.head, torch.nn.Linear)
    return teacher.head


def _trained_text(rows: Tensor, log: Log) -> dict[str, Tensor]:
    tower = text.distill(rows, log=log)
    return {"token_ids": torch.tensor(list(tower.row), dtype=torch.int32), **tower.state_dict()}


def ship(tower: torch.nn.Module, text_state: dict[str, Tensor], path: Path) -> None:
    """Write both towers as one float16 safetensors file."""
    tensors = {f"image.{key}": value.half().contiguous() for key, value in tower.state_dict().items()}
    for key, value in text_state.items():
        tensors[f"text.{key}"] = value.half().contiguous() if value.is_floating_point() else value
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt", "recipe": "python -m rift pretrain"})


def measure(
    weights: Path,
    teacher: VisionTransformer,
    pixels: np.ndarray,
    labels: np.ndarray,
    validation: Path,
    cifar: Path | None,
    unseen: Path | None,
    log: Log = print,
) -> dict[str, Any]:
    """Return what the card reports, each as `{accuracy, n, low, high}`: seen classes, CIFAR-10, unseen names, the teacher."""
    model = embedded.of_file(weights).eval()
    names = [str(name) for name in np.load(validation, allow_pickle=False)["class_names"]]
    wnids = np.load(validation, allow_pickle=False)["wnids"]
    rows = F.normalize(_classifier(teacher).weight.detach(), dim=1)[photos.imagenet_rows(wnids)]
    ceiling = F.normalize(photos.teach(teacher, pixels, log).float(), dim=1) @ rows.T
    numbers: dict[str, Any] = {
        "seen_200_classes": _named(model, pixels, [names[label] for label in labels], names),
        "teacher_seen_200_classes": _share(ceiling.argmax(1).numpy() == labels),
    }
    with tempfile.TemporaryDirectory() as folder:
        if cifar:
            numbers["cifar10_test"] = _of_zip(model, cifar, Path(folder))
        if unseen:
            known = {str(wnid) for wnid in wnids}
            numbers |= _unseen(model, unseen, known, Path(folder))
    numbers["text_agreement"] = _agreement(model, pixels, names)
    numbers["forward_images_per_second"] = _speed(model)
    for key, value in numbers.items():
        log(f"{key}: {value}")
    return {**numbers, "bytes": weights.stat().st_size, "parameters": sum(p.numel() for p in model.parameters())}


@torch.inference_mode()
def _embed(model: Backbone, pixels: np.ndarray) -> Tensor:
    return torch.cat([model(to_float(torch.from_numpy(np.array(pixels[i : i + 250])))) for i in range(0, len(pixels), 250)])


def _named(model: Backbone, pixels: np.ndarray, truth: list[str], names: list[str]) -> dict[str, Any]:
    head = model.natural_head(names)
    assert head is not None
    guesses = head.logits(_embed(model, pixels)).argmax(1)
    return _share(np.array([head.classes[guess] == label for guess, label in zip(guesses, truth, strict=True)]))


def _share(hits: np.ndarray) -> dict[str, Any]:
    low, high = statistics.proportion_interval(int(hits.sum()), len(hits))
    return {"accuracy": round(float(hits.mean()), 4), "n": len(hits), "low": round(low, 4), "high": round(high, 4)}


def _of_zip(model: Backbone, path: Path, folder: Path) -> dict[str, Any]:
    from rift import upload

    found = upload.read(path, folder, least=1, least_classes=1)
    truth = [found.classes[label] for label in found.labels]
    return _named(model, found.pixels(model.pixels), truth, list(found.classes))


def _unseen(model: Backbone, path: Path, seen: set[str], folder: Path) -> dict[str, Any]:
    """Photos named by WordNet id in one folder: those whose class was never seen as an image, among those names and among all."""
    import zipfile

    from rift import images as reader

    ids = {wnid: i for i, wnid in enumerate(photos.imagenet_classes())}
    first = {row: name for name, rows in reversed(vocabulary.names().items()) for row in rows if len(rows) == 1}
    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if Path(name).stem in ids and Path(name).stem not in seen]
        files = [name for name in files if ids[Path(name).stem] in first]
        pixels = np.stack([reader.fit(reader.read(archive.read(name)).pixels, model.pixels) for name in files])
    truth = [first[ids[Path(name).stem]] for name in files]
    return {
        "unseen_names_among_unseen": _named(model, pixels, truth, sorted(set(truth))),
        "unseen_names_among_all": _named(model, pixels, truth, sorted(set(first.values()))),
    }


def _agreement(model: Backbone, pixels: np.ndarray, names: list[str]) -> dict[str, float]:
    """Share of photos whose best of 200 names stays the same when all names are written in another way."""
    embeddings = _embed(model, pixels)

    def best(write: Callable[[str], str]) -> np.ndarray:
        head = model.natural_head([write(name) for name in names])
        assert head is not None and not head.unknown
        return head.logits(embeddings).argmax(1).numpy()

    plain = best(lambda name: name)
    ways = {"a photo of a …": lambda name: f"a photo of a {name}", "Plural": lambda name: text.plural(name).capitalize()}
    return {way: round(float((best(write) == plain).mean()), 4) for way, write in ways.items()}


@torch.inference_mode()
def _speed(model: Backbone) -> float:
    images, times = torch.rand(64, 3, model.pixels, model.pixels), []
    for _ in range(8):
        began = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - began)
    return round(64 / float(np.median(times[2:])))
