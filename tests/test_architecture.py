"""The floors hold: a file imports from strictly lower floors only, and gradio, plotly and CUDA stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    "errors config memory process windows",
    "disk dicom standby",
    "job noted",
    "catalog lessons archive images model similarity statistics figures vocabulary runs findings stratify"
    " copies lookalikes shortcuts intact",
    "space checkpoint accumulate distributed",
    "quota review table snapshot views captures verdict layers places",
    "scans hints manifest streamed",
    "dataset labeled differences",
    "patients",
    "upload backbones tasks methods regularizers natural samples trained",
    "caged",
    "cage",
    "train diagnostics toys pretrain measures tradeoff tuning overview drafts",
    "about attempt",
    "trials reference",
    "recipe report comparison estimate measurement",
    "jobs lineup assisting",
    "orders",
    "service following notebook cluster",
    "api ask naming measuring exercises watching twin outlook",
    "sweeping example calibration remote lending linked strengths history export plain sealed portable",
    "sharing bundle",
    "storage visitors",
    "cli ui",
    "__main__",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
FILES = sorted((ROOT / "rift").rglob("*.py"))


def parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT / "rift").with_suffix("").parts


def imports(path: Path) -> set[str]:
    """Every module of ours that a file imports, as a dotted name below rift."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_every_file_has_a_floor():
    unknown = {parts(path)[0] for path in FILES} - set(FLOOR) - {"__init__"}
    assert not unknown, f"give these a floor: {unknown}"


@pytest.mark.parametrize("path", [p for p in FILES if parts(p) != ("__init__",)], ids=lambda p: "/".join(parts(p)))
def test_imports_come_from_lower_floors(path):
    home = parts(path)
    for name in imports(path):
        head, *rest = name.split(".")
        if head != "rift" or not rest or rest[0] not in FLOOR:
            continue
        own = rest[0] == home[0] and (home[0] in ("pretrain", "ui") or len(rest) == 1 or rest[1].startswith("_"))
        assert FLOOR[rest[0]] < FLOOR[home[0]] or own, f"{'/'.join(home)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(parts(p)))
def test_libraries_stay_where_they_belong(path):
    home, names = parts(path)[0], {name.split(".")[0] for name in imports(path)}
    assert "gradio" not in names or home == "ui"
    assert "typer" not in names or home == "cli"
    assert "plotly" not in names or home in ("figures", "diagnostics", "toys", "tradeoff", "report", "notebook", "ui")


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(parts(p)))
def test_no_file_and_no_function_is_too_long(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


def test_importing_rift_loads_neither_torch_nor_gradio():
    heavy = "('torch', 'gradio', 'numpy')"
    code = f"import sys, rift, rift.cli, rift.catalog; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"
    )


def test_training_imports_neither_open_clip_nor_gradio():
    code = "import sys, rift.train, rift.pretrain.image; print([m for m in ('open_clip', 'gradio') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"
    )


def test_the_page_is_made_without_what_takes_long_to_import_and_is_used_later(tmp_path):
    slow = "('torchvision', 'timm', 'open_clip', 'sklearn.metrics', 'scipy.stats')"
    build = "from pathlib import Path; from rift import ui; from rift.runs import Lab; ui.build(Lab(Path(sys.argv[1])))"
    code = f"import sys; {build}; print([m for m in {slow} if m in sys.modules])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


def test_nothing_names_a_machine_or_an_index():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split("\n")
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".css", ".js", ".j2", ".json", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            for hint in ("/wo" + "rk/", "/ro" + "ot/", "index-" + "url"):
                assert hint not in text, f"{name} holds {hint}"
