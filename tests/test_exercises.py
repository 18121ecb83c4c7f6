"""Break it: one thing is broken at a time, the answer comes from real runs, and shuffled labels can never pass for real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rift import (
    api,
    catalog,
    comparison,
    dataset,
    exercises,
    figures,
    jobs,
    lessons,
    measures,
    naming,
    recipe,
    report,
    service,
    trials,
)
from rift.config import Choice, Experiment, Training
from rift.dataset import store
from rift.errors import SettingError
from rift.exercises import EXERCISES
from rift.orders import Order, experiments
from rift.review import Entry
from rift.runs import Lab
from tests.methods_toys import toy_lab

SHUFFLED = Training(shuffle_labels=True)


def drawn(root: Path, each: int, classes: int = 3) -> dataset.ImageSet:
    draw = np.random.default_rng(0)
    names = [f"kind {i}" for i in range(classes)]
    entries = [Entry(f"{n}/{i}.png", n, draw.integers(0, 255, (8, 8, 3), np.uint8)) for n in names for i in range(each)]
    return store(entries, root, name="drawn")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dataset.ImageSet:
    return drawn(tmp_path_factory.mktemp("sets"), 40)


# --- what is asked ------------------------------------------------------------------------------------------------------------


def test_there_are_four_and_each_breaks_one_thing_only(images):
    changed = {}
    for name, exercise in EXERCISES.items():
        asked = exercises.orders(exercise, images, images.digest)
        first, last = (one.model_dump() | {"training": None} for one in (asked[0], asked[-1]))
        assert first == last, "only the training may differ"
        settings = [dict(one.training) for one in (asked[0], asked[-1])]
        changed[name] = {key: (settings[0][key], value) for key, value in settings[1].items() if value != settings[0][key]}
        assert set(exercise.answers) == set(exercises.ANSWERS) and exercise.expected in exercises.ANSWERS
    assert changed == {
        "rate": {"learning_rate": (0.0003, 0.003), "head_learning_rate": (0.001, 0.01)},
        "few": {"shots": (0, 10)},
        "lambda": {},
        "labels": {"shuffle_labels": (False, True)},
    }


def test_the_unbroken_runs_are_the_same_for_all(images):
    asked = {name: exercises.orders(one, images, images.digest) for name, one in EXERCISES.items()}
    runs = {name: {arm.name: each[0].id for arm, each in experiments(orders[0])} for name, orders in asked.items()}
    assert runs["rate"] == runs["few"] == runs["labels"] and set(runs["rate"]) == {"none", "rift"}
    assert runs["lambda"]["none"] == runs["rate"]["none"] and runs["lambda"]["rift[strength=1]"] == runs["rate"]["rift"]
    assert [arm.strength for arm, _ in experiments(asked["lambda"][0])] == [0.0, 1.0, 10.0]


@pytest.mark.parametrize(("each", "classes", "shots"), [(40, 3, 0), (400, 2, 150), (40, 20, 20)])
def test_an_exercise_is_short_whatever_the_set(tmp_path, each, classes, shots):
    training = exercises._training(drawn(tmp_path, each, classes))
    assert training.shots == shots
    many = shots * classes if shots else round(0.6 * each) * classes
    assert training.epochs * -(-many // training.batch_size) <= 1.5 * exercises.STEPS


def test_ten_a_class_need_more_than_ten(tmp_path):
    small = drawn(tmp_path, 12)
    with pytest.raises(SettingError, match="ten a class would be all of them"):
        exercises.orders(EXERCISES["few"], small, small.digest)
    assert len(exercises.orders(EXERCISES["rate"], small, small.digest)) == 2


# --- shuffled labels ----------------------------------------------------------------------------------------------------------


def test_the_training_labels_are_dealt_out_and_no_others(images):
    parts = dataset.parts(images, SHUFFLED, 0)
    true, dealt = images.labels[parts.train], dataset.taught(images, parts.train, SHUFFLED, 0)
    assert sorted(dealt) == sorted(true) and (dealt == true).mean() < 0.6
    assert np.array_equal(dataset.taught(images, parts.train, Training(), 0), true), "and nothing without the setting"
    assert np.array_equal(dealt, dataset.taught(images, parts.train, SHUFFLED, 0)), "the same for every arm of a seed"
    assert not np.array_equal(dealt, dataset.taught(images, parts.train, SHUFFLED, 1))
    plain = dataset.parts(images, Training(), 0)
    assert all(np.array_equal(getattr(parts, one), getattr(plain, one)) for one in ("train", "validation", "test"))


def test_a_setting_that_came_later_is_not_in_the_ids_of_runs_without_it():
    plain, shuffled = (Experiment(data="d", natural="n", training=one) for one in (Training(), SHUFFLED))
    assert "shuffle_labels" not in plain.model_dump()["training"]
    assert plain.id != shuffled.id and plain.pair_id != shuffled.pair_id, "and a shuffled run is never paired with a real one"
    assert Experiment.model_validate_json(shuffled.model_dump_json()) == shuffled


def test_every_arm_of_shuffled_labels_says_so_and_keeps_its_look():
    order = Order(data="d", natural="n", training=SHUFFLED, strengths=(1.0, 10.0), methods=(Choice(name="full"),))
    names = [arm.name for arm, _ in experiments(order)]
    assert names == ["none[labels shuffled]", "rift[strength=1, labels shuffled]", "rift[strength=10, labels shuffled]"]
    assert figures.color("none[labels shuffled]") == figures.color("none")
    linear = order.model_copy(update={"methods": (Choice(name="linear"),), "strengths": (1.0,)})
    assert [arm.same_as for arm, _ in experiments(linear)] == ["", "none[labels shuffled]"]


# --- what is found ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ensure_worker", lambda *given, **more: None)
        yield toy_lab(tmp_path_factory.mktemp("lab"), each=60, natural=4)


def short(lab: Lab, name: str, **training) -> list[Order]:
    """Return the orders of an exercise over a toy model, an epoch each."""
    toy = Choice(name="checkpoint", options={"path": str(lab.weights), "architecture": "test_vit"})
    backbone = catalog.check("backbones", toy)
    asked = exercises.orders(EXERCISES[name], lab.medical, lab.natural.digest)
    small = {"epochs": 1, "batch_size": 16, "views": 1, **training}
    return [one.model_copy(update={"backbone": backbone, "training": one.training.model_copy(update=small)}) for one in asked]


def carry_out(lab: Lab, asked: list[Order]) -> str:
    name = exercises.begin(lab, asked, "toy.zip")
    for run in lab.runs():
        if run.state == "queued":
            recipe.execute(run, lab, torch.device("cpu"))
    return name


@pytest.fixture(scope="module")
def broken(lab) -> list[Order]:
    asked = short(lab, "labels")
    assert exercises.standing(lab, asked) == exercises.Standing("new")
    cost = exercises.cost(lab, asked, lab.medical, lab.natural)
    assert cost.runs == 4
    exercises.begin(lab, asked, "toy.zip")
    assert exercises.standing(lab, asked).state == "running"
    carry_out(lab, asked)
    assert exercises.cost(lab, asked, lab.medical, lab.natural) == (0, 0.0), "what is trained costs nothing"
    return asked


def test_its_numbers_are_those_of_the_runs(lab, broken):
    assert exercises.standing(lab, broken) == exercises.Standing("done")
    plain, shuffled = ({arm.name: arm.runs[0] for arm in service.arms(lab, one.id)} for one in broken)
    rows = exercises.findings(lab, EXERCISES["labels"], broken)
    assert [(row["arm"], row["baseline"]) for row in rows] == [
        ("rift[labels shuffled]", "none[labels shuffled]"),
        ("none[labels shuffled]", "none"),
        ("rift[labels shuffled]", "none[labels shuffled]"),
    ]
    runs = plain | shuffled
    for row in rows:
        one, two = (runs[row[side]].result()["numbers"][row["metric"]] for side in ("arm", "baseline"))
        assert row["difference"] == pytest.approx(one - two, abs=1e-6) and row["low"] <= row["difference"] <= row["high"]
        assert row["n"] == len(dataset.parts(lab.medical, Training(), 0).test) and row["verdict"] in exercises.ANSWERS
        assert "95 % interval" in row["sentence"] and f"n = {row['n']} images" in row["sentence"]
    assert "3 comparisons are adjusted together" in exercises.about(rows)
    said = exercises.chance(lab, EXERCISES["labels"], broken)
    assert "guessing gives 0.500 in 2 classes" in said and said.count("n = ") == 2
    assert exercises.chance(lab, EXERCISES["rate"], broken[:1]) == ""


def test_a_model_of_shuffled_labels_has_seen_them_and_not_the_true_ones(lab, broken):
    run = service.arms(lab, broken[1].id)[0].runs[0]
    parts = dataset.parts(lab.medical, run.experiment.training, 0)
    train, test, _ = measures._images(lab, run, 8)
    assert np.array_equal(train.labels, dataset.taught(lab.medical, parts.train, run.experiment.training, 0))
    assert np.array_equal(test.labels, lab.medical.labels[parts.test])


def test_title_document_report_and_list_say_that_labels_were_shuffled(lab, broken, tmp_path):
    name = broken[1].id
    assert naming.title(lab, name) == f"{lab.medical.name} (labels shuffled): none[labels shuffled] and rift[labels shuffled]"
    assert "training labels shuffled on purpose" in naming.about(lab, name)
    document = service.result(lab, name)
    assert document["data"]["shuffle_labels"] and not service.result(lab, broken[0].id)["data"]["shuffle_labels"]
    page = service.write_report(lab, name).read_text()
    assert "<title>" in page and "(labels shuffled)" in page and "dealt out at random on purpose" in page
    assert "dealt out at random on purpose" not in service.write_report(lab, broken[0].id).read_text()
    listed = [one["summary"] for one in api.listing("runs", lab.root)]
    assert sum("labels shuffled" in one for one in listed) == 2
    like = [one["name"] for one in comparison.arms_like(lab, service.arms(lab, name)[0].runs[0])]
    assert sorted(one.partition(" (")[0] for one in like if "shuffled" in one) == [
        "none[labels shuffled]",
        "rift[labels shuffled]",
    ]
    mixed = [service.arms(lab, one.id)[0].runs[0].id for one in broken]
    with pytest.raises(SettingError, match="a report compares runs of the same"):
        api.report(mixed, tmp_path / "mixed.html", lab=lab.root)


def test_a_run_that_diverged_is_an_answer_of_its_own(lab, broken):
    asked = short(lab, "rate")
    exercises.begin(lab, asked, "toy.zip")
    for arm in service.arms(lab, asked[1].id):
        arm.runs[0].append("end", state="failed", code="run.diverged", message="The loss was not a number.")
    assert exercises.standing(lab, asked).state == "done"
    rows = exercises.findings(lab, EXERCISES["rate"], asked)
    assert rows[0]["verdict"] is None and "none: The loss was not a number" in rows[0]["sentence"]
    (_, _, (_, said)) = exercises.answer(EXERCISES["rate"], rows, "lower")
    assert said.startswith("No answer: ") and "not a number" in said


def test_a_stopped_exercise_can_go_on(lab):
    asked = short(lab, "lambda", learning_rate=2e-4)
    exercises.begin(lab, asked, "toy.zip")
    exercises.stop(lab, asked)
    stopped = exercises.standing(lab, asked)
    assert stopped.state == "stopped" and "Go on begins anew: no step was saved yet." in stopped.message
    run = service.runs(service.arms(lab, asked[0].id))[0]
    (run.path / "checkpoint").mkdir()
    (run.path / "checkpoint" / "step-0000001.safetensors.torn").touch()
    assert "Go on begins anew" in exercises.standing(lab, asked).message, "half a file is none"
    (run.path / "checkpoint" / "step-0000001.safetensors").touch()
    assert "Go on takes it up from where it was." in exercises.standing(lab, asked).message
    exercises.begin(lab, asked, "toy.zip")
    assert exercises.standing(lab, asked).state == "running"
    exercises.stop(lab, asked)


@pytest.mark.parametrize("found", [*exercises.ANSWERS, None])
@pytest.mark.parametrize("predicted", exercises.ANSWERS)
def test_the_answer_has_the_same_words_whatever_was_predicted_and_found(found, predicted):
    for exercise in EXERCISES.values():
        rows = [{"verdict": found, "verdict_reason": "it takes at least 20 images"}]
        pairs = exercises.answer(exercise, rows, predicted)
        assert [head for head, _ in pairs] == ["You predicted", "Theory suggests", "These runs say"]
        said = exercise.answers[found] if found else "No answer: it takes at least 20 images"
        assert pairs[0][1] == f"{exercise.answers[predicted]}." and pairs[2][1] == f"{said}."
        assert pairs[1][1].startswith(exercise.answers[exercise.expected]) and exercise.why in pairs[1][1]
    with pytest.raises(SettingError, match="choose one first"):
        exercises.answer(EXERCISES["rate"], rows, "")


def test_trials_are_validated_on_true_labels(lab, monkeypatch):
    """The strength of a shuffled run is chosen on what is true of images held out; only what it is trained on is dealt out."""
    seen = []

    def spied(run, short, strength, pretrained, task, views, pixels, truth):
        seen.append((views.labels.numpy(), truth))
        return [[0.0, 1.0]] * len(truth)

    monkeypatch.setattr(trials, "_trial", spied)
    plain = short(lab, "labels")[1]
    experiment = experiments(plain.model_copy(update={"strengths": ("auto",)}))[1][1][0]
    experiment = experiment.model_copy(update={"training": experiment.training.model_copy(update={"epochs": 9})})
    run = lab.submit(experiment)
    parts = dataset.parts(lab.medical, experiment.training, 0)
    task = catalog.door("tasks", "single_label")(lab.medical.classes)
    pixels = lab.medical.pixels(8)
    backbone = dataclasses.make_dataclass("Backbone", ["pixels"])(8)
    trials.choose(run, backbone, task, pixels, lab.medical, parts, torch.device("cpu"))
    known = np.sort(np.concatenate([parts.train, parts.validation]))
    assert seen and sum(len(truth) for _, truth in seen[:: len(seen) // 5]) == len(known)
    assert all(set(truth) == {0, 1} for _, truth in seen)
    held = np.concatenate([truth for _, truth in seen[:: len(seen) // 5]])
    assert np.bincount(held).tolist() == np.bincount(lab.medical.labels[known]).tolist()
    run.request_stop()


# --- the words of the tab -----------------------------------------------------------------------------------------------------


def test_the_tab_has_six_cards_and_a_glossary_of_single_lines():
    assert len(lessons.CARDS) == 6
    assert list(lessons.GLOSSARY) == sorted(lessons.GLOSSARY, key=str.lower)
    assert all(len(line) < 130 and line.endswith(".") and "\n" not in line for line in lessons.GLOSSARY.values())
    sources = "".join(path.read_text() for path in Path(report.__file__).parent.rglob("*.py") if path.name != "lessons.py")
    assert not [term for term in lessons.GLOSSARY if term.split(",")[0].split(" λ")[0].lower() not in sources.lower()]


def test_every_library_is_named_with_its_license():
    lines = (Path(report.__file__).parents[1] / "requirements.txt").read_text().split()
    assert set(lessons.LIBRARIES) == {line.split(">")[0].split("<")[0].split("=")[0] for line in lines}
