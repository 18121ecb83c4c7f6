"""What a backbone without words means for a whole run, and a method that a backbone cannot carry, from the start to the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from rift import api, catalog, comparison, dataset, recipe, report
from rift.config import Choice, Experiment, Training
from rift.runs import Lab, Run
from rift.snapshot import Snapshot


def pictures(counts: dict[str, int]) -> Any:
    rng = np.random.default_rng(0)
    for index, (name, count) in enumerate(counts.items()):
        for i in range(count):
            noise = rng.integers(0, 60, (40, 40, 3))
            noise[:, :: 2 + 3 * index] += 120
            yield f"{name}-{i}", name, noise.astype(np.uint8), None, ""


def run_of(root: Path, natural: dict[str, int], classes: int = 0, **choices: Choice) -> tuple[Lab, Run]:
    """Finetune timm's toy ViT, with a classifier of so many classes, and let it look at these natural images."""
    lab = Lab(root)
    torch.manual_seed(0)
    path = root / "toy.safetensors"
    save_file(timm.create_model("test_vit", num_classes=classes).state_dict(), path)
    toy = Choice(name="checkpoint", options={"path": str(path), "architecture": "test_vit"})
    chosen = {"method": Choice(name="linear"), "regularizer": Choice(name="none"), **choices}
    experiment = Experiment(
        data=dataset.store(pictures({"narrow": 10, "wide": 10}), lab.data, name="stripes").digest,
        natural=dataset.store(pictures(natural), lab.data, name="words").digest,
        backbone=catalog.check("backbones", toy),
        training=Training(epochs=1, batch_size=8, views=1),
        **{key: catalog.check(f"{key}s", one) for key, one in chosen.items()},
    )
    run = lab.submit(experiment)
    recipe.execute(run, lab, torch.device("cpu"))
    return lab, run


def document_of(lab: Lab, run: Run) -> dict[str, Any]:
    images, natural = (dataset.load(lab.data / one) for one in (run.experiment.data, run.experiment.natural))
    return comparison.document(lab, comparison.of_runs([run]), images, natural, dataset.split(images, 0))


def test_without_words_the_natural_numbers_are_those_of_nearest_mean_and_every_place_says_so(tmp_path):
    lab, run = run_of(tmp_path, {"dog": 4, "cat": 5, "fox": 1})
    document = document_of(lab, run)
    pretrained, (row,) = document["pretrained"], document["arms"][0]["runs"]
    assert pretrained["natural_head"] == "nearest mean"
    assert 0 <= pretrained["natural_accuracy"] <= 1 and 0 <= pretrained["natural_knn_accuracy"] <= 1
    assert row["natural_accuracy"] == pretrained["natural_accuracy"]  # a linear probe leaves the embeddings as they are
    assert row["natural_knn_accuracy"] == pretrained["natural_knn_accuracy"] and row["natural_agreement"] == 1
    (warning,) = document["natural"]["warnings"]
    assert warning["message"] == "'fox' is not scored: it has one image, and nearest mean takes two."

    api.report([str(run.path)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Natural accuracy, by nearest mean" in text and "This backbone has neither text tower nor classifier" in text
    measures = {"none": run.measures()}
    assert "Natural accuracy, by nearest mean" in [line["name"] for line in report.table(document, measures)]


def test_an_own_classifier_is_named_as_what_it_is(tmp_path):
    lab, run = run_of(tmp_path, {"dog": 4, "cat": 4}, classes=1000)
    document = document_of(lab, run)
    assert document["pretrained"]["natural_head"] == "classifier" == run.measures()["zero_shot"]["natural_head"]
    assert "Natural accuracy, by its classifier" in [line["name"] for line in report.table(document, {"none": run.measures()})]
    assert Snapshot.load(lab.cache / run.result()["before"]).natural_head == "classifier"


def test_too_few_natural_images_give_no_natural_number_and_a_reason_in_a_run_that_ends_well(tmp_path):
    lab, run = run_of(tmp_path, {"dog": 1, "cat": 1, "fox": 3})
    assert run.state == "done"
    document = document_of(lab, run)
    for row in (document["pretrained"], document["arms"][0]["runs"][0]):
        for name in ("natural_accuracy", "natural_top5", "natural_knn_accuracy"):
            assert row[name] is None and "nearest mean takes two images of each of at least two labels" in row[f"{name}_reason"]
    assert document["pretrained"]["natural_head"] is None and len(document["natural"]["warnings"]) == 2


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"method": Choice(name="last_blocks", options={"blocks": 9})}, "last_blocks: blocks = 9, but this backbone has 6."),
        ({"method": Choice(name="oft", options={"block_size": 48})}, "oft: block_size = 48 does not divide the inputs of"),
        ({"method": Choice(name="lora", options={"budget": 1e-6})}, "lora: budget = 1e-06 asks for"),
        ({"regularizer": Choice(name="logit_distillation")}, "logit_distillation needs a natural head (a text tower or an"),
    ],
)
def test_what_a_backbone_cannot_carry_is_refused_before_it_has_looked_at_an_image(choices, sentence, tmp_path):
    lab, run = run_of(tmp_path, {"dog": 2, "cat": 2}, **choices)
    end = run.end()
    assert (run.state, end["code"]) == ("failed", "setting.range") and end["message"].startswith(sentence)
    assert not list(lab.cache.iterdir())
