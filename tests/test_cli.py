"""The commands as a user types them: documents that hold to the contract, exit codes, and last lines that say what to do."""

from __future__ import annotations

import csv
import importlib
import json
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

from rift import disk
from rift.runs import Lab

ROOT = Path(__file__).parents[1]
RUN = [
    "run",
    "seed",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "cka",
    "cka_debiased",
    "cka_layers",
    "cka_natural",
    "cka_natural_debiased",
    "natural_accuracy",
    "natural_top5",
    "natural_accuracy_unrotated",
    "natural_agreement",
    "natural_knn_accuracy",
    "task_loss",
    "penalty",
    "seconds",
    "step_milliseconds",
    "diverged",
]


def rift(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rift", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=500, env={**__import__("os").environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.fixture
def here(monkeypatch, capsys):
    """The same command line in this process: what needs no training need not start an interpreter."""
    from rift import cli

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries that warn when they are imported
        importlib.import_module("rift.backbones.open_clip")

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["rift", *map(str, arguments)])
        monkeypatch.chdir(cwd or ROOT)
        capsys.readouterr()
        code = cli.main()
        told = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, told.out, told.err)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("out")
    (out / "mine.txt").write_text("was here before")
    asked = ["sample:phantoms:images_per_class=8", "--out", out, "--epochs", 2, "--set", "batch_size=12", "--json"]
    return out, rift("compare", *asked)


def test_compare_writes_a_document_that_holds_to_the_contract(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((out / "comparison.json").read_text()) and (out / "mine.txt").exists()
    assert {
        "schema",
        "version",
        "created",
        "data",
        "backbone",
        "natural",
        "pretrained",
        "arms",
        "differences",
        "environment",
    } <= set(document)
    assert document["schema"] == 1
    data = document["data"]
    assert {"name", "digest", "classes", "counts", "kept", "changed", "skipped", "warnings"} <= set(data)
    assert sum(data["counts"].values()) == data["kept"] == 8 * len(data["classes"])
    assert {"name", "options", "width", "layers", "parameters", "weights"} <= set(document["backbone"])
    assert (
        document["backbone"]["width"] == 192
        and document["backbone"]["layers"] == 4
        and len(document["backbone"]["weights"]) == 64
    )
    assert {"name", "images", "classes", "warnings"} <= set(document["natural"])
    assert {"natural_accuracy", "natural_top5", "knn_accuracy", "natural_knn_accuracy"} <= set(document["pretrained"])
    assert document["pretrained"]["natural_head"] == "text"
    assert {"python", "torch", "device", "threads", "precision", "rift"} <= set(document["environment"])
    assert [arm["name"] for arm in document["arms"]] == ["none", "rift"]
    for arm in document["arms"]:
        assert {"method", "regularizer", "strength", "trainable_parameters", "mean", "standard_error"} <= set(arm)
        for run in arm["runs"]:
            assert set(RUN) <= set(run) and run["diverged"] is False
            for key in RUN:
                assert run[key] is not None or run[f"{key}_reason"], key
            assert all(
                0 <= run[key] <= 1 for key in ("accuracy", "balanced_accuracy", "auroc", "cka", "cka_natural", "natural_accuracy")
            )
            assert len(run["cka_layers"]) == document["backbone"]["layers"]
            assert arm["mean"]["accuracy"] == run["accuracy"] and arm["standard_error"]["accuracy"] is None
    assert document["arms"][0]["trainable_parameters"] > 2_000_000 and document["arms"][0]["strength"] == 0
    for row in document["differences"]:
        assert {"metric", "arm", "baseline", "difference", "low", "high", "n", "seeds", "p_value", "verdict"} <= set(row)
        assert "natural" not in row["metric"] or row["verdict"] is None, "no verdict on a dozen photos"


def test_a_run_directory_tells_the_whole_story(finished):
    out, _ = finished
    document = json.loads((out / "comparison.json").read_text())
    for arm in document["arms"]:
        folder = out / "lab" / "runs" / arm["runs"][0]["run"]
        rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
        assert len(rows) == document["data"]["kept"] and {row["split"] for row in rows} == {"train", "validation", "test"}
        assert all(abs(sum(float(row[name]) for name in document["data"]["classes"]) - 1) < 1e-4 for row in rows)
        best = [
            max(document["data"]["classes"], key=lambda name: float(row[name])) == row["label"]
            for row in rows
            if row["split"] == "test"
        ]
        assert sum(best) / len(best) == pytest.approx(arm["runs"][0]["accuracy"])
        epochs = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert [event["epoch"] for event in epochs if event["event"] == "epoch"] == [1, 2]
        assert {"cka", "validation_accuracy", "validation_task_loss"} <= set(next(e for e in epochs if e["event"] == "epoch"))


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(finished):
    out, first = finished
    again = rift("compare", "sample:phantoms:images_per_class=8", "--out", out, "--epochs", 2, "--set", "batch_size=12", "--json")
    document, before = json.loads(again.stdout), json.loads(first.stdout)
    assert again.returncode == 0 and document["arms"] == before["arms"]


def test_measure_report_and_list_work_on_the_finished_runs(finished, tmp_path, here):
    out, done = finished
    runs = [arm["runs"][0]["run"] for arm in json.loads(done.stdout)["arms"]]
    measured = here("measure", runs[1], "--lab", out / "lab", "--diagnostic", "pca", "--set", "basis=joint", "--json")
    document = json.loads(measured.stdout)
    assert {"schema", "diagnostic", "settings", "n", "runs"} <= set(document) and document["settings"]["basis"] == "joint"
    assert disk.unsealed((out / "lab" / "runs" / runs[1] / "measures" / "pca.json").read_bytes()) == document
    page = tmp_path / "page.html"
    assert here("report", *(out / "lab" / "runs" / run for run in runs), "--out", page).returncode == 0
    assert "rift" in page.read_text()
    listed = json.loads(here("list", "runs", "--lab", out / "lab", "--json").stdout)
    assert {row["name"] for row in listed} == set(runs)


@pytest.mark.parametrize("menu", ["backbones", "methods", "regularizers", "tasks", "diagnostics", "natural", "samples"])
def test_list_shows_each_menu_with_its_settings(menu, here):
    done = here("list", menu, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows and all({"name", "summary", "settings"} == set(row) for row in rows)


def test_verify_says_what_would_be_kept_and_stores_nothing(shared, tmp_path, here):
    done = here("verify", shared / "data" / "med_wbc_dataset2_5class.zip", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert {"schema", "name", "digest", "classes", "counts", "kept", "changed", "skipped", "warnings", "task"} == set(document)
    assert document["kept"] == 100 and document["counts"]["basophil"] == 3 and not list(tmp_path.iterdir())


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"not an image")
    return path


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda folder: folder / "nowhere.zip", "data.missing", "nowhere.zip"),
        (lambda folder: zipped(folder / "empty.zip", []), "data.too_few", "No image"),
        (lambda folder: zipped(folder / "up.zip", ["../a/1.png", "b/1.png"]), "data.escape", ""),
        (lambda folder: "sample:phantom", "setting.unknown", "phantoms"),
    ],
)
def test_bad_data_is_exit_2_a_code_and_a_sentence_and_leaves_nothing(make, code, words, tmp_path, here):
    out = tmp_path / "out"
    done = here("compare", make(tmp_path), "--out", out)
    assert done.returncode == 2 and done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error[{code}]: ") and words in last and last.endswith(".")
    assert not out.exists()


def test_a_class_with_one_image_is_refused_by_name_and_can_be_left_out(shared, tmp_path, here):
    data = shared / "data" / "med_wbc_dataset1_5class.zip"
    done = here("verify", data)
    assert (
        done.returncode == 2
        and "basophil" in done.stderr
        and "--leave-out-small" in done.stderr
        and "error[data.too_few]" in done.stderr
    )
    kept = json.loads(here("verify", data, "--leave-out-small", "--json").stdout)
    assert "basophil" not in kept["classes"] and kept["warnings"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--regularizer", "rifft"], "setting.unknown"),
        (["--backbone", "resnet50"], "model.unknown"),
        (["--backbone", "checkpoint:path=../../nothing.safetensors"], "model.weights"),
        (["--strength", "auto!"], "setting.range"),
        (["--strength", "-1"], "setting.range"),
        (["--strength", "nan"], "setting.range"),
        (["--epochs", "0"], "setting.range"),
        (["--set", "learning_rate=2"], "setting.range"),
        (["--set", "learning_rate"], "setting.unknown"),
        (["--natural", "imagnet"], "setting.unknown"),
        (["--device", "tpu"], "setting.range"),
        (["--seeds", "0"], "setting"),
        (["--frobnicate"], "setting"),
    ],
)
def test_a_bad_setting_is_exit_2_and_names_what_is_allowed(options, code, tmp_path, here):
    done = here("compare", "sample:phantoms", "--out", tmp_path / "out", *options)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error[{code}") and not (tmp_path / "out").exists()


def test_a_missing_run_says_so(tmp_path, here):
    done = here("measure", "abc", "--diagnostic", "pca", "--lab", tmp_path)
    assert done.returncode == 2 and "error[run.missing]" in done.stderr


def test_errors_look_the_same_from_outside(tmp_path):
    done = rift("verify", tmp_path / "nowhere.zip")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.splitlines()[-1].startswith("error[data.missing]: ")


def test_help_names_every_command():
    done = rift("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("compare", "sweep", "verify", "measure", "report", "list", "pretrain"))


@pytest.mark.slow
def test_a_sweep_has_an_arm_for_each_method_regularizer_and_strength(tmp_path):
    asked = ["--strengths", "0.1,1", "--method", "full", "--method", "linear", "--epochs", 1, "--workers", 2, "--json"]
    done = rift("sweep", "sample:phantoms:images_per_class=5", "--out", tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert document == json.loads(done.stdout) and (tmp_path / "report.html").exists()
    assert [arm["name"] for arm in document["arms"]] == [
        f"{method} {name}" for method in ("full", "linear") for name in ("none", "rift[strength=0.1]", "rift[strength=1]")
    ]
    assert {row["baseline"] for row in document["differences"]} == {"full none"}
    linear = [arm["runs"][0] for arm in document["arms"] if arm["method"]["name"] == "linear"]
    assert len({run["run"] for run in linear}) == 1, "a penalty on a frozen backbone changes nothing and is not trained"
    assert done.stderr.count("changes nothing") == 2
    assert all(run["cka"] == pytest.approx(1.0) and run["natural_agreement"] == 1.0 for run in linear)


@pytest.mark.slow
def test_ctrl_c_is_exit_130_and_the_same_command_goes_on(tmp_path):
    asked = ["compare", "sample:phantoms:images_per_class=5", "--out", str(tmp_path), "--epochs", "500", "--device", "cpu"]
    command = [sys.executable, "-m", "rift", *asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 1/500" in line:
                break
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip().splitlines()[-1].startswith("error[run.stopped]: ")
    lab = Lab(tmp_path / "lab")
    assert {run.state for run in lab.runs()} == {"stopped"} and any(run.events() for run in lab.runs())


def test_sweep_refuses_a_cluster_it_does_not_know(tmp_path, here):
    done = here("sweep", "sample:phantoms", "--out", tmp_path / "out", "--strengths", "1", "--cluster", "moon")
    assert done.returncode == 2 and "error[setting.range]" in done.stderr


@pytest.mark.slow
def test_a_method_that_the_backbone_cannot_carry_is_refused_in_words(tmp_path):
    done = rift("compare", "sample:phantoms:images_per_class=8", "--out", tmp_path, "--method", "last_blocks:blocks=9")
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last) == (2, "error[setting.range]: last_blocks: blocks = 9, but this backbone has 4.")
    assert not (tmp_path / "comparison.json").exists() and not (tmp_path / "report.html").exists()
