"""Run `python -m tests.reliability.fuzz [--only zip,table] [--seconds 60] [--out FILE.json]`: bytes that nobody thought of.

atheris (`pip install atheris`; no test needs it) changes the uploads of `cases.py` and `dicoms.py` and keeps what reaches new
code of ours. A reader holds when whatever it raises is an error of ours and no input takes it longer than two seconds or beyond
512 MB more than the libraries. What breaks it is kept in `--keep`, to become a case of `cases.py`. Each target is a process of
its own, without the reading child around it, which would hide what its inside does.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid

SECONDS_EACH, MEMORY_MB = 2, 512
COUNTED = {"stat::number_of_executed_units": "inputs", "stat::slowest_unit_time_sec": "slowest_seconds"}
Try = Callable[[bytes], object]


def _zip() -> Try:
    from rift.archive import PUBLIC, listing

    folder = tempfile.mkdtemp()

    def read(data: bytes) -> None:
        path = Path(folder) / "upload.zip"
        path.write_bytes(data)
        with listing(path, PUBLIC) as found:
            for member in found.members[:20]:
                member.read()

    return read


def _table() -> Try:
    from rift import table

    return lambda data: table.parse(data, 1000)


def _image() -> Try:
    from rift import images

    return lambda data: images.read(data, salt=b"salt")


def _names() -> Try:
    from rift.labeled import class_name
    from rift.lookalikes import alike, odd
    from rift.review import Notes

    def read(data: bytes) -> None:
        names = data.decode("utf-8", "replace").split("\n")[:50]
        alike(names)
        notes = Notes()
        for name in names:
            odd(class_name(name, notes))

    return read


TARGETS = {"zip": _zip, "table": _table, "image": _image, "dicom": _image, "names": _names}


def seeds(target: str) -> Iterator[bytes]:
    """Return what a target begins with: the uploads that its tests know, and what lies in them."""
    from tests.reliability import dicoms
    from tests.reliability.cases import CASES, TABLE

    if target == "dicom":
        yield from (dicoms.dicom(dicoms.RAMP), dicoms.dicom(dicoms.COLOR))
        yield from (
            dicoms.compressed(dicoms.RAMP, syntax) for syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless)
        )
    if target in ("table", "names"):
        yield TABLE.encode()
        yield "a;b\tc,é\n\u0441\u0430t,cat\n".encode()
    for place, case in enumerate(CASES):
        data = case.make(np.random.default_rng(place))
        if len(data) > 200_000:  # a fuzzer gets nowhere with large ones
            continue
        if target == "zip":
            yield data
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [one for one in archive.infolist()[:3] if one.file_size < 100_000]
                for one in members:
                    is_table = one.filename.endswith((".csv", ".tsv", ".txt"))
                    if target == ("table" if is_table else "image"):
                        yield archive.read(one)
        except Exception:  # these are bad on purpose
            continue


def child(target: str, folder: Path, seconds: int) -> None:
    """Be the process that fuzzes one target; never returns."""
    import atheris

    from rift.errors import UserError

    with atheris.instrument_imports(include=["rift"]):
        read = TARGETS[target]()

    def once(data: bytes) -> None:
        with suppress(UserError):
            read(data)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    limits = [f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={before + MEMORY_MB}", f"-max_total_time={seconds}", "-max_len=200000"]
    kept = [f"-artifact_prefix={folder}/broke-{target}-", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *limits, *kept, str(folder / target)], once, enable_python_coverage=True)
    atheris.Fuzz()


def fuzz(target: str, folder: Path, seconds: int) -> dict[str, Any]:
    """Fuzz one target for a while and return how many inputs were tried and what broke it."""
    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    known = list(seeds(target))
    for place, data in enumerate(known):
        (corpus / f"seed-{place}").write_bytes(data)
    command = [
        sys.executable,
        "-m",
        "tests.reliability.fuzz",
        "--child",
        target,
        "--keep",
        str(folder),
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    stats = dict(re.findall(r"^(stat::\w+):\s+(\d+)$", done.stderr, re.M))
    edges = re.findall(r"cov: (\d+)", done.stderr)
    broke = sorted(path.name for path in folder.glob(f"broke-{target}-*"))
    found = {"seeds": len(known), **{name: int(stats.get(stat, 0)) for stat, name in COUNTED.items()}}
    found |= {"edges": int(edges[-1]) if edges else 0, "broke": broke, "ended": done.returncode}
    if done.returncode or broke:
        found["said"] = done.stderr[-3000:]
    return found


def main() -> None:
    """Read the command, fuzz, and say what came of it; exit code 1 where something broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default=",".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder of what was found; continued where it is there")
    parser.add_argument("--child", choices=TARGETS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.keep, asked.seconds)
    folder = asked.keep or Path(tempfile.mkdtemp())
    found: dict[str, Any] = {"seconds": asked.seconds, "atheris": version("atheris"), "targets": {}}
    for target in asked.only.split(","):
        found["targets"][target] = fuzz(target, folder, asked.seconds)
        print(json.dumps({target: found["targets"][target]}, indent=1), flush=True)
    for one in found["targets"].values():
        one.pop("said", None)  # it names folders of this machine
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(one["ended"] or one["broke"] for one in found["targets"].values()))


if __name__ == "__main__":
    main()
