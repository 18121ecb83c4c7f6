"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rift.errors import SettingError

Data = Annotated[str, typer.Argument(help="zip or folder of class folders, CSV + images, MedMNIST .npz, or sample:NAME")]
Out = Annotated[Path, typer.Option("--out", help="folder for comparison.json, report.html and the lab")]
Backbone = Annotated[str, typer.Option("--backbone", help="NAME or NAME:key=value,key=value")]
Methods = Annotated[list[str] | None, typer.Option("--method", help="NAME or NAME:key=value; may be repeated (default full)")]
Regularizers = Annotated[
    list[str] | None, typer.Option("--regularizer", help="NAME or NAME:key=value; may be repeated (default rift)")
]
Arms = Annotated[
    list[str] | None,
    typer.Option("--arm", help="METHOD+REGULARIZER@STRENGTH: one arm of up to six, instead of the three above; to be repeated"),
]
Patients = Annotated[
    str, typer.Option("--patients", help="which images belong together: auto, none, column:NAME, prefix:_, prefix:- or folder")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="passes over the training images")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=100, help="how many seeds; every arm is trained once from each")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE: a training setting, or preset=NAME; may be repeated")]
Natural = Annotated[str, typer.Option("--natural", help="bundled, a name of `list natural`, or a zip of folders named by label")]
LeaveOutSmall = Annotated[bool, typer.Option("--leave-out-small", help="leave out classes with fewer than three images")]
Task = Annotated[str | None, typer.Option("--task", help="a name from `list tasks` (default: what the labels ask for)")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
LabFolder = Annotated[Path | None, typer.Option("--lab", help="folder of runs and caches (default OUT/lab)")]
Json = Annotated[bool, typer.Option("--json", help="print the result document alone on standard output")]
Devices = Annotated[
    int,
    typer.Option(
        "--devices", min=1, max=64, help="GPUs of one machine (with --device cpu, processes) that share each batch of an arm"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=1024, help="runs at once (default 1; on a cluster as many as it has room for)"),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        help="local; or ray: the Ray at RAY_ADDRESS, else one that is started here; or ray://HOST:PORT. Every machine must see"
        " the lab's folder at the same path, on a file system whose locks hold between machines (NFS 4, Lustre with flock,"
        " CephFS; each is asked first), and have rift and the backbone's weights at hand; images are read from the lab",
    ),
]
OrLocal = Annotated[
    bool, typer.Option("--or-local", help="work on this machine where the cluster cannot be used; else you are asked")
]


def training(sets: list[str] | None, epochs: int | None) -> dict[str, Any]:
    """Return the training settings that `--set` and `--epochs` give."""
    return pairs(sets) | ({"epochs": epochs} if epochs is not None else {})


def pairs(sets: list[str] | None) -> dict[str, str]:
    """Return what repeated `--set NAME=VALUE` give; `setting.unknown` for anything else."""
    found = {}
    for item in sets or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError("setting.unknown", f"--set {item!r} is not NAME=VALUE.")
        found[key.strip()] = value.strip()
    return found
