"""Is there a test for every defence? Each is switched off in turn, and the test that is named for it must fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# what is switched off, and in which file of this folder which test notices
DEFENCES = {
    # the door
    "rift.ui.intake:FIELD_BYTES=10**12": "test_door.py::test_no_body_is_larger_than_it_may_be",
    "rift.ui.intake:Body.take=lambda *a: None": "test_door.py::test_no_body_is_larger_than_it_may_be",
    "rift.ui.guard:JSON_BYTES=10**12": "test_door.py::test_json_has_a_limit_of_its_own",
    "rift.ui.intake:Buckets.take=lambda *a: 0.0": "test_door.py::test_too_many_requests_are_refused_in_words",
    "rift.ui.guard:UPLOADS_AT_ONCE=10**6": "test_door.py::test_an_address_has_so_many_uploads_at_once",
    "rift.ui.guard:closed=lambda path: False": "test_door.py::test_what_this_app_does_not_have_is_not_there",
    "rift.ui.guard:Guard._own=lambda *a: True": "test_door.py::test_another_sites_page_gets_nothing",
    "rift.ui.guard:_name=lambda netloc: '127.0.0.1'": "test_door.py::test_another_sites_page_gets_nothing",
    "rift.ui.guard:HEADERS={}": "test_door.py::test_every_answer_has_the_headers_and_keeps_its_own",
    "rift.ui.intake:_public=lambda text: True": "test_door.py::test_whose_request_it_is",
    "rift.ui.fresh:sweep=lambda *a: None": "test_door.py::test_folder_and_seed_are_new_and_private_and_those_of_the_dead_go",
    "rift.catalog:refuse_files=lambda *a: None": "test_weights.py::test_a_visitor_names_a_model_of_the_list_or_none",
    "rift.catalog:without_folders=lambda m, c: c": (
        "test_weights.py::test_document_share_and_report_name_the_file_and_not_its_place"
    ),
    "rift.portable:swaps=lambda *a: {}": "test_weights.py::test_a_bundle_names_the_file_and_not_its_place_and_can_be_opened",
    "rift.sealed:_demand=lambda *a: None": "test_weights.py::test_a_bundle_that_names_a_place_is_refused",
    "rift.errors:LONGEST=10**9": "test_weights.py::test_what_an_error_repeats_is_short",
    "rift.table:cell=lambda v: v": "test_exports.py::test_a_text_that_would_be_a_formula_begins_with_an_apostrophe",
    "rift.figures:text=lambda n, longest=24: str(n)": "test_escapes.py::test_no_figure_carries_markup",
    # DICOM
    "rift.dicom:MOST_BYTES=10**9": "test_dicom.py::test_one_such_file_refuses_the_upload_and_nothing_stays[D20 deflated bomb]",
    "rift.dicom:_refuse_other_size=lambda *a: None": (
        "test_dicom.py::test_one_bad_file_is_skipped_with_its_reason[D18 a JPEG 2000 stream of its own size]"
    ),
    "rift.windows:through=lambda v, p: (None, '')": (
        "test_dicom.py::test_the_picture_is_the_one_that_the_file_means[D1 MONOCHROME1 is its twin turned over]"
    ),
    "rift.images:kept=lambda i, d: d": (
        "test_dicom.py::test_what_is_kept_is_a_png_without_any_text_and_the_same_picture[D1 MONOCHROME1 is its twin turned over]"
    ),
    "rift.dicom:_hush=lambda: None": "test_dicom.py::test_nothing_of_a_header_is_in_anything_that_comes_out[]",
    "rift.review:REFUSING=()": "test_dicom.py::test_one_such_file_refuses_the_upload_and_nothing_stays[D15 burned in]",
    "rift.windows:LOW=0": "test_dicom.py::test_without_a_usable_window_the_percentiles_are_taken_and_said[none]",
    # sets and files
    "rift.copies:pairs=lambda s: []": "test_sets.py::test_near_copies_stay_on_one_side_of_every_split",
    "rift.copies:LEAST_ALONE=-2.0": "test_sets.py::test_pictures_that_share_a_frame_are_no_copies",
    "rift.shortcuts:hints=lambda *a: []": "test_sets.py::test_findings_have_shortcuts_too",
    "rift.shortcuts:GAIN=-9.0 ; rift.shortcuts:SURE=-9.0": "test_sets.py::test_traits_that_tell_nothing_are_not_told",
    "rift.lookalikes:alike=lambda n: []": "test_inputs.py::test_row[N4 l and 1]",
    "rift.intact:sum_of=lambda d: ''": "test_sets.py::test_a_run_does_not_train_on_a_changed_picture",
    "rift.intact:check=lambda m: None": "test_sets.py::test_a_changed_label_is_noticed",
    "rift.intact:whole=lambda p: p.exists()": "test_sets.py::test_changed_pixels_are_made_again_from_the_pictures",
    "rift.archive:_refuse_entry=lambda i, n, l: None": "test_inputs.py::test_row[Z6 link]",
    "rift.archive:_refuse_overlap=lambda a, e: None": "test_inputs.py::test_row[Z10 overlap]",
    "rift.archive:_refuse_crowd=lambda f, s, l: None": "test_inputs.py::test_row[Z12 promised]",
    "rift.images:_refuse_size=lambda w, h: None": "test_inputs.py::test_row[I6 1 x 10000]",
    "rift.review:refuse_twins=lambda n: None": "test_inputs.py::test_row[Z24 case twins]",
    "rift.review:without_copies=lambda r, n: r": "test_inputs.py::test_row[L13 one picture, two labels]",
    # the cage and visitors
    "rift.cage:_CAGED=False": "test_cage.py::test_the_cage_opens_again_after_its_keeper_was_killed",
    "rift.cage:_digest=lambda answer: str(answer['digest'])": "test_cage.py::test_nothing_of_a_child_is_believed_unchecked",
    "rift.visitors:KEY='.*'": "test_visitors.py::test_what_is_no_key_opens_nothing",
    "rift.visitors:name_of=lambda key: key": "test_visitors.py::test_a_key_opens_one_lab_and_its_folder_does_not_tell_it",
    "rift.visitors:NAME='.*'": "test_visitors.py::test_names_of_labs_mean_those_of_whoever_asks",
    "rift.quota:refuse_start=lambda *a: None": "test_visitors.py::test_sixty_starts_at_once_are_counted_exactly",
    "rift.quota:refuse_more=lambda lab: None": "test_visitors.py::test_a_full_lab_and_a_full_disk_take_nothing_more",
    "rift.jobs:served=lambda lab: 0.0": "test_visitors.py::test_the_worker_serves_next_whom_it_served_longest_ago",
    "rift.visitors:_last_seen=lambda folder: 1e18": (
        "test_visitors.py::test_what_is_old_is_deleted_also_by_a_server_that_never_saw_it"
    ),
    "rift.visitors:SEEN_SECONDS=1e9": "test_visitors.py::test_whoever_comes_back_in_time_keeps_everything",
}


def path_of(test: str) -> str:
    return f"tests/reliability/{test}"


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str, str], list[str]]]:
    """A process that has imported what the tests need, and runs each in a fork."""
    files = sorted({path_of(test).partition("::")[0] for test in DEFENCES.values()})
    command = [sys.executable, "-m", "tests.reliability.switched", *files]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, bufsize=1, **pipes) as process:

        def ask(switch: str, test: str) -> list[str]:
            process.stdin.write(json.dumps([switch, test]) + "\n")
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("switch", DEFENCES, ids=lambda switch: switch.partition("=")[0])
def test_a_defence_that_is_off_is_missed(switch, run):
    test = path_of(DEFENCES[switch])
    outcome, why = run(switch, test)
    assert outcome == "failed", f"{test} without its defence: {outcome} {why}"
