"""What the public endpoints take and answer, as plain functions: a comparison is ordered in the words of the command line.

`settings` has the names of the options of `python -m rift compare`. Nothing here opens a file that a caller names: data are in
the lab already, are a sample, or were uploaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rift import api, cage, catalog, dataset, lineup, patients, quota, service
from rift.config import Choice, Settings, Strength
from rift.errors import DataError, SettingError
from rift.orders import Order
from rift.runs import Lab

Uploaded = Callable[[Any], Path | None]  # the file that a value stands for, None where it stands for none


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """Let `set` be what the command line repeats, `["shots=5"]`, as well as `{"shots": 5}`."""
    value = _several(value)
    if isinstance(value, list | tuple) and all(isinstance(one, str) and "=" in one for one in value):
        return {key.strip(): text.strip() for key, _, text in (one.partition("=") for one in value)}
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1, max_length=16)]


class Asked(Settings):
    """The options of `compare`, by name."""

    backbone: str = "embedded"
    method: Names = ("full",)
    regularizer: Names = ("rift",)
    strength: Strength = 1.0
    arm: Annotated[tuple[str, ...], BeforeValidator(_several), Field(max_length=16)] = ()
    patients: str = "auto"
    epochs: int | None = None
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    set: Annotated[dict[str, Any], BeforeValidator(_pairs)] = Field(default_factory=dict)
    natural: Any = "bundled"
    leave_out_small: bool = False
    task: str | None = None


def start(lab: Lab, data: Any, settings: Any, *, device: str = "auto", uploaded: Uploaded = lambda value: None) -> str:
    """Order a comparison and return its id; raises any UserError, and then nothing is queued.

    `data` is `sample:NAME`, the digest of a set in the lab, or an uploaded file, which `uploaded` finds.
    """
    order, source = read(lab, data, settings, uploaded)
    return service.start(lab, order, source, device=device)


def read(lab: Lab, data: Any, settings: Any, uploaded: Uploaded = lambda value: None) -> tuple[Order, str]:
    """Return the order that these words stand for, and how its data were given; its image sets are in the lab then."""
    if not isinstance(settings or {}, Mapping):
        raise SettingError("setting.unknown", f'settings is {settings!r}; give an object of options, such as {{"epochs": 3}}.')
    asked = catalog.validated(Asked, {key.replace("-", "_"): value for key, value in (settings or {}).items()}, "settings")
    training = api.settings_of(asked.set | ({} if asked.epochs is None else {"epochs": asked.epochs}))
    task = catalog.check("tasks", catalog.parse(asked.task)) if asked.task else None
    line_up = lineup.asked(asked.method, asked.regularizer, (asked.strength,), asked.arm)
    catalog.refuse_files("backbones", asked.backbone)
    backbone = catalog.check("backbones", catalog.parse(asked.backbone))
    images, source = _images(lab, data, asked.leave_out_small, asked.patients, uploaded)
    order = Order(
        data=images.digest,
        natural=_natural(lab, asked.natural, uploaded).digest,
        backbone=backbone,
        training=training,
        seeds=asked.seeds,
        task=task or Choice(name=images.task),
        **line_up,
    )
    return order, source


def status(lab: Lab, name: str, *, device: str = "auto") -> dict[str, Any]:
    """Return how far a comparison is: `state`, `progress` in [0, 1], `seconds_left` or None, and a `message` in words."""
    found = service.status(lab, str(name), device=device)
    return {key: getattr(found, key) for key in ("state", "progress", "seconds_left", "message")}


def stop(lab: Lab, name: str) -> None:
    """Stop a comparison and keep what is done; one that has ended stays as it is."""
    service.stop(lab, str(name))


def result(lab: Lab, name: str) -> dict[str, Any]:
    """Return the comparison document of `contract.md`; `run.missing` while no run is done."""
    return service.result(lab, str(name))


def _images(lab: Lab, data: Any, leave_out_small: bool, together: str, uploaded: Uploaded) -> tuple[dataset.ImageSet, str]:
    if (path := uploaded(data)) is not None:
        read = cage.read(path, lab.data, limits=quota.limits(lab), leave_out_small=leave_out_small)
        return patients.choose(read, together), path.name
    if isinstance(data, str) and data.startswith("sample:"):
        return api.open_data(data, lab.data, patients=together), data
    if (found := _stored(lab, data)) is not None:
        return patients.choose(found, together), ""
    raise DataError(
        "data.missing",
        f"data is {str(data)[:80]!r}; give sample:NAME ({', '.join(catalog.names('samples'))}), the digest of images that are "
        "here, or an uploaded file (handle_file in gradio_client).",
    )


def _natural(lab: Lab, natural: Any, uploaded: Uploaded) -> dataset.ImageSet:
    if (path := uploaded(natural)) is not None:
        return cage.read(path, lab.data, limits=quota.limits(lab), least=1, least_classes=1, findings=False)
    if (found := _stored(lab, natural)) is not None:
        return found
    choice = catalog.check("natural", catalog.parse(str(natural)))  # a name of the menu: no path is opened
    return catalog.door("natural", choice.name)(lab.data, **choice.options)


def _stored(lab: Lab, digest: Any) -> dataset.ImageSet | None:
    known = isinstance(digest, str) and digest.isalnum() and (lab.data / digest / "manifest.json").exists()
    return dataset.load(lab.data / digest) if known else None
