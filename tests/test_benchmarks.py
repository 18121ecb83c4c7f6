"""BENCHMARKS.md is what its numbers say, the GPU script counts rightly, and a small version of each section runs, untimed."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from rift import catalog
from tests.benchmarks import __main__ as command
from tests.benchmarks import gpu, measured, page, penalties, sections, start

ROOT = Path(__file__).parents[1]
GPU = {
    "gpu": "A Chip 80GB",
    "smoke": False,
    "matmul": {"size": 8192, "rate": 6.0e14},
    "models": [
        {
            "model": "CLIP ViT-B/16",
            "speed": {
                "64": {
                    "loop, eager": {
                        "images_per_second": {"median": 2000.0, "quarter": 1990.0, "three_quarters": 2010.0},
                        "fallback": "",
                        "parts": 1,
                        "peak_gb": 9.5,
                    },
                    "loop, CUDA graphs": {"fallback": "RuntimeError: no", "peak_gb": 1.0},
                }
            },
            "overhead": {
                "64": {
                    "rift": {"median": 1.004, "quarter": 1.0, "three_quarters": 1.01, "parts": 1},
                    "rsc": {"why": "it does not fit"},
                }
            },
        }
    ],
}


def stored() -> dict:
    return json.loads(page.NUMBERS.read_text())


def test_the_page_is_made_of_the_stored_numbers():
    assert page.PAGE.read_text() == page.render(stored())


def test_the_page_says_what_was_not_measured_until_it_was():
    text = page.render({"sections": {}})
    assert "Not yet run on a GPU" in text and text.count("Not yet measured") == len(sections.SECTIONS) - 1
    for name, section in sections.SECTIONS.items():
        assert f"## {section.title}\n" in text and f"--only {name}`" in text


def test_every_number_of_the_page_has_its_machine_and_versions_and_no_name_of_a_computer():
    import platform

    for one in stored()["sections"].values():
        assert {"processor", "cores", "threads", "gpu", "busy_before"} == set(one["machine"]) and one["quick"] is False
        assert {"python", "torch"} <= set(one["versions"])
    assert platform.node() not in page.NUMBERS.read_text()
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|work)/", page.NUMBERS.read_text())


def test_a_gpu_is_named_only_where_one_was(monkeypatch):
    numbers = copy.deepcopy(GPU)
    gpu.shares(numbers["models"][0]["speed"]["64"], work=1.2e11, rate=6.0e14)
    text = gpu.table(numbers)
    assert "A Chip 80GB" in text and "600 TFLOP/s" in text and "| 40.0 % | 9.5 |" in text
    assert "RuntimeError: no" in text and "1.0040 (1.0000 to 1.0100)" in text and "it does not fit" in text
    for change in ({"gpu": None}, {"smoke": True}):
        assert gpu.table({**numbers, **change}) == "Not yet run on a GPU."


def test_the_work_of_an_image_is_that_of_its_products(toy_backbone):
    """Counted by hand: per multiply and add two, forward once and backward twice, but none for a gradient of the pixels."""
    vit = toy_backbone.vit
    n, d, layers = vit.patch_embed.num_patches + vit.num_prefix_tokens, vit.embed_dim, len(vit.blocks)
    hidden = vit.blocks[0].mlp.fc1.out_features
    block = 2 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * hidden)
    patch = 2 * vit.patch_embed.num_patches * d * 3 * vit.patch_embed.patch_size[0] ** 2
    assert gpu.work_of(toy_backbone) == pytest.approx(3 * layers * block + 2 * patch, rel=0.01)
    assert gpu.work_of(toy_backbone, images=4) == pytest.approx(gpu.work_of(toy_backbone), rel=1e-6)


def test_the_rate_of_a_product_is_its_operations_by_its_seconds(monkeypatch):
    monkeypatch.setattr(gpu, "seconds", lambda *_: [0.5, 0.25, 1.0])
    assert gpu.matmul_rate(100, torch.device("cpu"))["median"] == 2 * 100**3 / 0.5


def test_a_form_that_cannot_be_compiled_is_eager_and_says_why():
    """Also where it is found out only when the model is first asked."""

    def broken(*_: object) -> None:
        raise RuntimeError("no kernel for this chip")

    model, images = torch.nn.Linear(3, 2), torch.ones(4, 3)
    wanted = model(images)
    for backend, said in (("no such thing", "InvalidBackend"), (broken, "no kernel for this chip")):
        assert said in gpu.formed(model, {"backend": backend}, lambda: model(images))
        assert torch.equal(model(images), wanted)
    assert gpu.formed(model, None, lambda: 1 / 0) == ""


@pytest.mark.slow
def test_the_gpu_script_goes_its_whole_way_without_one(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "FORMS", {"eager": None, "compiled": {"backend": "no such thing"}})
    monkeypatch.setattr(gpu, "PENALTIES", ("rift", "rsc"))
    monkeypatch.setattr(sys, "argv", ["gpu", "--smoke", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    one = json.loads((tmp_path / "gpu.json").read_text())["sections"]["gpu"]
    (model,) = one["numbers"]["models"]
    rate = one["numbers"]["matmul"]["rate"]
    for row in model["speed"]["4"].values():
        assert row["share"]["median"] == pytest.approx(row["images_per_second"]["median"] * model["work"] / rate, abs=1e-4)
    assert model["speed"]["4"]["loop, compiled"]["fallback"] and not model["speed"]["4"]["loop, eager"]["fallback"]
    assert set(model["overhead"]["4"]) == {"rift", "rsc"} and one["numbers"]["gpu"] is None
    assert "Not yet run on a GPU" in page.render({"sections": {"gpu": one}})


def test_arms_of_the_penalty_benchmark_take_real_steps(toy_backbone):
    training = penalties.Training(batch_size=4)
    views = penalties.drawn(penalties.with_words(toy_backbone), training, torch.device("cpu"))
    _, events = penalties.arm(toy_backbone, "rift", views, training)
    seen = [penalties.next_step(events).values for _ in range(3)]
    assert [one["step"] for one in seen] == [1, 2, 3] and seen[2]["penalty"] > 0 and len({one["task_loss"] for one in seen}) == 3
    assert set(penalties.FORMS) == {name for name in penalties.FORMS if name.split("[")[0] in catalog.names("regularizers")}
    found = penalties.steps(2, 4, toy_backbone, ("none", "rift"), warm=1)
    assert (
        set(found["milliseconds"]) == {"none", "rift"} and found["ratio_to_none"]["rift"]["median"] > 0 and found["parts"] == {}
    )


def test_documents_are_merged_by_section_and_a_quick_run_is_no_measurement():
    one = {"sections": {"steps": {"quick": False, "n": 1}, "training": {"quick": False, "n": 1}}}
    more = {"sections": {"steps": {"quick": False, "n": 2}}}
    assert page.merged(one, more) == {"sections": {"training": {"quick": False, "n": 1}, "steps": {"quick": False, "n": 2}}}
    with pytest.raises(ValueError, match="quick run is no measurement: steps"):
        page.merged(one, {"sections": {"steps": {"quick": True}}})


def ask(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks", *arguments])
    return command.main()


def test_the_command_merges_what_was_measured_elsewhere_and_writes_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(page, "NUMBERS", tmp_path / "benchmarks.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "BENCHMARKS.md")
    numbers = copy.deepcopy(GPU)
    found = sections.document("gpu", numbers, False, 0.4)
    assert found["sections"]["gpu"]["machine"]["gpu"] == "A Chip 80GB" and measured.machine()["gpu"] is None
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    assert ask(monkeypatch, "--merge", str(tmp_path / "gpu.json"), "--write") == 0
    text = (tmp_path / "BENCHMARKS.md").read_text()
    assert (
        "A Chip 80GB" in text
        and "**others used 40% of it just before**" in text
        and "Not yet run on a GPU" not in text
        and "Not yet measured" in text
    )
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == found
    for wrong, said in ((["--only", "nothing"], "there is no section nothing"), (["--quick", "--write"], "no measurement")):
        with pytest.raises(SystemExit):
            ask(monkeypatch, *wrong)
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steps", "similarity"])
def test_a_small_version_of_a_section_runs_and_can_be_shown(name):
    """The others call what has tests of its own: the command line, diagnostics, the page."""
    found = json.loads(json.dumps(sections.measure(name, True, {})))["sections"][name]
    text = sections.SECTIONS[name].table(found["numbers"])
    assert found["quick"] and len(text.splitlines()) > 2
    if name == "similarity":
        wrong = [one["largest_difference_to_double"] for one in found["numbers"]["speed"]]
        assert all(one["ours"] < 1e-6 and one["streamed"] < 1e-12 for one in wrong)
    else:
        assert [line.split("`")[1] for line in text.splitlines()[2:]] == [form for form in penalties.FORMS if form != "none"]


def test_tables_tell_the_numbers_of_sections_that_take_long():
    job = {"total_ratio_cold": 1.021, "total_ratio_cached_targets": 0.998}
    assert "| 1.021 |" in sections.SECTIONS["command"].table({"main_job": job})
    spread, tick = {"p50_seconds": 0.2, "p95_seconds": 0.3}, {"kilobytes_each": 2.0}
    idle = {"tick": tick, "button": {"switch": spread, "ask": spread}}
    busy = {"tick": tick, "button": {"switch": {"p50_seconds": 0.5}, "ask": spread}}
    text = sections.SECTIONS["app"].table(
        {"app_start_seconds": 4.5, "page_full": {"data": spread}, "idle": idle, "training": busy}
    )
    assert "answers after its start, s (goal ≤ 5) | 4.50 |" in text
    assert "over one idle, p50 | 2.50 |" in text and "p95 over p50 | 1.50 |" in text


def test_the_table_of_starts_tells_each_part_and_its_goal():
    medians = [
        [name, {"process": 0.01, "preparing": 0.1, "step": 0.4, "whole": 0.51 + place}] for place, name in enumerate(start.ARMS)
    ]
    lines = sections.SECTIONS["start"].table({"medians": medians}).splitlines()
    assert lines[2].endswith("| 0.01 | 0.10 | 0.40 | 0.51 |  |") and len(lines) == 8
    assert [line.split("|")[-3:-1] for line in lines if "≤" in line] == [[" 3.51 ", " ≤ 1 "], [" 4.51 ", " ≤ 1 "]]


def test_a_section_that_fails_takes_no_other_with_it(monkeypatch, tmp_path):
    class Pool:
        def __init__(self, *_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def submit(self, work, name, quick, options):
            self.name = name
            return self

        def result(self):
            if self.name == "steps":
                raise RuntimeError("it broke")
            return {"sections": {self.name: {"numbers": 1}}}

    monkeypatch.setattr(command, "ProcessPoolExecutor", Pool)
    found, failed = command.measured(["steps", "command"], True, {}, tmp_path / "out.json")
    assert failed == ["steps"] and list(found["sections"]) == ["command"]
    assert json.loads((tmp_path / "out.json").read_text()) == found
