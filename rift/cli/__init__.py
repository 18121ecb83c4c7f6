"""The command line: `python -m rift …`. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rift.catalog import strengths as numbers
from rift.cli._options import (
    Arms,
    Backbone,
    Cluster,
    Data,
    Device,
    Devices,
    Epochs,
    Json,
    LabFolder,
    LeaveOutSmall,
    Methods,
    Natural,
    OrLocal,
    Out,
    Patients,
    Regularizers,
    Seeds,
    Sets,
    Task,
    Workers,
    pairs,
    training,
)
from rift.errors import RunError, UserError

app = typer.Typer(
    name="rift",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Finetune a Vision Transformer on medical images with and without RIFT, and see what it keeps and what it forgets.",
)

# typer carries its own copy of click and does not export the parent of its usage errors
UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@app.command()
def compare(
    data: Data,
    out: Out,
    backbone: Backbone = "embedded",
    method: Methods = None,
    regularizer: Regularizers = None,
    strength: Annotated[str, typer.Option("--strength", help="weight of the penalty, or auto")] = "1",
    arm: Arms = None,
    epochs: Epochs = None,
    seeds: Seeds = 1,
    set_: Sets = None,
    natural: Natural = "bundled",
    leave_out_small: LeaveOutSmall = False,
    patients: Patients = "auto",
    task: Task = None,
    device: Device = "auto",
    devices: Devices = 1,
    lab: LabFolder = None,
    json_: Json = False,
) -> None:
    """Finetune with and without the regularizer, and write OUT/comparison.json and OUT/report.html."""
    from rift import api

    _compare(locals(), numbers("--strength", strength), api.compare, arms=arm or [], patients=patients, devices=devices)


@app.command()
def sweep(
    data: Annotated[list[str], typer.Argument(help="one or several sets, each as for compare")],
    out: Out,
    strengths: Annotated[str, typer.Option("--strengths", help="comma-separated, for example 0.1,1,10,auto")],
    backbone: Backbone = "embedded",
    method: Methods = None,
    regularizer: Regularizers = None,
    epochs: Epochs = None,
    seeds: Seeds = 1,
    set_: Sets = None,
    natural: Natural = "bundled",
    leave_out_small: LeaveOutSmall = False,
    task: Task = None,
    device: Device = "auto",
    devices: Devices = 1,
    lab: LabFolder = None,
    workers: Workers = None,
    cluster: Cluster = "local",
    or_local: OrLocal = False,
    json_: Json = False,
) -> None:
    """Compare several strengths: the arms are method × regularizer × strength; writes OUT/{sweep.json,table.csv,report.html}."""
    from rift import cluster as machines
    from rift import sweeping

    try:
        machines.connect(cluster)
    except RunError as error:
        if not (or_local or _agrees(error)):
            raise
        _say(f"{error.sentence} Working on this machine instead.")
        cluster = "local"
    who = {"workers": workers, "devices": devices, "cluster": cluster}
    _compare(locals(), numbers("--strengths", strengths), sweeping.sweep, **who)


@app.command()
def calibrate(
    data: Data,
    out: Out,
    method: Annotated[str, typer.Option("--method", help="NAME or NAME:key=value, the one arm's")] = "full",
    epochs: Epochs = None,
    seeds: Annotated[int, typer.Option("--seeds", min=6, max=100, help="how many seeds of the arm")] = 24,
    set_: Sets = None,
    natural: Natural = "bundled",
    device: Device = "auto",
    lab: LabFolder = None,
    json_: Json = False,
) -> None:
    """Compare many seeds of one arm with themselves: how often do the tests call a difference that is none, or miss one?"""
    from rift import calibration

    more = {"training": training(set_, epochs), "natural": natural, "device": device, "lab": lab, "say": _say}
    found = calibration.run(data, out, method=method, seeds=seeds, **more)
    _print(found, json_, calibration.table(found))


@app.command()
def verify(data: Data, leave_out_small: LeaveOutSmall = False, json_: Json = False) -> None:
    """Read the images and say what would be kept, changed, skipped or refused; nothing is stored."""
    from rift import api

    document = api.verify(data, leave_out_small=leave_out_small)
    lines = [f"{document['name']}: {document['kept']} images in {len(document['classes'])} classes, {document['task']}"]
    lines += [f"  {name}: {count}" for name, count in document["counts"].items()]
    for kind in ("changed", "skipped", "warnings"):
        lines += [f"{kind}: {item['file']}: {item['message']} [{item['code']}]" for item in document[kind]]
    _print(document, json_, "\n".join(lines))


@app.command()
def measure(
    run: Annotated[str, typer.Argument(help="run directory, or an id within --lab")],
    diagnostic: Annotated[str, typer.Option("--diagnostic", help="a name from `list diagnostics`")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: a setting of the diagnostic; may be repeated")
    ] = None,
    lab: LabFolder = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Measure one diagnostic on a finished run: again with other settings, or for the first time where it needs the models."""
    from rift import api

    document = api.measure(run, diagnostic, pairs(set_), lab=lab, device=device, say=_say)
    values = next(iter(document["runs"].values())).items()
    lines = [f"{key}: {value}" for key, value in values if not isinstance(value, list)]
    _print(document, json_, "\n".join([*lines, api.sentence(document)]))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="run directories, or ids within --lab")],
    out: Annotated[Path, typer.Option("--out", help="the HTML file")],
    lab: LabFolder = None,
) -> None:
    """Write one self-contained HTML page about finished runs of the same images."""
    from rift import api

    api.report(runs, out, lab=lab)
    _say(f"The report is {out}.")


@app.command("list")
def list_(
    menu: Annotated[str, typer.Argument(help="backbones, methods, regularizers, tasks, diagnostics, natural, samples or runs")],
    lab: LabFolder = None,
    json_: Json = False,
) -> None:
    """List a menu with what each choice does and its settings, or the runs of a lab."""
    from rift import api

    rows = api.listing(menu, lab)
    _print(rows, json_, "\n".join(f"{row['name']:20} {row['summary']}" for row in rows))


@app.command()
def pretrain(
    images: Annotated[Path, typer.Option("--images", help="training pack (.npz of encoded photos with wnids)")],
    validation: Annotated[Path, typer.Option("--validation", help="validation pack")],
    work: Annotated[Path, typer.Option("--work", help="folder for the teacher's embeddings and the checkpoint")],
    out: Annotated[Path, typer.Option("--out", help="folder for embedded.safetensors and its card")] = Path("assets"),
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="safetensors of the ViT-tiny; without it timm downloads them")
    ] = None,
    coarse: Annotated[
        Path | None, typer.Option("--coarse", help="training pack of photos of everyday words (CIFAR-10's training photos)")
    ] = None,
    cifar: Annotated[Path | None, typer.Option("--cifar", help="zip of CIFAR-10 test folders, for the card")] = None,
    unseen: Annotated[Path | None, typer.Option("--unseen", help="zip of ImageNet photos, one a class, for the card")] = None,
    stages: Annotated[
        str, typer.Option("--stages", help="epochs@pixels, comma-separated; a + begins anew at half the learning rate")
    ] = "6@32,4@48,2@56+3@48,5@64",
    device: Device = "auto",
) -> None:
    """Make the embedded model: distill a small image tower and a text tower from a ViT-tiny."""
    from rift import pretrain as recipe
    from rift.recipe import pick_device

    cycles = [[tuple(map(int, stage.split("@"))) for stage in cycle.split(",")] for cycle in stages.split("+")]
    files = {"teacher": teacher, "coarse": coarse, "cifar": cifar, "unseen": unseen}
    recipe.run(images, validation, work, out, **files, cycles=cycles, device=pick_device(device).type, log=_say)


@app.command()
def example(
    out: Annotated[Path | None, typer.Option("--out", help="where to write it (default: the one the app ships)")] = None,
    measured: Annotated[list[Path] | None, typer.Option("--measured", help="comparison.json of a real set, numbers only")] = None,
) -> None:
    """Make the finished comparison that the app opens with; with --measured, the table of numbers beside it."""
    from rift import example as recipe

    recipe.condense(measured) if measured else recipe.make(out or recipe.PATH, _say)


@app.command(hidden=True)
def work(
    lab: Annotated[Path, typer.Argument()],
    device: Device = "auto",
    devices: Devices = 1,
    run: Annotated[list[str] | None, typer.Option("--run")] = None,
    stand_by: Annotated[bool, typer.Option("--stand-by")] = False,
) -> None:
    """Be a worker process: execute a lab's queued runs until none is left."""
    from rift import jobs
    from rift.runs import Lab

    jobs.work(Lab(lab), device, run, devices, stand_by)


def _compare(asked: dict[str, Any], strengths: list[Any], job: Callable[..., dict[str, Any]], **more: Any) -> None:
    """Carry out what `compare` and `sweep` have in common; `asked` are the options by their names."""
    same = {"methods": asked["method"] or ["full"], "regularizers": asked["regularizer"] or ["rift"]}
    same |= {
        key: asked[key] for key in ("data", "out", "backbone", "seeds", "natural", "leave_out_small", "task", "device", "lab")
    }
    result = job(**same, strengths=strengths, training=training(asked["set_"], asked["epochs"]), say=_say, **more)
    _print(result, asked["json_"], f"The report is {asked['out'] / 'report.html'}.")


def _agrees(error: RunError) -> bool:
    """Whether the person at the terminal, if there is one, wants this machine to do what a cluster cannot."""
    return sys.stdin.isatty() and typer.confirm(f"{error.sentence} Work on this machine instead?", err=True)


def _print(document: Any, as_json: bool, text: str) -> None:
    print(json.dumps(document, indent=1, ensure_ascii=False) if as_json else text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line; returns 0 done, 2 the user can mend it, 1 our fault, 130 stopped."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the runs in order
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UserError as error:
        _say(f"error[{error.code}]: {error.sentence}")
        return 130 if isinstance(error, RunError) and error.code == "run.stopped" else 2
    except (KeyboardInterrupt, typer.Abort):
        _say("error[run.stopped]: Stopped; what was done is kept.")
        return 130
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            _say(error.format_message())
            return 2
        code = "setting.range" if isinstance(error, typer.BadParameter) else "setting.unknown"
        _say(f"error[{code}]: {error.format_message().rstrip('.')}.")
        return 2
    except Exception:
        traceback.print_exc()
        return 1
