"""The main job for callers in Python and for the command line: read images, queue the arms, wait, compare, report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rift import catalog, comparison, following, lineup, noted, service, tuning
from rift import cluster as machines
from rift import report as page
from rift.comparison import Arm
from rift.config import PRESETS, SHUFFLED, Choice, Strength, Training
from rift.errors import RunError, SettingError, of_code
from rift.following import Say
from rift.notebook import Comparison
from rift.orders import Order
from rift.runs import SCHEMA, Lab, write_json


def compare(
    data: str | Path,
    out: str | Path,
    *,
    backbone: str = "embedded",
    methods: Sequence[str] = ("full",),
    regularizers: Sequence[str] = ("rift",),
    strengths: Sequence[Strength] = (1.0,),
    arms: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    seeds: int = 1,
    natural: str | Path = "bundled",
    leave_out_small: bool = False,
    patients: str = "auto",
    task: str | None = None,
    device: str = "auto",
    lab: str | Path | None = None,
    workers: int | None = None,
    devices: int = 1,
    cluster: str = "local",
    document_name: str = "comparison.json",
    say: Say = lambda text: None,
) -> Comparison:
    """Finetune every arm from every seed, write the document and `report.html` into `out`, and return the document.

    It is a dict that has `figures`, `verdicts`, `table` and `report` besides, and shows itself in a notebook.

    `data` and `natural` are what `contract.md` calls DATA; the arm `none` is always there, unless `arms` lists each one as
    `METHOD+REGULARIZER@STRENGTH`; `patients` says which images belong together (see `patients.choose`); `task` is the one that
    the labels ask for, unless another is named.

    `devices` share each batch of an arm (see `distributed`); `cluster` ("local", "ray", "ray://HOST:PORT") takes the runs.

    Raises any UserError, and then leaves nothing half stored; `run.stopped` after Ctrl-C, with all
    finished work kept in the lab.
    """
    out = Path(out)
    settings = settings_of(training or {})
    model = catalog.check("backbones", catalog.parse(backbone))
    wanted = catalog.parse(task) if task else None
    if wanted:
        catalog.check("tasks", wanted)
    line_up = lineup.asked(methods, regularizers, strengths, arms)  # a wrong choice is told before the images are read
    crew = machines.crew(cluster, device, workers, devices)
    if not Path(natural).exists() and not str(natural).endswith(".zip"):
        catalog.check("natural", catalog.parse(str(natural)))  # before the images are read
    tried = any(arm.strength == "auto" for arm in line_up["arms"]) if "arms" in line_up else "auto" in line_up["strengths"]
    asked = (leave_out_small, patients, wanted, settings, tried)
    here, images, others, parts = _read(data, natural, Lab(lab) if lab else None, out, *asked, say)
    counts = images.counts(parts)
    kinds = "findings" if images.task == "multi_label" else "classes"
    say(f"{len(images)} images in {len(images.classes)} {kinds}: " + ", ".join(f"{n} {part}" for part, n in counts.items()))
    order = Order(
        data=images.digest,
        natural=others.digest,
        backbone=model,
        training=settings,
        seeds=seeds,
        task=wanted or Choice(name=images.task),
        **line_up,
    )
    name = service.place(here, order, source=str(data))
    planned = service.arms(here, name)
    names = {run.id: f"{arm.name}, seed {run.experiment.seed}" for arm in comparison.trained(planned) for run in arm.runs}
    for arm in planned:
        if arm.note:
            say(arm.note)
    following.finish(here, service.runs(planned), names, crew, say)
    document = _publish(here, planned, images, others, parts, out, document_name)
    return Comparison(document, lab=here.root, report=out / "report.html")


def _read(
    data: str | Path,
    natural: str | Path,
    lab: Lab | None,
    out: Path,
    leave_out_small: bool,
    patients: str,
    task: Choice | None,
    settings: Training,
    tried: bool,
    say: Say,
) -> tuple[Lab, Any, Any, Any]:
    """Read both sets and see that they can be trained on; returns the lab they are in, both sets and the split."""
    from rift import dataset

    with nullcontext(lab.data) if lab else tempfile.TemporaryDirectory(prefix="rift-") as root:
        say(f"Reading {data} …")
        images = open_data(data, Path(root), leave_out_small=leave_out_small, patients=patients)
        others = open_natural(natural, Path(root))
        dataset.refuse_misfit(images, task or Choice(name=images.task), settings)
        parts = dataset.parts(images, settings, 0)
        if tried:  # a strength to be chosen: too few epochs for it are told before anything is trained
            tuning.plan("strength", settings.epochs, len(parts.train), len(parts.validation))
        if lab is None:
            lab = Lab(out / "lab")
            images, others = (_move(one, lab) for one in (images, others))
    return lab, images, others, parts


def settings_of(values: Mapping[str, Any]) -> Training:
    """Return checked training settings; `preset=NAME` sets a named group first."""
    values = dict(values)
    preset = values.pop("preset", "default")
    if preset not in PRESETS:
        raise SettingError("setting.range", f"There is no preset {preset!r}; there is {', '.join(PRESETS)}.")
    return catalog.validated(Training, PRESETS[preset] | values, "training")


def open_data(data: str | Path, root: Path, *, leave_out_small: bool = False, patients: str = "auto") -> Any:
    """Read DATA into an image set under `root`: a zip, folder, CSV with images, .npz, or `sample:NAME:key=value`.

    `patients` says which images belong together, where that is to be chosen (see `patients.choose`).
    """
    from rift import patients as grouping
    from rift import upload

    text = str(data)
    if text.startswith("sample:"):
        choice = catalog.check("samples", catalog.parse(text.removeprefix("sample:")))
        return grouping.choose(catalog.door("samples", choice.name)(root, **choice.options), patients)
    return grouping.choose(upload.read(Path(data), root, leave_out_small=leave_out_small), patients)


def open_natural(natural: str | Path, root: Path) -> Any:
    """Read natural images: a name of the menu, or a zip or folder of folders named by label."""
    from rift import upload

    name = str(natural).partition(":")[0]
    if name in catalog.names("natural") and not Path(natural).exists():
        choice = catalog.check("natural", catalog.parse(str(natural)))
        return catalog.door("natural", choice.name)(root, **choice.options)
    return upload.read(Path(natural), root, least=1, least_classes=1, findings=False)


def _move(images: Any, lab: Lab) -> Any:
    """Take a set that was read successfully into the lab; until then nothing of it is stored there."""
    from rift import dataset

    target = lab.data / images.digest
    if not target.exists():
        shutil.move(images.folder, target)
    return dataset.load(target)


def _publish(lab: Lab, arms: Sequence[Arm], images: Any, natural: Any, parts: Any, out: Path, name: str | None) -> dict[str, Any]:
    ends = [run.end() for arm in arms for run in arm.runs]
    if not any(run.state == "done" for arm in arms for run in arm.runs):
        first = next(end for end in ends if end)
        if first.get("code"):
            raise of_code(first["code"], first["message"])
        raise RuntimeError(first.get("message", "no run was finished"))
    document = comparison.document(lab, arms, images, natural, parts)
    out.mkdir(parents=True, exist_ok=True)
    if name:
        write_json(out / name, document)
    page.write(document, comparison.measures(arms), out / "report.html", natural=natural.pixels(page.PHOTO_PIXELS))
    return document


def verify(data: str | Path, *, leave_out_small: bool = False) -> dict[str, Any]:
    """Return what would be kept, changed, skipped or refused, as the verify document of `contract.md`; nothing is stored."""
    with tempfile.TemporaryDirectory(prefix="rift-") as root:
        images = open_data(data, Path(root), leave_out_small=leave_out_small)
        counts = {name: int(images.of(index).sum()) for index, name in enumerate(images.classes)}
        head = {"schema": SCHEMA, "name": images.name, "digest": images.digest, "classes": list(images.classes), "counts": counts}
        return head | {"task": images.task} | comparison.report_of(images)


def measure(
    run: str,
    diagnostic: str,
    settings: Mapping[str, Any],
    *,
    lab: str | Path | None = None,
    device: str = "auto",
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure one diagnostic on a finished run with these settings; the document is kept in the run too.

    One that needs the models (it has `capture`) runs them on `device`, unless it did so before with the same settings.
    """
    from rift import measures
    from rift.recipe import pick_device

    chosen = Lab(lab or _lab_of(run)).run(run)
    home = Lab(chosen.path.parents[1])
    if chosen.state != "done":
        raise RunError("run.missing", f"The run {chosen.id} is {chosen.state}; only a finished run can be measured.")
    asked = catalog.check("diagnostics", Choice(name=diagnostic, options=dict(settings)))
    return measures.measure_again(home, chosen, asked, device=pick_device(device), say=say)


def sentence(measured: Mapping[str, Any]) -> str:
    """Return a measured document in words, as the page has them."""
    return str(catalog.module("diagnostics", measured["diagnostic"]).sentence(measured["runs"]))


def _lab_of(run: str) -> Path:
    path = Path(run)
    if not (path / "experiment.json").exists():
        raise RunError("run.missing", f"There is no run directory {run!r}; give one, or an id with --lab.")
    return path.resolve().parents[1]


def report(runs: Sequence[str], out: str | Path, *, lab: str | Path | None = None) -> None:
    """Write one page about finished runs of the same images and backbone."""
    from rift import dataset

    chosen = [Lab(lab or _lab_of(run)).run(run) for run in runs]
    home = Lab(chosen[0].path.parents[1])
    if unfinished := [run.id for run in chosen if run.state != "done"]:
        raise RunError("run.missing", f"Not finished: {', '.join(unfinished)}.")
    asked = [run.experiment for run in chosen]
    draws = ("split_seed", "shots", "balanced", "shuffle_labels")
    drawn = [tuple(getattr(one.training, key) for key in draws) for one in asked]
    if len({(one.data, one.natural, one.backbone.model_dump_json(), *how) for one, how in zip(asked, drawn, strict=True)}) > 1:
        raise SettingError(
            "setting.range", "These runs are of different images or backbones; a report compares runs of the same."
        )
    images, natural = (dataset.load(home.data / digest) for digest in (asked[0].data, asked[0].natural))
    parts = dataset.parts(images, asked[0].training, 0)
    arms = comparison.of_runs(chosen)
    document = comparison.document(home, arms, images, natural, parts)
    page.write(document, comparison.measures(arms), Path(out), natural=natural.pixels(page.PHOTO_PIXELS))


def listing(menu: str, lab: str | Path | None = None) -> list[dict[str, Any]]:
    """Return a menu's choices, or a lab's runs, as `{name, summary, settings}`."""
    if menu == "runs":
        if lab is None:
            raise SettingError("setting.unknown", "list runs needs --lab DIR.")
        rows = []
        for run in Lab(lab).runs():
            one = run.experiment
            shuffled = f", {SHUFFLED}" if one.training.shuffle_labels else ""
            summary = f"{run.state}: {one.backbone.name}, {one.method.name}, {one.regularizer.name}, seed {one.seed}{shuffled}"
            rows.append({"name": run.id, "summary": summary, "settings": one.model_dump(mode="json")})
        noted.of(Path(lab)).keep()
        return rows
    if menu not in catalog.DOORS:
        raise SettingError("setting.unknown", f"There is no menu {menu!r}; there is {', '.join(catalog.DOORS)} and runs.")
    return [
        {
            "name": name,
            "summary": catalog.summary(menu, name),
            "settings": catalog.settings(menu, name).model_json_schema().get("properties", {}),
        }
        for name in catalog.names(menu)
    ]
