"""Labs as large as years make them, written straight to the disk: real documents of the shipped example under new names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rift import disk, example, service
from rift.config import Experiment
from rift.orders import Order, experiments
from rift.runs import VISITORS, Lab, Run
from rift.visitors import name_of

SEEDS = 5  # of each comparison, which has two arms
ODD = {1: "stopped", 2: "failed", 3: "lost"}  # how the first run of some comparisons ended; all others are done, but the newest


class Template:
    """The files of the example's two runs, and what was asked."""

    def __init__(self, root: Path):
        shipped = example.place(root)
        assert shipped is not None
        (name,) = service.comparisons(shipped)
        self.order, _ = service.order_of(shipped, name)
        self.stored = json.loads((shipped.comparisons / name / "order.json").read_bytes())
        self.data = shipped.data
        self._files = {run.experiment.regularizer.name: self._of(run) for run in service.runs(service.arms(shipped, name))}

    @staticmethod
    def _of(run: Run) -> tuple[bytes, dict]:
        return (run.path / "events.jsonl").read_bytes(), run.result() or {}

    def comparison(self, lab: Lab, number: int, state: str = "done", seeds: int = SEEDS) -> tuple[Order, list[Run]]:
        """Write one comparison of two arms whose runs are done, but for the first one where `state` is another."""
        training = self.order.training.model_copy(update={"learning_rate": 3e-4 * (1 + number / 1e6)})
        order = self.order.model_copy(update={"training": training, "seeds": seeds})
        home, runs = lab.comparisons / order.id, []
        home.mkdir()
        (home / "order.json").write_text(json.dumps({**self.stored, "order": order.model_dump(mode="json")}))
        for _, by_seed in experiments(order):
            for one in by_seed:
                runs.append(self.run(lab, one, state if state == "queued" or not runs else "done"))
        return order, runs

    def run(self, lab: Lab, one: Experiment, state: str) -> Run:
        """Write one run's directory in a state."""
        path = lab.root / "runs" / one.id
        path.mkdir()
        (path / "experiment.json").write_text(one.model_dump_json())
        events, result = self._files[one.regularizer.name]
        if state == "queued":
            return Run(path)
        half = events[: events.rindex(b"\n", 0, len(events) // 2) + 1]
        (path / "events.jsonl").write_bytes(events if state == "done" else half)
        (path / "lock").touch()
        run = Run(path)
        if state == "done":
            (path / "result.json").write_text(json.dumps(disk.sealed({**result, "run": run.id, "seed": one.seed})))
        elif state != "lost":
            run.append("end", state=state, code="", message="")
        return run


def grown(root: Path, template: Template, runs: int) -> Lab:
    """Return a lab of so many runs in comparisons of ten: most are done, few ended otherwise, the newest comparison waits."""
    lab = Lab(root)
    lab.data.rmdir()
    lab.data.symlink_to(template.data.resolve())
    count = max(2, runs // (2 * SEEDS))
    for number in range(count):
        last = number == count - 1
        template.comparison(lab, number, "queued" if last else ODD.get(number % 100, "done"))
    return lab


def visited(root: Path, template: Template, visitors: int, each: int) -> tuple[Lab, Sequence[Lab]]:
    """Return a public server's lab, and those of its visitors: each has one comparison of two runs that waits, and older."""
    host, labs = Lab(root), []
    for visitor in range(visitors):
        lab = Lab(root / VISITORS / name_of(f"{visitor:032x}"))
        lab.data.rmdir()
        lab.data.symlink_to(template.data.resolve())
        (lab.root / "seen").touch()
        for number in range(each + 1):
            template.comparison(lab, 1000 * visitor + number, "queued" if number == each else "done", seeds=1)
        labs.append(lab)
    return host, labs
