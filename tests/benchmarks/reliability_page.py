"""Write RELIABILITY.md from what was measured: `python -m tests.benchmarks.reliability_page [--load …] [--kills …] [--fuzz …]`.

The numbers are kept beside this file, so that the page can be made again, and a test holds the page to them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rift.runs import write_bytes, write_json
from tests.benchmarks.load import table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "RELIABILITY.md"
LOAD, KILLS, FUZZ = (Path(__file__).with_name(name) for name in ("load.json", "kills.json", "fuzz.json"))
SUITE = {
    "`cases.py`, `test_inputs.py`": (
        "Bad uploads, made by a seeded generator; the code that each must get is a table; time, memory, and "
        "that nothing of a raw value is echoed"
    ),
    "`test_dicom.py`": (
        "DICOM: levels, palettes, compressed syntaxes, lies in the header, thirty names that must never come out"
    ),
    "`test_cage.py`": "The reading child: memory, time, descriptors, a child that dies or lies",
    "`test_door.py`": "The door: sizes, rates, hosts, origins, closed addresses, headers",
    "`test_visitors.py`, `tests/browser/test_visitors.py`": "Two visitors with real browsers: nothing of one reaches the other",
    "`test_sets.py`": "Labels and sets: encodings, look-alikes, patients, near copies, shortcuts",
    "`test_faults.py`, `test_training_faults.py`": (
        "Faults: killed worker, killed server, SIGTERM, full and read-only disk, out of memory, not a number, "
        "no hub, clock, process ids, flipped bits"
    ),
    "`test_numbers.py`": "Numbers: the same seed twice, strength 0, the same batches for both arms, a pixel that changed",
    "`test_exports.py`, `test_escapes.py`": "What leaves: reports, exports, escapes of text at every place where it is shown",
    "`test_properties.py`, `test_life.py`": (
        "Properties that must hold for any input (Hypothesis), and the life of a comparison as a state machine"
    ),
    "`test_mutations.py`": (
        "**Is there a test for every defence?** {} defences are switched off in turn; the test that is named for each must fail"
    ),
}
TEXT = """# What was tried to break it, and what came of it

[SECURITY.md](SECURITY.md) says what is promised. This page says how the promises are tested, and holds what was measured. Its
tables are made by `python -m tests.benchmarks.reliability_page` from numbers that are kept in `tests/benchmarks`.

## The suite

`python -m pytest tests/reliability` is part of the tests that run before anything is merged; the longer ones with `-m slow`.

{suite}

## Killed again and again

    python -m tests.reliability.kills --count 200 --out kills.json

A run is killed with `kill -9` one to four times, at random steps, at random file operations, or with a file half written, and
then goes on to its end. Its weights, the loss of every step, every number, prediction and measurement and the report are
compared with those of a run that nobody disturbed, to the last bit.

{kills}

## Bytes that nobody thought of

    pip install atheris && python -m tests.reliability.fuzz --seconds {seconds} --out fuzz.json

A fuzzer that sees which code of ours an input reaches changes the bad uploads of the suite. A reader holds when whatever it
raises is an error of ours, no input takes longer than two seconds, and none more than 512 MB beyond the libraries. The decoders'
own code, which is C, is not seen by it.

{fuzz}

It found two things. A zip with a file whose name is empty ended in an error of `zipfile` itself: it is refused in words now, and
the row of the zip is of the time after. A damaged JPEG-LS picture in a DICOM file makes GDCM's decoder end its process: in the
app that is the reading child, and the picture is left out by name (`test_cage.py` has it).

## Fifty visitors on two cores

    python -m tests.benchmarks.load --out load.json

A server as on a Space, and fifty sessions that speak Gradio's own protocol: of six actions two look at the status bar, two open
a sub-tab, one asks what a training would cost, one fetches the page, with two seconds of thought between them. **The sessions run
on the same two cores as the server**, which counts against it. Goals are reported and never asserted.

{machine}

{load}

{said}

## What is not tested

- The fuzzer ran for minutes, not for days, and no C code was watched.
- Fifty people with real browsers: sessions here speak the protocol; six browsers at most were open at once.
- What only another system has: the suite runs on Linux. The reading child's own limits are tested, not switched off.
- `pip-audit` needs a database that could not be reached where this was measured; the command is in SECURITY.md.
- Hugging Face Spaces, ZeroGPU and the container: the code is there, untried.
- A GPU that runs out of memory: tested with errors like CUDA's, thrown on a CPU.
"""
SAID = """Goals in milliseconds hold on one machine and not on another: on two cores of an older kind S1 had a p95 of 249 to
485 ms, S2 of 184 ms, S7 slowed the training by 52 %, and the slowest answer of S3 took 8.8 s (one or two repeats, before the
server had a worker that stands by). S8 was 1.13 times its calm p95 there: here the calm one is 39 to 61 ms, and 158 to 352 ms
beside uploads that come as fast as the same two cores send them; how much of that is the senders' was not taken apart.
S4's growth is of the server's process alone, after the first comparison. It was 80 MB before the server had glibc keep what its
threads free in two places instead of eight for each core; Python itself held none of it, and 0.15 MB for each page that is
remembered, of 500 at most. S7 counts what the watching pages themselves take of the two cores. Of the server's time in S3 22 %
are ours by a sampling profiler, the rest Gradio's and its web server's for each event, and the sessions that press take as much
again. S5's growth is what the server keeps of the 500 pages that it remembers, 0.12 to 0.15 MB each by another count of opened
pages. S6 moves the clock by hand; nobody waited for a day."""


WHAT = {
    "zip": "the directory of a zip, and its members",
    "table": "labels in a table",
    "image": "pictures",
    "dicom": "DICOM",
    "names": "names of classes",
}


def render(load: dict[str, Any], kills: dict[str, Any], fuzz: dict[str, Any]) -> str:
    """Return the page."""
    from tests.reliability.test_mutations import DEFENCES

    rows = {
        name: [{key: (one["value"], one["n"]) for key, one in each.items()} for each in found]
        for name, found in load["rows"].items()
    }
    repeats = ", ".join(f"{name} {len(found)}" for name, found in rows.items())
    asked, machine = load["asked"], load["machine"]
    versions = ", ".join(f"{name} {one}" for name, one in load["versions"].items())
    about = (
        f"{machine['cores']} cores ({machine['processor']}), {versions}; {asked['sessions']} sessions, windows of "
        f"{asked['seconds']:g} s, the machine's load before it {machine['load_before']:.2f}. Repeats: {repeats}."
    )
    suite = [
        "| what | where |",
        "| --- | --- |",
        *(f"| {what.format(len(DEFENCES))} | {where} |" for where, what in SUITE.items()),
    ]
    more = {"fuzz": _fuzzed(fuzz), "seconds": fuzz["seconds"]}
    return TEXT.format(suite="\n".join(suite), kills=_killed(kills), machine=about, load=table(rows), said=SAID, **more)


def _fuzzed(fuzz: dict[str, Any]) -> str:
    lines = ["| what reads | begun with | inputs tried | longest, s | broke it |", "| --- | --- | --- | --- | --- |"]
    for name, one in fuzz["targets"].items():
        numbers = f"{one['seeds']} | {one['inputs']:,} | {one['slowest_seconds']} | **{len(one['broke'])}**"
        lines.append(f"| {WHAT[name]} | {numbers} |")
    return "\n".join([*lines, "", f"(atheris {fuzz['atheris']}, one process each.)"])


def _killed(kills: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in kills["by kind"].items())
    return (
        f"{kills['kills']} kills ({kinds}) of {kills['runs']} runs of {kills['steps of a run']} steps; "
        f"{kills['resumed from a checkpoint']} times a run went on from a checkpoint. **Unequal: {len(kills['unequal'])}.** "
        f"(Seed {kills['seed']}, torch {kills['torch']}, one CPU thread.)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--load", type=Path, nargs="*", default=[], help="what the load benchmark wrote; rows of a later file win"
    )
    parser.add_argument("--kills", type=Path, help="what the kill test wrote")
    parser.add_argument("--fuzz", type=Path, help="what the fuzzer wrote")
    chosen = parser.parse_args()
    documents = [json.loads(path.read_bytes()) for path in chosen.load]
    if documents:
        rows = {name: found for one in documents for name, found in one["rows"].items()}
        write_json(LOAD, documents[0] | {"rows": dict(sorted(rows.items()))})
    for stored, given in ((KILLS, chosen.kills), (FUZZ, chosen.fuzz)):
        if given:
            write_json(stored, json.loads(given.read_bytes()))
    write_bytes(PAGE, render(*(json.loads(one.read_bytes()) for one in (LOAD, KILLS, FUZZ))).encode())


if __name__ == "__main__":
    main()
