"""The pipeline cannot flatter itself: labels without meaning give chance, names moved by one give almost nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rift import catalog, dataset, recipe, reference, upload
from rift.config import Choice, Experiment, Training
from rift.runs import Lab

pytestmark = pytest.mark.slow


def finetuned_accuracy(lab: Lab, medical: dataset.ImageSet, natural: dataset.ImageSet) -> float:
    run = lab.submit(
        Experiment(
            data=medical.digest,
            natural=natural.digest,
            regularizer=catalog.check("regularizers", Choice(name="none")),
            training=Training(epochs=5, batch_size=16, learning_rate=3e-4, head_learning_rate=3e-3),
        )
    )
    recipe.execute(run, lab, torch.device("cpu"))
    assert run.state == "done", run.end()
    return run.result()["numbers"]["balanced_accuracy"]


def test_shuffled_medical_labels_give_chance(tmp_path, shared):
    lab = Lab(tmp_path)
    natural = catalog.door("natural", "bundled")(lab.data)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(shared / "data" / "med_wbc_dataset1_5class.zip") as archive:
        names = [name for name in archive.namelist() if name.split("/")[0] in ("lymphocyte", "monocyte", "neutrophil")]
        names = [name for kind in ("lymphocyte", "monocyte", "neutrophil") for name in names if name.startswith(kind)][:150]
        labels = [name.split("/")[0] for name in names]
        pictures = [archive.read(name) for name in names]

    def store(which: list[str], name: str) -> dataset.ImageSet:
        entries = [(Path(n).name, label, data, None, "") for n, label, data in zip(names, which, pictures, strict=True)]
        return dataset.store(entries, lab.data, name=name)

    true = finetuned_accuracy(lab, store(labels, "true"), natural)
    shuffled = finetuned_accuracy(lab, store(list(rng.permutation(labels)), "shuffled"), natural)
    assert true > 0.75  # three classes: chance is 0.33, and 30 test images have a standard error of 0.09
    assert shuffled < 0.33 + 3 * 0.09


def test_names_moved_by_one_give_almost_no_natural_accuracy(tmp_path, shared):
    lab, source = Lab(tmp_path), shared / "data" / "natural_cifar10_test_10class.zip"
    with zipfile.ZipFile(source) as archive:
        files = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        kinds = sorted({name.split("/")[0] for name in files})
        moved = dict(zip(kinds, kinds[1:] + kinds[:1], strict=True))
        with zipfile.ZipFile(tmp_path / "moved.zip", "w") as other:
            for name in files:
                kind, file = name.split("/")
                other.writestr(f"{moved[kind]}/{file}", archive.read(name))
    backbone = catalog.door("backbones", "embedded")().eval()
    accuracy = {}
    for name, path in (("true", source), ("moved", tmp_path / "moved.zip")):
        natural = upload.read(path, lab.data, least=1, least_classes=1)
        parts = dataset.Split(*(np.arange(10) for _ in range(3)))
        before, _ = reference.snapshot(lab, backbone, natural, natural, parts)
        accuracy[name] = catalog.door("diagnostics", "zero_shot")(before, before)["natural_accuracy"]
    assert accuracy["true"] > 0.2
    assert accuracy["moved"] < 0.1  # chance itself would be 0.10
