"""Break it: four guided exercises. A person predicts first, then real runs are trained, then their numbers answer.

Each compares runs that something was done to with runs that it was not done to, on the same test images. The unbroken runs are
the same for all exercises, so they are trained once. What is found is said in the same words whether it was expected or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rift import dataset, differences, estimate, service, verdict
from rift.comparison import Arm
from rift.config import Choice, Training
from rift.dataset import ImageSet
from rift.errors import SettingError
from rift.orders import Order, experiments
from rift.runs import Lab, Run

STEPS, MOST_EPOCHS, FEWEST_EPOCHS = 60, 15, 4  # enough to see something, and minutes on two cores
MOST_TRAIN = 300  # training images of an exercise; of a larger set some are drawn
TEN = 10
FURTHER = 10.0  # the largest λ
ANSWERS = ("lower", "not distinguishable", "higher")


class Side(NamedTuple):
    """One arm: of the broken or of the unbroken runs, and its λ; 0 is the arm without penalty."""

    broken: bool
    strength: float = 0.0


@dataclass(frozen=True)
class Exercise:
    """One thing to break, the question asked before, and the pairs of arms that answer; the first pair answers the question."""

    name: str
    title: str
    setup: str
    called: str  # what is said behind the name of a broken arm
    question: str
    answers: Mapping[str, str]  # by verdict
    expected: str  # the verdict that theory suggests
    why: str
    pairs: tuple[tuple[str, Side, Side], ...]  # "task" is the headline of whatever task the images have
    change: Callable[[Training], dict[str, Any]] = lambda training: {}
    strengths: tuple[float, ...] = (1.0,)


PLAIN, HELD = Side(False), Side(False, 1.0)
BROKEN, BROKEN_HELD = Side(True), Side(True, 1.0)
TWO_BY_TWO = (
    ("task", BROKEN, PLAIN),
    ("cka_debiased", BROKEN_HELD, BROKEN),
    ("task", BROKEN_HELD, BROKEN),
)
LEFT = {
    "lower": "Less of it is left",
    "not distinguishable": "No difference that these images can show",
    "higher": "More of it is left",
}
NAMED = {"lower": "Worse", "not distinguishable": "No difference that these images can show", "higher": "Better"}

EXERCISES = {
    one.name: one
    for one in (
        Exercise(
            name="rate",
            title="Ten times the learning rate",
            setup="Both arms are trained again with ten times the learning rate. Images, order, epochs and seed stay.",
            called="at ten times the rate",
            question="Without a penalty: how much of the pretrained model's arrangement of images (debiased CKA) will be left, "
            "compared with the ordinary rate?",
            answers=LEFT,
            expected="lower",
            why="larger steps take the weights further from where they began, and nothing in the loss calls them back",
            pairs=(("cka_debiased", BROKEN, PLAIN), *TWO_BY_TWO),
            change=lambda training: {
                key: round(TEN * getattr(training, key), 9) for key in ("learning_rate", "head_learning_rate")
            },
        ),
        Exercise(
            name="few",
            title="Ten images a class",
            setup="Both arms are trained again on ten images of each class only. Test images, epochs and seed stay; fewer "
            "images also make fewer steps.",
            called="on ten images a class",
            question="Without a penalty: how well will test images be named, compared with training on all images?",
            answers=NAMED,
            expected="lower",
            why="ten images say less about a class than all of them do",
            pairs=(TWO_BY_TWO[0], ("cka_debiased", BROKEN, PLAIN), *TWO_BY_TWO[1:]),
            change=lambda training: {"shots": TEN},
        ),
        Exercise(
            name="lambda",
            title="λ = 0, 1 and 10",
            setup="Three arms that differ in the strength λ of the penalty only: none at all, 1, and 10.",
            called="",
            question="With λ = 10: how well will test images be named, compared with λ = 0?",
            answers=NAMED,
            expected="lower",
            why="the stronger the penalty, the less freedom is left to learn the labels in so few steps",
            pairs=(
                ("task", Side(False, FURTHER), PLAIN),
                ("cka_debiased", Side(False, FURTHER), PLAIN),
                ("task", HELD, PLAIN),
                ("cka_debiased", HELD, PLAIN),
            ),
            strengths=(1.0, FURTHER),
        ),
        Exercise(
            name="labels",
            title="Shuffled labels",
            setup="Both arms are trained again on the same images with their labels dealt out at random, so that there is "
            "nothing to learn. The test images keep their true labels.",
            called="",  # the arms' own names say it
            question="Trained on shuffled labels: how much of the pretrained arrangement (debiased CKA) will be left with RIFT, "
            "compared with no penalty?",
            answers=LEFT,
            expected="higher",
            why="the penalty looks at embeddings and never at a label: high similarity is no sign of having learned anything",
            pairs=(("cka_debiased", BROKEN_HELD, BROKEN), ("task", BROKEN, PLAIN), ("task", BROKEN_HELD, BROKEN)),
            change=lambda training: {"shuffle_labels": True},
        ),
    )
}


def orders(exercise: Exercise, images: ImageSet, natural: str) -> tuple[Order, ...]:
    """Return the comparisons of an exercise, the one that a person looks at last; `natural` is a digest.

    The unbroken one comes first, unless the exercise is a single comparison. Raises `setting.range` where the images do not do.
    """
    training = _training(images)
    plain = Order(
        data=images.digest,
        natural=natural,
        training=training,
        strengths=exercise.strengths,
        task=Choice(name=images.task),
    )
    change = exercise.change(training)
    if not change:
        return (plain,)
    broken = plain.model_copy(update={"training": Training(**{**training.model_dump(), **change})})
    drawn, whole = (len(dataset.parts(images, one.training, 0).train) for one in (broken, plain))
    if broken.training.shots and drawn >= whole:
        raise SettingError(
            "setting.range",
            f"{images.name} has {whole} training images, of no class more than {TEN}: ten a class would be all of them. "
            "Take the sample on the Data tab for this exercise.",
        )
    return plain, broken


def _training(images: ImageSet) -> Training:
    """Return settings under which a run takes about `STEPS` steps, however many images there are."""
    many = len(dataset.parts(images, Training(), 0).train)
    shots = max(2 * TEN, MOST_TRAIN // len(images.classes)) if many > MOST_TRAIN else 0
    few = Training(shots=shots)
    steps = max(1, round(len(dataset.parts(images, few, 0).train) / few.batch_size))
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(STEPS / steps)))
    return Training(shots=shots, epochs=epochs)


def begin(lab: Lab, asked: Sequence[Order], source: str, *, device: str = "auto") -> str:
    """Start what is not trained yet, in order, and return the comparison to look at; finished runs are never repeated."""
    return [service.start(lab, order, source, device=device) for order in asked][-1]


def stop(lab: Lab, asked: Sequence[Order]) -> None:
    """Stop all comparisons of an exercise; what is done is kept."""
    for order in asked:
        service.stop(lab, order.id)


class Standing(NamedTuple):
    """How far an exercise is: state new, running, stopped or done, and a sentence."""

    state: str
    message: str = ""


def standing(lab: Lab, asked: Sequence[Order], *, device: str = "auto") -> Standing:
    """Return how far the comparisons of an exercise are; a run that diverged has ended too, and says something."""
    known = set(service.comparisons(lab))
    if not all(order.id in known for order in asked):
        return Standing("new")
    found = [service.status(lab, order.id, device=device) for order in asked]
    if (now := next((one for one in found if one.active), None)) is not None:
        return Standing("running", now.message)
    runs = [run for order in asked for run in service.runs(service.arms(lab, order.id))]
    if all(run.state == "done" or run.end().get("code") == "run.diverged" for run in runs):
        return Standing("done")
    return Standing("stopped", next(one.message for one in found if one.state != "done"))


class Cost(NamedTuple):
    """How many runs an exercise still takes, and their seconds; None where nothing was timed."""

    runs: int
    seconds: float | None


def cost(lab: Lab, asked: Sequence[Order], images: ImageSet, natural: ImageSet) -> Cost:
    """Return what is left to train of an exercise: runs that are finished cost nothing."""
    done = {run.id for run in lab.runs() if run.state == "done"}
    runs, seconds = 0, []
    for order in asked:
        each = {one.id: one for _, by_seed in experiments(order) for one in by_seed if one.id not in done}
        sizes = estimate.sizes(images, natural, dataset.parts(images, order.training, 0))
        runs += len(each)
        seconds += [estimate.seconds(lab, list(each.values()), sizes)] if each else []
    return Cost(runs, None if None in seconds else sum(filter(None, seconds)))


def findings(lab: Lab, exercise: Exercise, asked: Sequence[Order]) -> list[dict[str, Any]]:
    """Return a judged row for each pair of arms, the first of which answers the question, each with its `sentence`.

    All pairs of an exercise are one family of tests. `run.missing` where an arm is not there.
    """
    images, order = dataset.load(lab.data / asked[0].data), asked[0]
    groups = None if images.groups is None else images.groups[dataset.parts(images, order.training, 0).test]
    arms = [service.arms(lab, one.id) for one in asked]
    rows = []
    for kind, side, other in exercise.pairs:
        one, two = (_arm(arms[-1 if each.broken else 0], each) for each in (side, other))
        metric = differences.metrics(one.runs[0])[0] if kind == "task" else kind
        names = {"arm": _called(exercise, one, side), "baseline": _called(exercise, two, other)}
        rows.append({"metric": metric, **names, **_difference(lab, metric, one, two, groups)})
    return [{**row, "sentence": verdict.sentence(verdict.FAMILY[row["metric"]], row)} for row in verdict.judged(rows)]


def _arm(arms: Sequence[Arm], side: Side) -> Arm:
    return next(arm for arm in arms if (arm.regularizer.name != "none") == bool(side.strength) and arm.strength == side.strength)


def _called(exercise: Exercise, arm: Arm, side: Side) -> str:
    return f"{arm.name} {exercise.called}".strip() if side.broken else arm.name


def _difference(lab: Lab, metric: str, one: Arm, two: Arm, groups: Any) -> dict[str, Any]:
    """Return the paired difference of two arms on the same test images, or why there is none."""
    try:
        if ended := [f"{arm.name}: {run.end().get('message', '')}" for arm in (one, two) for run in arm.runs if not _done(run)]:
            raise ValueError(" ".join(ended).rstrip(".") or "a run is not finished")
        return asdict(differences.between(lab, metric, list(zip(one.runs, two.runs, strict=True)), groups))
    except ValueError as error:
        nothing = dict.fromkeys(("difference", "low", "high", "p_value", "patients"))
        return {**nothing, "n": 0, "seeds": len(one.runs), "difference_reason": str(error)}


def _done(run: Run) -> bool:
    return run.state == "done"


def answer(exercise: Exercise, rows: Sequence[Mapping[str, Any]], predicted: str) -> list[tuple[str, str]]:
    """Return prediction, expectation and finding as pairs of a heading and a sentence; equal words whatever was found."""
    if predicted not in exercise.answers:
        raise SettingError("setting.unknown", f"There is no answer {predicted!r}; choose one first.")
    found = rows[0]["verdict"]
    said = exercise.answers[found] if found else f"No answer: {rows[0]['verdict_reason']}"
    return [
        ("You predicted", f"{exercise.answers[predicted]}."),
        ("Theory suggests", f"{exercise.answers[exercise.expected]}, since {exercise.why}."),
        ("These runs say", f"{said}."),
    ]


def chance(lab: Lab, exercise: Exercise, asked: Sequence[Order]) -> str:
    """Say how well arms of shuffled labels name test images beside guessing; empty where nothing was shuffled or guessed."""
    images, order = dataset.load(lab.data / asked[-1].data), asked[-1]
    if not order.training.shuffle_labels or images.task != "single_label":
        return ""
    parts = []
    for arm in service.arms(lab, order.id):
        for run in filter(_done, arm.runs):
            found = run.measures()["accuracy"]
            value, low, high = (found.get(f"balanced_accuracy{end}") for end in ("", "_low", "_high"))
            if None not in (value, low, high):
                parts.append(f"{arm.name} {value:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {found['n']} images)")
    guess = f"guessing gives {1 / len(images.classes):.3f} in {len(images.classes)} classes"
    return f"Balanced accuracy on the true labels of the test images: {', '.join(parts)}; {guess}." if parts else ""


SPEAKS_OF = (
    "One seed each: this speaks of these runs and never of the methods, and another seed may turn it round. The p-values of the "
    "{n} comparisons are adjusted together (Holm)."
)


def about(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what the sentences of an exercise speak of."""
    return SPEAKS_OF.format(n=sum(row["p_adjusted"] is not None for row in rows))
