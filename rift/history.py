"""All comparisons of a lab as rows of a table, what differs between two of them, and what goes when one is deleted.

A row is derived from the comparison's own files and noted until one of them changes; only the state is looked up each time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from rift import comparison, dataset, disk, jobs, measurement, naming, noted, service, trained
from rift.errors import RunError, UserError
from rift.runs import ENDED, Lab, Run

HEADLINES = {  # by task: what the table shows of each arm
    "single_label": ("balanced_accuracy", "cka_debiased", "natural_accuracy"),
    "multi_label": ("average_precision", "cka_debiased", "natural_accuracy"),
    "reconstruction": ("reconstruction_error", "cka_debiased", "natural_accuracy"),
}
GONE = "images deleted"


class Entry(NamedTuple):
    """One comparison in the table."""

    home: str  # which of the labs it is in
    id: str
    title: str
    images: str  # name of the image set
    arms: tuple[
        tuple[str, dict[str, float | None]], ...
    ]  # each arm with its headline numbers, means over the seeds that are done
    seeds: int
    state: str
    created: str  # ISO, UTC
    pinned: bool

    @property
    def key(self) -> str:
        return f"{self.home}/{self.id}"

    @property
    def text(self) -> str:
        """All that a search looks at, in small letters."""
        return " ".join((self.title, self.images, self.state, self.created, *(arm for arm, _ in self.arms))).casefold()


def entries(labs: Mapping[str, Lab]) -> list[Entry]:
    """Return the comparisons of these labs, pinned ones first, then the newest; one that cannot be read is left out."""
    found = []
    for home, lab in labs.items():
        for name in service.comparisons(lab):
            with suppress(UserError, OSError, ValueError, KeyError):
                found.append(entry(home, lab, name))
        noted.of(lab.root).keep()
    return sorted(found, key=lambda one: (one.pinned, one.created), reverse=True)


def entry(home: str, lab: Lab, name: str) -> Entry:
    """Return one row; `run.missing` where there is no such comparison."""
    notes, asked = noted.of(lab.root), f"comparisons/{name}/order.json"
    data, ids = notes.find("runs", asked, disk.stamp(f"{lab.root}/{asked}"), lambda: _asked(lab, name))
    states = [lab.run(id).state for id in ids]
    files = [asked, f"comparisons/{name}/label.json", f"data/{data}/manifest.json", *(f"runs/{id}/result.json" for id in ids)]
    stamps = [disk.stamp(f"{lab.root}/{file}") for file in files]
    title, images, arms, seeds, created, pinned = notes.find("row", asked, stamps, lambda: _derived(lab, name))
    rows = tuple((arm, numbers) for arm, numbers in arms)
    return Entry(home, name, title, images, rows, seeds, state_of(states), created, pinned)


def _asked(lab: Lab, name: str) -> tuple[str, list[str]]:
    """Return the image set of a comparison and the ids of its runs."""
    return service.order_of(lab, name)[0].data, [run.id for run in service.runs(service.arms(lab, name))]


def _derived(lab: Lab, name: str) -> tuple[Any, ...]:
    """Return all of a row but its state."""
    order, label = service.order_of(lab, name)[0], naming.label_of(lab, name)
    try:
        images = dataset.load(lab.data / order.data).name
    except UserError:
        images = GONE
    arms = service.arms(lab, name)
    numbers = tuple((arm.name, _numbers(arm.runs, HEADLINES.get(order.task.name, ()))) for arm in arms)
    title = f"{images}: {' and '.join(arm.name for arm in arms)}" if images == GONE else naming.title(lab, name)
    return title, images, numbers, order.seeds, service.created(lab, name), label.pinned


def _numbers(runs: Sequence[Run], metrics: Iterable[str]) -> dict[str, float | None]:
    done = [result["numbers"] for run in runs if run.state == "done" and (result := run.result())]  # a damaged one is none
    found: dict[str, float | None] = {}
    for metric in metrics:
        values = [one[metric] for one in done if one.get(metric) is not None]
        found[metric] = sum(values) / len(values) if values else None
    return found


def state_of(states: Sequence[str]) -> str:
    """Return the state of a comparison whose runs are in these: what is at work, else what waits, else how it ended."""
    for one in ("training", "evaluating", "preparing", "queued", "failed", "lost", "stopped"):
        if one in states:
            return one
    return "done"


def differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the settings, nested ones by dotted names, in which two documents differ: name, first value, second value."""
    one, other = dict(_flat(first)), dict(_flat(second))
    return [(name, one.get(name, "–"), other.get(name, "–")) for name in {**one, **other} if one.get(name) != other.get(name)]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    inner: Iterable[tuple[str, Any]]
    if isinstance(value, (Mapping, list, tuple)) and not value:  # no options
        return
    if isinstance(value, Mapping):
        inner = ((str(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)) and len(value) > 1:
        inner = ((str(place), item) for place, item in enumerate(value, 1))
    elif isinstance(value, (list, tuple)):  # one choice needs no number
        inner = (("", value[0]),)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
        return
    for key, item in inner:
        yield from _flat(item, ".".join(filter(None, (name, key))))


def settings(lab: Lab, name: str, run: str = "") -> dict[str, Any]:
    """Return what a comparison, or one run of it, was asked to be; image sets by name and the start of their digest."""
    asked: Any = lab.run(run).experiment if run else service.order_of(lab, name)[0]
    found = asked.model_dump(mode="json")
    for key in ("data", "natural"):
        with suppress(UserError):
            found[key] = f"{dataset.load(lab.data / found[key]).name} ({found[key][:8]})"
    return found


def runs(lab: Lab, name: str) -> dict[str, str]:
    """Return the runs of a comparison by what they are called."""
    return {comparison.name_of_run(arm, run): run.id for arm in comparison.trained(service.arms(lab, name)) for run in arm.runs}


class Deletion(NamedTuple):
    """What goes with a comparison: its own runs, and the runs that stay since another comparison has them too."""

    going: tuple[Run, ...]
    staying: tuple[Run, ...]

    @property
    def sentence(self) -> str:
        """Say it before it is done."""
        size = sum(path.stat().st_size for run in self.going for path in run.path.rglob("*") if path.is_file())
        active = sum(run.state not in ENDED for run in self.going)
        stays = f" {len(self.staying)} more stay, since another comparison has them too." if self.staying else ""
        stopped = " What is still at work is stopped first." if active else ""
        return f"{len(self.going)} run{'' if len(self.going) == 1 else 's'} with {size / 1e6:.1f} MB go with it.{stays}{stopped}"


def deletion(lab: Lab, name: str) -> Deletion:
    """Return what deleting a comparison would remove; `run.missing` where there is none."""
    others: set[str] = set()
    for other in service.comparisons(lab):
        if other != name:
            with suppress(UserError):
                others |= {run.id for arm in service.arms(lab, other) for run in arm.runs}
    mine = service.runs(service.arms(lab, name))
    return Deletion(tuple(run for run in mine if run.id not in others), tuple(run for run in mine if run.id in others))


def delete(lab: Lab, name: str) -> None:
    """Delete a comparison with the runs, measurements and caches that only it has; what is at work is stopped first.

    Image sets stay: they may be chosen for the next comparison. Raises `run.missing` where there is no such comparison.
    """
    if name not in service.comparisons(lab):
        raise RunError("run.missing", "This comparison is no longer there; it may have been deleted.")
    going = deletion(lab, name).going
    measured = [measurement.Measurement(lab, name, path.name.partition("-")[2]) for path in lab.measuring.glob(f"{name}-*")]
    stop([*measured, *reversed([run for run in going if run.state not in ENDED])])
    spans = [span for job in (*measured, *going) if (span := _span(job.events()))]
    shutil.rmtree(lab.comparisons / name, ignore_errors=True)  # first, so that nobody lists what is on its way out
    for job in (*measured, *going):
        shutil.rmtree(job.path, ignore_errors=True)
    _free(lab, spans)
    noted.of(lab.root).keep(deleted=True)
    forget()


def stop(work: Sequence[Run | measurement.Measurement]) -> None:
    """Stop what waits or is at work, what waits first, so that none is begun meanwhile."""
    for job in work:
        job.request_stop()
    for job in work:
        if job.is_alive:
            jobs.stop(job)


def _span(events: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    return (events[0]["time"], events[-1]["time"]) if events else None


def _free(lab: Lab, spans: Sequence[tuple[float, float]]) -> None:
    """Remove the caches that were written while the deleted work went on and that no run left names; all, where none is left.

    A cache's name is a hash, which does not tell whose it is; one that another run would have used is computed anew.
    """
    left = lab.runs()
    needed = {(run.result() or {}).get("before") for run in left}
    for path in lab.cache.iterdir():
        if not left or (path.name not in needed and any(begin <= path.stat().st_mtime <= end + 1 for begin, end in spans)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def forget() -> None:
    """Drop what this process remembers of comparisons and of finetuned models."""
    service.forget()
    trained.forget()
    noted.of.cache_clear()
