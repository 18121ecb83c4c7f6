"""Run `python -m tests.benchmarks [--only training,steps] [--quick] [--out FILE.json] [--write]`: everything that is measured.

Each section runs in a process of its own, one after another. `--out` keeps the numbers; `--write` puts them into the stored ones
and makes BENCHMARKS.md of all; `--merge FILE.json` measures nothing and takes what was measured elsewhere (`--only=` nothing at
all). `--quick` takes tiny shapes, which show that everything works; `--write` refuses them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks import page, sections


def measured(names: list[str], quick: bool, options: dict[str, str], out: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Measure sections and return their document and which failed; what is done is on the disk before the next begins."""
    found: dict[str, Any] = {"sections": {}}
    failed = []
    for name in names:
        if why := sections.SECTIONS[name].missing():
            print(f"{name}: left out, {why}", file=sys.stderr, flush=True)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found["sections"] |= pool.submit(sections.measure, name, quick, options).result()["sections"]
        except Exception:  # one section that cannot run takes no other with it
            traceback.print_exc()
            failed.append(name)
        if out:
            out.write_text(json.dumps(found, indent=1) + "\n")
    return found, failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default=",".join(sections.SECTIONS), help="sections, default %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the numbers and write BENCHMARKS.md")
    parser.add_argument("--merge", type=Path, action="append", default=[], help="numbers that --out kept, instead of measuring")
    parser.add_argument("--data", default="", help="images to train on instead of drawings")
    parser.add_argument("--weights", default="", help="checkpoint of the ViT-tiny; without it random weights")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the section `training` trains")
    chosen = parser.parse_args()
    names = [name for name in chosen.only.split(",") if name]
    if unknown := set(names) - set(sections.SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(sections.SECTIONS)}")
    if chosen.quick and chosen.write:
        parser.error("a quick run is no measurement, so --write does not take it")
    failed: list[str] = []
    documents = [json.loads(path.read_bytes()) for path in chosen.merge]
    if not documents:
        options = {key: getattr(chosen, key) for key in ("data", "weights", "device")}
        found, failed = measured(names, chosen.quick, options, chosen.out)
        documents = [found]
    for one in documents:
        for name, section in one["sections"].items():
            print(f"\n## {name}\n\n{sections.SECTIONS[name].table(section['numbers'])}")
    if chosen.write:
        stored = json.loads(page.NUMBERS.read_bytes()) if page.NUMBERS.exists() else {"sections": {}}
        for one in documents:
            stored = page.merged(stored, one)
        page.NUMBERS.write_text(json.dumps(stored, indent=1) + "\n")
        page.PAGE.write_text(page.render(stored))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
