"""All finished arms of a lab on the images of one comparison, and the strengths that a slider moves through."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rift import comparison, service, tradeoff
from rift.errors import RunError
from rift.runs import Lab
from rift.tradeoff import Point


def arms(lab: Lab, name: str) -> list[Point]:
    """Return the arms of a lab on the same images and backbone; `run.missing` while none of this comparison is finished."""
    done = [run for arm in service.arms(lab, name) for run in arm.runs if run.state == "done"]
    if not done:
        raise RunError("run.missing", "No run of this comparison is finished yet; its numbers come with the first one.")
    return list(_arms(lab.root, done[0].id, stamp(lab)))


@lru_cache(maxsize=16)
def _arms(root: Path, run: str, stamp: tuple[int, int]) -> tuple[Point, ...]:
    lab = Lab(root)
    return tuple(tradeoff.points({"arms": comparison.arms_like(lab, lab.run(run))}))


def stamp(lab: Lab) -> tuple[int, int]:
    """Return what changes when a run of the lab is finished or goes."""
    times = [path.stat().st_mtime_ns for path in lab.root.glob("runs/*/result.json")]
    return len(times), max(times, default=0)


def intervals(lab: Lab, arm: Point) -> dict[str, tuple[float, float, int]]:
    """Return low, high and number of images of each number of an arm of one seed, where a diagnostic gives an interval."""
    if len(arm.runs) != 1:
        return {}
    found: dict[str, tuple[float, float, int]] = {}
    for one in lab.run(arm.runs[0]).measures().values():
        for key in (*tradeoff.TASK, *tradeoff.KEPT):
            if key not in found and (interval := _interval(one, key)):
                found[key] = interval
    return found


def _interval(one: Mapping[str, Any], key: str) -> tuple[float, float, int] | None:
    low, high = one.get(f"{key}_low"), one.get(f"{key}_high")
    n = one.get("n_natural" if "natural" in key and "n_natural" in one else "n")
    numbers = all(isinstance(number, (int, float)) for number in (low, high, n))
    return (float(low), float(high), int(n)) if numbers and low is not None and high is not None and n is not None else None
