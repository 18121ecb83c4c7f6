"""The report: every number is there, a user's text stays text, nothing is fetched, and it fits a phone."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from rift import catalog, overview, report, statistics, verdict
from rift.diagnostics import accuracy, drift, pca, zero_shot
from rift.errors import RunError
from tests.test_diagnostics import CLASSES, HOSTILE, finetuned, pretrained, rotation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SEEDS = 3


@pytest.fixture(scope="module")
def measures() -> dict:
    before = pretrained(n=240, n_natural=300)
    models = {"pretrained": before, "none": finetuned(before, rotation(0.8), 0.6), "rift": finetuned(before, rotation(0.2), 0.3)}
    menu = {"accuracy": accuracy, "drift": drift, "pca": pca, "zero_shot": zero_shot}
    return {arm: {name: one.measure(before, after) for name, one in menu.items()} for arm, after in models.items()}


@pytest.fixture
def document(measures) -> dict:
    """A comparison of two arms with two seeds, with hostile class and file names."""

    def arm(name: str, strength: float) -> dict:
        merged = {key: value for one in measures[name].values() for key, value in one.items() if isinstance(value, float)}
        merged |= {"seconds": 83.4, "step_milliseconds": 41.27, "task_loss": 0.41, "penalty": 0.07}
        runs = [{"run": f"{name}{seed}00112233445566", "seed": seed, "diverged": False, **merged} for seed in range(SEEDS)]
        error = {key: 0.0123 for key in merged}
        choice = {"name": name, "options": {"momentum": 0.9} if name == "rift" else {}}
        method = {"name": "lora", "options": {"rank": 8}}
        parts = {"method": method, "regularizer": choice, "strength": strength, "trainable_parameters": 73731}
        return {"name": name, **parts, "runs": runs, "mean": merged, "standard_error": error}

    def difference(metric: str, value: float, reach: float, n: int, p: float) -> dict:
        one = statistics.Difference(value, value - reach, value + reach, n, SEEDS, p)
        return {"metric": metric, "arm": "rift", "baseline": "none", **vars(one)}

    return {
        "schema": 1,
        "version": "0.1.0",
        "created": "2026-11-21T12:00:00Z",
        "data": {
            "name": f"skin {HOSTILE}.zip",
            "digest": "ab" * 32,
            "classes": list(CLASSES),
            "counts": {"train": 900, "validation": 120, "test": 240},
            "kept": 1260,
            "changed": [{"file": f"nevus/{HOSTILE}.png", "code": "image.grey", "message": "grey became RGB"}] * 250,
            "skipped": [{"file": "a/notes.txt", "code": "data.image", "message": "not an image"}],
            "warnings": [],
        },
        "backbone": {"name": "embedded", "options": {}, "width": 192, "layers": 3, "parameters": 2712345, "weights": "cd" * 32},
        "natural": {"name": "bundled", "images": 300, "classes": [f"thing {i}" for i in range(10)], "warnings": []},
        "pretrained": {"natural_accuracy": 0.981, "natural_top5": 1.0, "knn_accuracy": 0.7},
        "arms": [arm("none", 0.0), arm("rift", 1.0)],
        "differences": verdict.judged(
            [
                difference("balanced_accuracy", -0.004, 0.021, 240, 0.7),
                difference("accuracy", 0.09, 0.021, 240, 0.001),
                difference("cka_debiased", 0.21, 0.04, 240, 0.001),
                difference("natural_accuracy", -0.12, 0.05, 300, 0.002),
            ]
        ),
        "environment": {"python": "3.11.2", "torch": "2.15", "device": "cpu", "threads": 1, "precision": "fp32", "rift": "0.1.0"},
    }


@pytest.fixture
def page(document, measures, tmp_path) -> Path:
    natural = np.random.default_rng(0).integers(0, 255, (300, 48, 48, 3), np.uint8)
    report.write(document, measures, tmp_path / "report.html", natural=natural)
    return tmp_path / "report.html"


def _own(page: Path) -> str:
    """The page without the library, which is no text of ours."""
    return re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)


def test_the_page_holds_every_diagnostic_and_stands_alone(page):
    text = _own(page)
    for name in catalog.names("diagnostics"):
        if name in ("accuracy", "drift", "pca", "zero_shot"):
            assert f'id="{name}"' in text
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "default-src 'none'" in text
    assert "Plotly" in page.read_text(encoding="utf-8")


def test_users_text_is_escaped_everywhere(page):
    text = _own(page)
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert text.count("<img ") == 12 == text.count('<img src="data:image/jpeg;base64,')


def test_a_figure_cannot_end_the_element_that_holds_it():
    assert "<" not in go.Figure(go.Scatter(x=[1], name="</script><b>"), {"title": {"text": "<!--<script>"}}).to_json()


def test_verdicts_say_win_loss_and_neither_in_the_same_words(page):
    text = _own(page)
    assert "Balanced accuracy with rift is not distinguishable from that with none: -0.004 (95 % interval -0.025 to" in text
    assert "Debiased CKA of medical images is higher with rift than with none: +0.210" in text
    assert "Natural accuracy is lower with rift than with none: -0.120" in text
    assert (
        "Accuracy: no verdict on rift against none, because it is outside the family of tests and only described: +0.090" in text
    )
    assert text.count("n = 300 images, 3 seeds") == 1 and '<p class="chip">described only</p>' in text
    assert "adjusted as one family of 3 (Holm)" in text and "3 seeds, paired" in text


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, "Natural accuracy of this one run with rift is lower than that of this one run with none: -0.120"),
        (2, "Natural accuracy: no verdict on rift against none, because two seeds cannot tell the methods from the chance"),
    ],
)
def test_one_seed_and_two_seeds_say_what_they_can(document, measures, tmp_path, seeds, said):
    document["differences"] = verdict.judged([{**row, "seeds": seeds} for row in document["differences"]])
    report.write(document, measures, tmp_path / "report.html")
    text = _own(tmp_path / "report.html")
    assert said in text and "with rift than with none" not in text
    assert ("never of the methods" in text) == (seeds == 1) and ("Two seeds: numbers without a verdict" in text) == (seeds == 2)


def test_a_document_from_before_p_values_were_adjusted_still_shows(document, measures, tmp_path):
    keys = ("metric", "arm", "baseline", "difference", "low", "high", "n", "seeds", "p_value", "verdict")
    old = [{key: row[key] for key in keys} | {"verdict": "higher"} for row in document["differences"]]
    new = overview.verdicts(document)
    document["differences"] = old
    assert overview.verdicts(document) == new  # judged by today's rules: accuracy is described, the p-values are adjusted
    report.write(document, measures, tmp_path / "report.html")
    assert "adjusted as one family of 3 (Holm)" in _own(tmp_path / "report.html")


def test_a_natural_difference_of_few_images_has_no_verdict(document, measures, tmp_path):
    document["differences"] = verdict.judged([{**document["differences"][3], "n": 150}])
    report.write(document, measures, tmp_path / "report.html")
    assert "no verdict on rift against none, because it takes at least 200 images" in _own(tmp_path / "report.html")


def test_the_table_shows_mean_error_n_and_the_reason_of_what_is_missing(document, measures, tmp_path):
    arm = document["arms"][1]
    arm["mean"]["accuracy"] = 0.98765
    arm["mean"]["natural_accuracy_unrotated"] = None
    arm["standard_error"]["natural_accuracy_unrotated"] = None
    arm["runs"][0] |= {"natural_accuracy_unrotated": None, "natural_accuracy_unrotated_reason": "too few images & labels"}
    report.write(document, measures, tmp_path / "report.html")
    text = _own(tmp_path / "report.html")
    assert "<td>0.988<small>± 0.012</small></td>" in text
    assert "too few images &amp; labels" in text
    assert "300 natural images" in text and "240 test images" in text


def test_long_tables_are_cut_and_counted(page):
    assert "and 50 more" in _own(page) and ">250<" in _own(page)


def test_numbers_are_never_rounded_to_perfect():
    shown = [report.number(x) for x in (0.9996, 0.0004, 1.0, 0.5, None, float("nan"), 83.44, 12345, True, np.float32(0.25))]
    assert shown == ["0.9996", "0.0004", "1", "0.500", "–", "–", "83.4", "12,345", "yes", "0.250"]


def test_deep_pictures_are_shown_as_bright_as_shallow_ones():
    shallow = np.full((8, 8, 3), 200, np.uint8)
    assert report.data_uri(shallow) == report.data_uri(shallow.astype(np.uint16) * 257)


def test_photos_are_spread_over_the_set_and_carry_three_names(measures):
    photos = report.photos(measures, 4)
    labels = measures["none"]["zero_shot"]["labels"]
    names = measures["none"]["zero_shot"]["natural_classes"]
    assert [photo["index"] for photo in photos] == [0, 99, 199, 299]
    assert [photo["label"] for photo in photos] == [names[labels[i]] for i in (0, 99, 199, 299)]
    assert list(photos[0]["models"]) == ["pretrained", "none", "rift"]
    assert all(len(one) == 3 for one in photos[0]["models"].values())
    assert report.photos({"none": {"zero_shot": {"top5": None}}}) == []


def test_no_measures_and_one_arm_still_make_a_page(document, tmp_path):
    lonely = copy.deepcopy(document) | {"differences": []}
    lonely["arms"] = lonely["arms"][:1]
    report.write(lonely, {}, tmp_path / "report.html")
    assert "it takes two finished arms" in _own(tmp_path / "report.html")


def test_a_folder_that_is_not_there_is_a_readable_error(document, measures, tmp_path):
    with pytest.raises(RunError, match=r"Could not write report\.html") as error:
        report.write(document, measures, tmp_path / "nowhere" / "report.html")
    assert error.value.code == "run.disk"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_in_a_browser_nothing_is_fetched_run_or_cut_off(page, width, scheme):
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        said, asked, dialogs = [], [], []
        tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        tab.goto(page.as_uri())
        tab.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 8")
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        overflow = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        # The page's own text color reaches the plots, whatever the theme.
        fill, color = tab.evaluate(
            "[getComputedStyle(document.querySelector('.plot .xtick text')).fill, getComputedStyle(document.body).color]"
        )
        pictures = tab.evaluate("[...document.images].filter(i => !i.src.startsWith('data:') || !i.naturalWidth).length")
        ticks = tab.evaluate("[...document.querySelectorAll('.plot text')].some(t => t.textContent.startsWith('<img src=x'))")
        browser.close()
    assert said == [] and dialogs == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert overflow <= 0 and pictures == 0
    assert fill == color
    assert ticks
