"""Run `python -m tests.benchmarks.load [--only S1,S2] [--out FILE.json]`: what fifty visitors, and hostile ones, do to a server.

Each row has a real server of its own over a new lab, which keeps visitors apart as a Space does, with all the limits of one; its
pages are those of `load_pages`. Before a row is timed one page has been everywhere, so that no time is a cold cache's. Goals are
reported, never asserted; the clients run on the same machine, which counts against the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rift import quota, service, visitors
from rift.runs import ENDED, Lab, Run
from tests.benchmarks.load_pages import MB, Found, Page, Site, act, arrive, harm, site, times
from tests.browser.server import Server

THINK, WINDOWS, DAY = 2.0, 4, 86_400
SMALL = "sample:phantoms:images_per_class=4"
# Of each row what the table tells, and how much it may be at most where that is set
GOALS: dict[str, dict[str, float | None]] = {
    "S1": {"event_p50_ms": None, "event_p95_ms": 250, "event_p99_ms": 500, "page_p95_ms": 200, "errors": 0},
    "S2": {"event_p50_ms": None, "event_p95_ms": 80, "event_p99_ms": None, "page_p95_ms": None, "errors": 0},
    "S3": {"off_the_limit": 0, "refused_without_words": 0, "runs_lost": 0, "answer_p50_s": None, "answer_slowest_s": 1},
    "S4": {"growth_mb": 20, "processes_left": 0, "descriptors_off": 2, "runs_lost": 0, "errors": 0},
    "S5": {"growth_mb": 60, "errors": 0},
    "S6": {"left_percent": 1, "most_gb": None, "errors": 0},
    "S7": {"slowed_percent": 25, "errors": 0},
    "S8": {"memory_over_before_mb": 150, "p95_times_before": 2, "errors": 0},
}


class Bench(NamedTuple):
    """What a row works with."""

    server: Server
    site: Site
    sessions: int
    seconds: float

    def lab(self, page: Page) -> Lab:
        """Return the lab of a page's visitor."""
        return visitors.lab(self.server.root, page.key)

    def runs(self, page: Page, name: str) -> list[Run]:
        return service.runs(service.arms(self.lab(page), name)) if name else []

    async def warm(self) -> Page:
        """Return a page that has been everywhere once."""
        page = Page(self.site, 60_000)
        await page.open()
        await page.preview()
        for name in self.site.tabs:
            await page.tab(name)
        return page

    async def train(self) -> tuple[Page, Run]:
        """Begin a long run; return its owner's page and itself once steps are counted."""
        page = await self.warm()
        page.fill(Epochs=1000, Batch_size=8)
        await page.ask("start", self.site.on("start", "click"))
        run = self.runs(page, service.comparisons(self.lab(page))[0])[0]
        await until(lambda: run.last_event().get("event") == "step", 120)
        return page, run

    def usage(self) -> dict[str, float]:
        """Return what the server's process holds: memory, open descriptors, and processes that came of it or work on its lab."""
        pid = self.server.process.pid
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        processes = {*map(str, self.server.workers()), *(child for several in children for child in several)}
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return {"mb": memory(pid, "VmRSS"), "descriptors": descriptors, "processes": len(processes)}


def memory(pid: int, name: str) -> float:
    """Return a process's memory in MB: VmRSS what it has, VmHWM the most it had since its peak was reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(name))


async def until(there: Callable[[], bool], seconds: float) -> None:
    """Wait for something; raises TimeoutError where it does not come."""
    async with asyncio.timeout(seconds):
        while not there():
            await asyncio.sleep(0.05)


async def fifty(bench: Bench, *others: Awaitable[Any]) -> Found:
    """Let the sessions arrive, then time what they ask while others do something."""
    pages = [Page(bench.site, number) for number in range(bench.sessions)]
    bench.site.answers.clear()
    await arrive(pages)
    opening = times(bench.site.answers)
    bench.site.answers.clear()
    await asyncio.gather(act(pages, bench.seconds, THINK), *others)
    for page in pages:
        await page.close()
    return times(bench.site.answers) | {f"opening_{name}": value for name, value in opening.items()}


async def s1(bench: Bench) -> Found:
    """Fifty sessions while a run trains at the nice of every worker, and its owner watches it."""
    owner, _ = await bench.train()
    return await fifty(bench, act([owner], bench.seconds, 1.0, watch=True))


async def s2(bench: Bench) -> Found:
    """Fifty sessions while nothing trains."""
    await bench.warm()
    return await fifty(bench)


async def s3(bench: Bench) -> Found:
    """Every visitor presses Start in ten tabs at once, each with another setting; four times as many clicks as sessions."""
    many, most, start = max(1, 4 * bench.sessions // 10), quota.VISITOR.under_way, bench.site.on("start", "click")
    await bench.warm()
    visitor = [Page(bench.site, number) for number in range(many)]
    pages = [Page(bench.site, number % many, visitor[number % many].key) for number in range(10 * many)]
    for number, page in enumerate(pages):
        page.fill(Epochs=100 + number // many)
    bench.site.answers.clear()
    await asyncio.gather(*(page.ask("start", start) for page in pages))
    answers = list(bench.site.answers)
    refused = times(answers)["errors"][0]
    worded = sum("comparisons under way" in one.error and "run.quota" in one.error for one in answers)
    placed = [[bench.runs(page, name) for name in service.comparisons(bench.lab(page))] for page in visitor]
    lost = sum(2 - sum(run.state not in ENDED for run in runs) for theirs in placed for runs in theirs)
    off = sum(abs(len(theirs) - most) for theirs in placed) + abs(len(answers) - refused - most * many)
    taken = [one.seconds for one in answers]
    return {
        "off_the_limit": (off, len(answers)),
        "refused_without_words": (refused - worded, int(refused)),
        "runs_lost": (lost, sum(len(runs) for theirs in placed for runs in theirs)),
        "answer_p50_s": (statistics.median(taken), len(taken)),
        "answer_slowest_s": (max(taken), len(taken)),
    }


async def s4(bench: Bench) -> Found:
    """Tiny runs, two in a comparison, one comparison after another: each with a worker, read by its visitor and deleted."""
    endpoint, many, lost, taken, used = bench.site.endpoint, max(1, bench.sessions // 2), 0, [], []
    asked = {"epochs": 1, "regularizer": ["rift"], "set": {"batch_size": 8}}
    for number in range(many + 1):
        began, page = time.perf_counter(), Page(bench.site, number)
        await page.open()
        (name,) = await page.ask("start", endpoint("start"), [SMALL, asked, page.key]) or [""]
        runs = bench.runs(page, name)
        with suppress(TimeoutError):
            await until(lambda runs=runs: all(run.state in ENDED for run in runs), 120)  # type: ignore[misc]
        (document,) = await page.ask("result", endpoint("result"), [name, page.key]) or [{}]
        lost += len(document.get("arms", ())) != 2
        with suppress(TimeoutError):  # it sees that nothing is left, and ends; then another stands by
            await until(lambda: not bench.server.workers() and bool(bench.server.workers(standing_by=True)), 30)
        await page.ask("delete", bench.site.on("sure-erase", "click"))
        await page.close()
        taken.append(time.perf_counter() - began)
        used.append(bench.usage())
    await asyncio.sleep(1)
    first, last = used[0], bench.usage()  # what the first one leaves in caches is no growth
    return {
        "growth_mb": (last["mb"] - first["mb"], 2 * many),
        "processes_left": (last["processes"] - first["processes"], 2 * many),
        "descriptors_off": (abs(last["descriptors"] - first["descriptors"]), 2 * many),
        "runs_lost": (2 * lost, 2 * many + 2),
        "comparison_p50_s": (statistics.median(taken), len(taken)),
        "errors": times(bench.site.answers)["errors"],
    }


async def s5(bench: Bench) -> Found:
    """Two hundred times as many sessions as pages at once, each of which looks once and is gone."""
    keys = [(await bench.warm()).key, *(Page(bench.site, 0).key for _ in range(bench.sessions - 1))]
    before = bench.usage()["mb"]
    bench.site.answers.clear()

    async def come(number: int) -> None:
        for turn in range(200):
            await Page(bench.site, 200 * number + turn, keys[number]).ask("look", [bench.site.tick])

    await asyncio.gather(*(come(number) for number in range(bench.sessions)))
    grown = bench.usage()["mb"] - before
    return times(bench.site.answers) | {"growth_mb": (grown, 200 * bench.sessions)}


async def s6(bench: Bench) -> Found:
    """A day on which a new visitor trains every five minutes, the clock moved by hand: what stays on the disk after retention.

    The first comparison is trained; the labs of the others are links to its files, counted as if they were copies.
    """
    root, endpoint, began, most = bench.server.root, bench.site.endpoint, time.time(), 0
    before, page, every = size(root), Page(bench.site, 0), 300
    await page.open()
    (name,) = await page.ask("start", endpoint("start"), [SMALL, {"epochs": 1, "regularizer": ["rift"]}, page.key])
    await until(lambda: all(run.state in ENDED for run in bench.runs(page, name)), 300)
    await page.close()
    visits = DAY // every
    for visit in range(visits):
        lab, now = visitors.lab(root, f"{visit:032x}"), began + every * visit
        shutil.copytree(bench.lab(page).root, lab.root, copy_function=copy_link, dirs_exist_ok=True)
        os.utime(lab.root / visitors.SEEN, (now, now))
        visitors.sweep(root, now)
        most = max(most, size(root)) if visit % 24 == 23 else most
    for hour in range(25):
        visitors.sweep(root, began + DAY + 3600 * hour)
    return {
        "left_percent": (100 * abs(size(root) / before - 1), visits),
        "most_gb": (most / 1000 / MB, visits),
        "errors": times(bench.site.answers)["errors"],
    }


def copy_link(source: str, target: str) -> None:
    """Link a file where there is none of that name."""
    with suppress(FileExistsError):
        os.link(source, target)


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(one.lstat().st_size for one in folder.rglob("*") if one.is_file())


async def s7(bench: Bench) -> Found:
    """Steps a second of a run, alone and with fifty of its owner's pages that watch it, in turns."""
    owner, run = await bench.train()
    pages = [Page(bench.site, number, owner.key) for number in range(bench.sessions)]
    for page in pages:
        page.values[bench.site.memory] = owner.values[bench.site.memory]
    await arrive(pages)
    bench.site.answers.clear()
    rates: tuple[list[float], list[float]] = ([], [])
    for window in range(WINDOWS):
        began = time.monotonic()
        await (act(pages, bench.seconds, 1.0, watch=True) if window % 2 else asyncio.sleep(bench.seconds))
        steps = sum(one["event"] == "step" and began <= one["clock"] for one in run.events())
        rates[window % 2].append(steps / (time.monotonic() - began))
    for page in pages:
        await page.close()
    alone, watched = map(statistics.mean, rates)
    found = times(bench.site.answers)
    return found | {"slowed_percent": (100 * (alone / watched - 1), WINDOWS), "steps_a_second_alone": (alone, WINDOWS // 2)}


async def s8(bench: Bench) -> Found:
    """Fifty sessions alone, then beside uploads of those who mean harm."""
    await bench.warm()
    calm, pid = await fifty(bench), bench.server.process.pid
    before = memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from here
    said: Counter[str] = Counter()

    async def attack() -> None:
        said.update(await harm(bench.site, bench.seconds))

    found = await fifty(bench, attack())
    print(f"  {dict(sorted(said.items()))}", flush=True)
    grown, slower = memory(pid, "VmHWM") - before, found["event_p95_ms"][0] / calm["event_p95_ms"][0]
    return found | {
        "memory_over_before_mb": (grown, said.total()),
        "p95_times_before": (slower, found["event_p95_ms"][1]),
        "calm_event_p95_ms": calm["event_p95_ms"],
    }


def row(name: str, sessions: int, seconds: float) -> Found:
    """Measure a row once, with a server of its own, whose log is looked through for what nobody caught."""

    async def measure(server: Server) -> Found:
        async with site(server.url) as there:
            return await ROWS[name](Bench(server, there, sessions, seconds))

    with tempfile.TemporaryDirectory() as folder:
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # as a worker has them where nobody says another number
        server = Server(Path(folder), "--public", "--stand-by", SPACE_ID="load/benchmark", **threads)
        try:
            found = asyncio.run(measure(server))
        finally:
            server.close()
        log = server.log.read_text()
    if "Traceback" in log:
        print(log[log.index("Traceback") :][:4000], flush=True)
    return found | {"faults_in_the_log": (log.count("Traceback (most"), 1)}


ROWS = {one.__name__.upper(): one for one in (s1, s2, s3, s4, s5, s6, s7, s8)}


def table(measured: dict[str, list[Found]]) -> str:
    """Return the numbers of GOALS: median of the repeats, smallest and largest, the goal, and whether it is held."""
    lines = ["| | | n | median [smallest, largest] | goal | held |", "| --- | --- | --- | --- | --- | --- |"]
    for name, found in measured.items():
        lines.append(f"| **{name}** | {(ROWS[name].__doc__ or '').splitlines()[0]} | | | | |")
        goals = {**GOALS[name], "faults_in_the_log": 0.0}
        for number, most in ((one, goals[one]) for one in goals if any(one in each for each in found)):
            values, n = zip(*(one[number] for one in found if number in one), strict=True)
            middle = statistics.median(values)
            goal = " | " if most is None else f"≤ {most:g} | {'yes' if middle <= most else 'no'}"
            spread = f"{middle:.4g} [{min(values):.4g}, {max(values):.4g}]"
            lines.append(f"| | {number.replace('_', ' ')} | {sum(n)} | {spread} | {goal} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=lambda text: text.upper().split(","), default=list(ROWS))
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each window that is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    document: dict[str, Any] = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("gradio", "httpx", "torch")}},
        "asked": {"sessions": chosen.sessions, "seconds": chosen.seconds, "repeats": chosen.repeats},
    }
    measured: dict[str, list[Found]] = {}
    for name in chosen.repeats * chosen.only:
        print(name, flush=True)
        measured.setdefault(name, []).append(row(name, chosen.sessions, chosen.seconds))
        told = {one: [{key: {"value": v, "n": n} for key, (v, n) in each.items()} for each in measured[one]] for one in measured}
        if chosen.out:  # after every row: what was measured is kept, whatever comes
            chosen.out.write_text(json.dumps(document | {"rows": told}, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
