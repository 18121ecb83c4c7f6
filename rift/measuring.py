"""Measuring from the page: ask, see how far it is, stop, go on, and what is on show. The work is done by the lab's worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rift import catalog, comparison, dataset, jobs, measurement, measures, service
from rift.config import Choice
from rift.errors import RunError
from rift.estimate import duration
from rift.measurement import Measurement
from rift.runs import Lab, Run

FIRST_SECONDS = 30.0  # of one arm with the first preset, which its settings were chosen by; a diagnostic may say its own
MOST_PICTURES = 400  # in one gallery; a page with more of them is slow to scroll


@dataclass(frozen=True)
class Status:
    """How far a measurement is; `state` is empty where none was asked for. `problems`: arm, sentence, code."""

    state: str = ""
    progress: float = 0.0
    seconds_left: float | None = None
    message: str = ""
    problems: tuple[tuple[str, str, str], ...] = ()

    @property
    def active(self) -> bool:
        """Whether something is still to come without anybody's doing."""
        return self.state in ("queued", "evaluating")


def runs(lab: Lab, name: str, diagnostic: str) -> dict[str, Run]:
    """Return the run of each arm whose measures are on show, that of the first seed that is done, or every run by its name."""
    done = [(arm, run) for arm in comparison.trained(service.arms(lab, name)) for run in arm.runs if run.state == "done"]
    if catalog.of_every_run(diagnostic):
        return {comparison.name_of_run(arm, run): run for arm, run in done}
    return {arm.name: next(one for its, one in done if its is arm) for arm, _ in done}


def start(home: Lab, lab: Lab, name: str, asked: Choice, *, device: str = "auto") -> None:
    """Ask for one diagnostic on all finished arms of a comparison of `lab`, which the worker of the lab `home` carries out.

    Raises `setting.range` and `setting.unknown` for wrong settings, `run.missing` where no arm is finished, `run.read_only` for a
    comparison that was opened from a bundle. A measurement of this
    diagnostic that waits or is at work stays as it is.
    """
    if lab.read_only:
        why = "This comparison was opened from a bundle and is read-only; it can be measured where it was trained."
        raise RunError("run.read_only", why)
    checked, found = catalog.check("diagnostics", asked), runs(lab, name, asked.name)
    if not found:
        raise RunError("run.missing", "No arm of this comparison is finished yet; it can be measured when one is.")
    Measurement(lab, name, asked.name).place(checked.options, {arm: run.id for arm, run in found.items()})
    jobs.ensure_worker(home, device)


def stop(lab: Lab, name: str, diagnostic: str) -> None:
    """Stop a measurement within a second and keep what is done."""
    if (one := Measurement(lab, name, diagnostic)).active:
        jobs.stop(one)


def go_on(home: Lab, lab: Lab, name: str, diagnostic: str, *, device: str = "auto") -> None:
    """Take up a measurement that ended before its end, from what it kept."""
    Measurement(lab, name, diagnostic).requeue()
    jobs.ensure_worker(home, device)


def status(home: Lab, lab: Lab, name: str, diagnostic: str, *, device: str = "auto") -> Status:
    """Return how far the newest measurement of a diagnostic is; a queue without a worker gets one."""
    one = Measurement(lab, name, diagnostic)
    match state := one.state:
        case "":
            return Status()
        case "queued":
            jobs.ensure_worker(home, device)
            return Status(state, message=_waiting(home, one))
        case "evaluating":
            event = one.last_event()
            if event["event"] != "progress":
                return Status(state, message="Starting.")
            share = event["done"] / event["total"] if event["total"] else 0.0
            what = f": {event['done']} of {event['total']} {event['what']}" if event["total"] else ": loading the models"
            where = f"{event['arm']}, arm {event['place'] + 1} of {event['of']}{what}."
            return Status(state, (event["place"] + share) / event["of"], event["left"], where)
    problems = tuple((one["arm"], one["message"], one["code"]) for one in one.last_event().get("errors", ()))
    words = {
        "done": "Finished." if not problems else "Finished; not every arm could be measured.",
        "stopped": "Stopped; what was done is kept. Go on takes it up from there.",
        "failed": "It could not be measured.",
        "lost": "The process that measured is gone; what was done is kept. Go on takes it up from there.",
    }
    return Status(state, message=words[state], problems=problems)


def _waiting(home: Lab, one: Measurement) -> str:
    """Say what comes before a measurement."""
    before = [other for other in measurement.queue(home) if other.path != one.path]
    if any(run.is_alive for run in home.runs()):
        return "Waiting for the run that trains now; it comes before the next one."
    return f"Waiting for {before[0].diagnostic.replace('_', ' ')}, which is measured now." if before else "Starting."


def active(lab: Lab, name: str) -> list[str]:
    """Return the diagnostics of a comparison that wait or are measured."""
    return [
        one.diagnostic for one in measurement.queue(lab) if one.path.parent == lab.measuring and one.id.startswith(f"{name}-")
    ]


def version(lab: Lab, name: str, diagnostic: str) -> str:
    """Return what changes when this diagnostic was measured anew on any arm."""
    paths = [run.path / "measures" / f"{diagnostic}.json" for run in runs(lab, name, diagnostic).values()]
    return " ".join(str(path.stat().st_mtime_ns) if path.exists() else "-" for path in paths)


def results(lab: Lab, name: str, diagnostic: str) -> dict[str, dict[str, Any]]:
    """Return what one diagnostic measured, by arm; empty where it measured none."""
    found = {arm: (run, run.measured(diagnostic)) for arm, run in runs(lab, name, diagnostic).items()}
    return {arm: one["runs"][run.id] for arm, (run, one) in found.items() if one}


def about(lab: Lab, name: str, diagnostic: str) -> str:
    """Say with which settings what is on show was measured, and which arms it lacks; empty where nothing is."""
    documents = {arm: run.measured(diagnostic) for arm, run in runs(lab, name, diagnostic).items()}
    groups: dict[str, list[str]] = {}
    for arm, one in documents.items():
        groups.setdefault(_said(diagnostic, one["settings"]) if one else "", []).append(arm)
    missing = groups.pop("", [])
    if not groups:
        return ""
    parts = [f"{' and '.join(arms)} {settings}" for settings, arms in groups.items()]
    text = f"Measured {next(iter(groups))}." if len(groups) == 1 else f"Measured: {'; '.join(parts)}."
    return text + (f" Not measured yet: {', '.join(missing)}." if missing else "")


def _said(diagnostic: str, settings: Mapping[str, Any]) -> str:
    """Return settings as `with the preset quick (points = 11)`."""
    listed = ", ".join(f"{key.replace('_', ' ')} = {value}" for key, value in settings.items())
    presets = forms(diagnostic)
    names = [name for name, one in presets.items() if one == settings and len(presets) > 1]
    if not settings:
        return "as it always is: there is nothing to set"
    return f"with the preset {names[0]} ({listed})" if names else f"with {listed}"


def forms(diagnostic: str) -> dict[str, dict[str, Any]]:
    """Return all settings of each preset; of presets that set the same only the first."""
    found: dict[str, dict[str, Any]] = {}
    for name in catalog.presets(diagnostic):
        options = catalog.check("diagnostics", Choice(name=diagnostic, options={"preset": name})).options
        if options not in found.values():
            found[name] = options
    return found


def plan(lab: Lab, name: str, diagnostic: str) -> str:
    """Say what measuring will do, and how long each preset took where it was measured in this lab before."""
    arms = list(runs(lab, name, diagnostic))
    if not arms:
        return "No arm of this comparison is finished yet."
    what = "Runs the models again" if catalog.captures(diagnostic) else "Takes what is kept of the models, without running them"
    times = {preset: measurement.seconds(lab, Choice(name=diagnostic, options=one)) for preset, one in forms(diagnostic).items()}
    took = [f"{preset} {duration(one * len(arms))}" for preset, one in times.items() if one is not None]
    last = f" Last time it took: {', '.join(took)}." if took else f" {_first(diagnostic, len(arms))}"
    return (
        f"{what}, for {len(arms)} arm{'s' if len(arms) > 1 else ''}: {', '.join(arms)}.{last} You may close this page meanwhile."
    )


def _first(diagnostic: str, arms: int) -> str:
    """Say how long a first time takes, of which nothing but a rough idea can be had."""
    if not catalog.captures(diagnostic):
        return "It takes seconds."
    preset = next(iter(forms(diagnostic)))
    each = getattr(catalog.module("diagnostics", diagnostic), "FIRST_SECONDS", FIRST_SECONDS)
    return (
        f"It was not measured in this lab before. The preset {preset} is made for about {duration(each * arms)} on two "
        "idle cores with the small embedded model and 200 images; larger models take longer, and how much is said as it goes."
    )


def commands(lab: Lab, name: str, diagnostic: str) -> list[str]:
    """Return what measures the same from the command line; `LAB` stands for the lab's folder."""
    preset = next(iter(forms(diagnostic)))
    more = f" --set preset={preset}" if len(forms(diagnostic)) > 1 else ""
    found = runs(lab, name, diagnostic).values()
    return [f"python -m rift measure {run.id} --lab LAB --diagnostic {diagnostic}{more}" for run in found]


def pictures(lab: Lab, name: str, diagnostic: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a diagnostic's gallery; each picture says where it is: `set` and index, or `captured` and its place.

    A picture that is no longer there, as when images were deleted, is left out.
    """
    module = catalog.module("diagnostics", diagnostic)
    if not hasattr(module, "gallery") or not found:
        return
    order, shown = service.order_of(lab, name)[0], runs(lab, name, diagnostic)
    places: dict[str, int] = {}
    photos = (lab.data / order.natural / "blobs.bin").exists()
    left = MOST_PICTURES
    for row in module.gallery(found):
        cells = []
        for cell in row["pictures"][:left]:
            place: tuple[Any, ...] | None = None
            if "id" in cell:
                places = places or _places(lab, order.data)
                place = ("set", order.data, places[cell["id"]]) if cell["id"] in places else None
            elif "natural" in cell:
                place = ("set", order.natural, int(cell["natural"])) if photos else None
            elif catalog.captures(diagnostic) and cell.get("arm") in shown and (one := shown[cell["arm"]].measured(diagnostic)):
                kept = measures.captures_path(shown[cell["arm"]], Choice(name=diagnostic, options=one["settings"]))
                if kept.exists():
                    place = ("captured", shown[cell["arm"]].id, kept.stem, str(cell["array"]), int(cell["index"]))
            if place is not None:
                cells.append({"caption": str(cell["caption"]), "place": place})
        left -= len(cells)
        if cells:
            yield {"caption": str(row["caption"]), "pictures": cells}


def _places(lab: Lab, data: str) -> dict[str, int]:
    images = dataset.load(lab.data / data)
    return {str(id): place for place, id in enumerate(images.ids)} if images.has_pictures else {}


def captured(lab: Lab, run: str, stem: str, array: str, index: int) -> np.ndarray:
    """Return one picture `(s, s, 3)` uint8 of a run's captured arrays; LookupError or OSError where there is none."""
    if not (run + stem).replace("-", "").replace("_", "").isalnum():  # no name from outside leaves the folder
        raise LookupError(stem)
    with np.load(lab.run(run).path / "captures" / f"{stem}.npz", allow_pickle=False) as stored:
        found = stored[array]
    if found.ndim != 4 or found.shape[-1] != 3 or found.dtype != np.uint8 or not 0 <= index < len(found):
        raise LookupError(array)
    return found[index]
