"""Is there a test for every defence? Each is switched off in turn, and the test that is named for it must fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTILE = "test_bundle.py::test_a_hostile_bundle_is_refused_in_one_sentence_and_leaves_nothing"
# what is switched off, and in which file of this folder which test notices
DEFENCES = {
    # the door
    "rift.ui.intake:FIELD_BYTES=10**12": "test_door.py::test_no_body_is_larger_than_it_may_be",
    "rift.ui.intake:Body.take=lambda *a: None": "test_door.py::test_no_body_is_larger_than_it_may_be",
    "rift.ui.guard:JSON_BYTES=10**12": "test_door.py::test_json_has_a_limit_of_its_own",
    "rift.ui.intake:Buckets.take=lambda *a: 0.0": "test_door.py::test_too_many_requests_are_refused_in_words",
    "rift.ui.guard:UPLOADS_AT_ONCE=20": "test_door.py::test_an_address_has_so_many_uploads_at_once",
    "rift.ui.guard:closed=lambda path: False": "test_door.py::test_what_this_app_does_not_have_is_not_there",
    "rift.ui.guard:CANCEL='/elsewhere'": "test_door.py::test_where_visitors_are_kept_apart_nobody_cancels_what_a_session_asked",
    "rift.ui.guard:Guard._own=lambda *a: True": "test_door.py::test_another_sites_page_gets_nothing",
    "rift.ui.guard:_name=lambda netloc: '127.0.0.1'": (
        "test_door.py::test_another_sites_page_gets_nothing[GET-/config-None-more15-hosts15-False-403]"
    ),
    "rift.ui.guard:client=lambda *a: json.dumps(id(a[0]))": "test_door.py::test_too_many_requests_are_refused_in_words",
    "rift.ui.guard:API='/elsewhere/'": (
        "test_door.py::test_too_many_requests_are_refused_in_words[events-POST-/gradio_api/queue/join-2]"
    ),
    "rift.ui.guard:HEADERS={}": "test_door.py::test_every_answer_has_the_headers_and_keeps_its_own",
    "rift.ui.intake:_public=lambda text: True": "test_door.py::test_whose_request_it_is",
    "rift.ui.fresh:sweep=lambda *a: None": "test_door.py::test_folder_and_seed_are_new_and_private_and_those_of_the_dead_go",
    "rift.ui.fresh:secrets.token_hex=lambda n: 'a' * 64": (
        "test_door.py::test_folder_and_seed_are_new_and_private_and_those_of_the_dead_go"
    ),
    "rift.catalog:refuse_files=lambda *a: None": (
        "test_weights.py::test_a_visitor_names_a_model_of_the_list_or_none[a file that is there]"
    ),
    "rift.catalog:without_folders=lambda m, c: c": (
        "test_weights.py::test_document_share_and_report_name_the_file_and_not_its_place"
    ),
    "rift.portable:swaps=lambda *a: {}": "test_weights.py::test_a_bundle_names_the_file_and_not_its_place_and_can_be_opened",
    "rift.portable:disk=mock.Mock(wraps=was, SEAL='none')": (
        "test_weights.py::test_a_bundle_names_the_file_and_not_its_place_and_can_be_opened"
    ),
    "rift.portable:_log=lambda d, s: importlib.import_module('rift.portable').swapped(d.decode(), s).encode()": (
        "test_weights.py::test_a_bundle_names_the_file_and_not_its_place_and_can_be_opened"
    ),
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
    "rift.copies:pairs=lambda s: []": "test_sets.py::test_near_copies_across_given_parts_are_told",
    "rift.stratify:units_of=lambda g, n: __import__('numpy').arange(n)": (
        "test_sets.py::test_near_copies_stay_on_one_side_of_every_split"
    ),
    "rift.copies:LEAST_ALONE=-2.0": "test_sets.py::test_pictures_that_share_a_frame_are_no_copies",
    "rift.shortcuts:hints=lambda *a: []": "test_sets.py::test_findings_have_shortcuts_too",
    "rift.shortcuts:GAIN=-9.0 ; rift.shortcuts:SURE=-9.0": "test_sets.py::test_traits_that_tell_nothing_are_not_told",
    "rift.lookalikes:alike=lambda n: []": "test_inputs.py::test_row[N4 l and 1]",
    "rift.intact:sum_of=lambda data: ''": "test_sets.py::test_a_changed_picture_is_noticed_by_its_name",
    "rift.intact:refuse_changed=lambda folder: None": (
        "test_numbers.py::test_a_picture_that_changed_on_the_disk_is_noticed_before_training"
    ),
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
    "rift.cage:_digest=lambda answer: str(answer['digest'])": (
        "test_cage.py::test_nothing_of_a_child_is_believed_unchecked[a way out]"
    ),
    "rift.visitors:KEY='.*'": "test_visitors.py::test_what_is_no_key_opens_nothing",
    "rift.visitors:name_of=lambda key: key": "test_visitors.py::test_a_key_opens_one_lab_and_its_folder_does_not_tell_it",
    "rift.visitors:NAME='.*'": "test_visitors.py::test_names_of_labs_mean_those_of_whoever_asks",
    "rift.ui.visit:Sessions.own=lambda *a: True": "test_visitors.py::test_a_session_belongs_to_the_key_that_came_with_it_first",
    "rift.quota:refuse_start=lambda *a: None": "test_visitors.py::test_sixty_starts_at_once_are_counted_exactly",
    "rift.quota:refuse_more=lambda lab: None": "test_visitors.py::test_a_full_lab_and_a_full_disk_take_nothing_more",
    "rift.jobs:served=lambda lab: 0.0": "test_visitors.py::test_the_worker_serves_next_whom_it_served_longest_ago",
    "rift.visitors:_last_seen=lambda folder: 1e18": (
        "test_visitors.py::test_what_is_old_is_deleted_also_by_a_server_that_never_saw_it"
    ),
    "rift.visitors:SEEN_SECONDS=1e9": "test_visitors.py::test_whoever_comes_back_in_time_keeps_everything",
    "rift.visitors:LEFTOVERS=()": "test_visitors.py::test_what_killed_processes_left_half_done_is_swept",
    "rift.visitors:consented=lambda lab: True": "test_visitors.py::test_a_full_lab_and_a_full_disk_take_nothing_more",
    "rift.quota:of=lambda lab: None": "test_visitors.py::test_a_run_is_stopped_when_its_time_is_up_and_says_so",
    "rift.visitors:re.fullmatch=lambda *a: True": "test_visitors.py::test_names_of_labs_mean_those_of_whoever_asks",
    "rift.cage:_end=lambda *a: None": "test_cage.py::test_a_file_that_ends_its_reader_is_left_out_by_name[sleep]",
    "rift.runs:secrets.token_urlsafe=lambda n: 'the same'": "test_foreign.py::test_the_key_of_a_lab_is_its_own_and_stays",
    # pages
    "rift.ui.widgets:Markup=str": "test_escapes.py::test_every_sink_of_the_page_makes_text_of_it",
    "rift.report:jinja2.Environment=lambda **k: was(**{**k, 'autoescape': False})": (
        "test_escapes.py::test_report_and_shared_page_are_text[bare]"
    ),
    # uploads
    "rift.archive:_safe_name=lambda i, l: i.filename": "test_inputs.py::test_row[Z1 parent]",
    "rift.archive:_unzip=lambda a, i: a.read(i)": "test_inputs.py::test_row[Z18 checksum]",
    "rift.archive:unicodedata.category=lambda sign: 'Ll'": "test_inputs.py::test_row[N2 right to left]",
    "rift.review:_refuse_many=lambda *a: None": "test_inputs.py::test_row[L5 too many classes]",
    "rift.hints:leak=lambda *a: None": "test_inputs.py::test_row[L12 one patient in both]",
    "rift.table:_row=lambda cells, width, columns, line: was(cells, len(cells), columns, line)": (
        "test_inputs.py::test_row[C5 ragged]"
    ),
    "rift.images:_refuse_other=lambda d: None ; rift.images:FORMATS=None": "test_inputs.py::test_row[I4 GIF]",
    "rift.images:_to_rgb=lambda p, c: p.convert('RGB')": "test_inputs.py::test_row[I19 hidden color]",
    # files of a lab
    "rift.checkpoint:hmac.compare_digest=lambda a, b: True": (
        "test_foreign.py::test_a_checkpoint_of_another_lab_run_or_hand_is_refused"
    ),
    "rift.checkpoint:json.loads=lambda t: {**was(t), 'run': mock.ANY}": (
        "test_foreign.py::test_a_checkpoint_of_another_lab_run_or_hand_is_refused"
    ),
    "rift.checkpoint:refuse_misfit=lambda t, p, w: {k.removeprefix(p): v for k, v in t.items() if k.startswith(p)}": (
        "test_foreign.py::test_a_checkpoint_of_another_lab_run_or_hand_is_refused"
    ),
    "rift.disk:unsealed=json.loads": "test_faults.py::test_damaged_measurements_settings_and_caches_are_not_believed",
    "rift.disk:whole=lambda line: True": (
        "test_faults.py::test_a_flipped_bit_in_a_log_leaves_a_gap_that_is_told_and_nothing_wrong"
    ),
    "rift.disk:replacing=contextlib.contextmanager(lambda path: (yield path.open('wb')))": (
        "test_kills.py::test_a_kill_at_every_point_of_writing_a_checkpoint_leaves_the_one_before_or_the_new_one"
    ),
    "rift.disk:_sync=lambda folder: None": "test_kills.py::test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after",
    "rift.disk:sweep=lambda *a: None": (
        "test_kills.py::test_a_kill_at_every_point_of_writing_a_checkpoint_leaves_the_one_before_or_the_new_one"
    ),
    "rift.runs:_intact=lambda *a: True": (
        "test_faults.py::test_a_flipped_bit_in_a_result_is_no_number_and_going_on_makes_it_again"
    ),
    "rift.runs:Run.whole=lambda self, name: self.path / name": (
        "test_faults.py::test_a_flipped_bit_in_what_a_finished_run_wrote_is_refused_in_words"
    ),
    # processes
    "rift.jobs:is_the_same=lambda start: True": (
        "test_faults.py::test_a_process_that_got_the_number_of_a_dead_worker_is_left_alone"
    ),
    "rift.process:birth=lambda pid: ''": "test_faults.py::test_a_process_that_got_the_number_of_a_dead_worker_is_left_alone",
    "rift.process:listen=lambda: None": (
        "test_faults.py::test_sigterm_saves_at_the_next_step_exits_0_and_the_run_waits_for_the_next_worker"
    ),
    "rift.service:_stalled=lambda *a: ''": "test_faults.py::test_a_paused_worker_is_said_to_be_stalled_and_not_dead",
    "rift.service:_starts_in_vain=lambda run: 0": (
        "test_faults.py::test_a_run_that_gets_further_each_time_is_taken_up_for_ever_and_one_that_does_not_is_not"
    ),
    "rift.space:refuse_full=lambda *a: None": "test_faults.py::test_too_little_room_is_said_before_start_and_by_the_worker",
    # training
    "rift.accumulate:Attempt.undo=lambda self: None": (
        "test_training_faults.py::test_a_step_that_is_tried_again_is_as_if_it_had_not_been_tried"
    ),
    "rift.accumulate:out_of_memory=lambda e: True": (
        "test_training_faults.py::test_after_three_halvings_it_is_said_and_another_error_is_no_memory"
    ),
    "rift.accumulate:out_of_memory=lambda e: False": (
        "test_training_faults.py::test_a_whole_run_with_too_little_memory_is_done_and_its_result_log_and_report_say_so"
    ),
    "rift.accumulate:exact=lambda r: True": (
        "test_training_faults.py::test_a_penalty_that_looks_inside_and_is_no_mean_over_images_is_said_to_be_another_number"
    ),
    "rift.train:math.isfinite=lambda v: True": (
        "test_training_faults.py::test_a_loss_or_gradient_that_is_no_number_ends_the_arm_with_the_weights_before"
    ),
    "rift.train:EXPLODED=float('inf')": "test_training_faults.py::test_a_loss_that_exploded_is_divergence_though_it_is_a_number",
    "rift.train:refuse_diverged=lambda state: None": (
        "test_training_faults.py::test_weights_that_the_last_step_broke_are_no_result"
    ),
    "rift.train:seed_everything=lambda seed: None": "test_numbers.py::test_weights_that_begin_at_random_come_from_the_seed",
    "rift.backbones._hub:load_file=lambda p: __import__('pickle').loads(p.read_bytes())": (
        "test_foreign.py::test_no_pickle_is_ever_opened"
    ),
    "rift.about:remarks=lambda results: []": "test_numbers.py::test_other_threads_are_told",
}
ELSEWHERE = {  # the same, of tests that are no part of this folder
    "rift.bundle:_take=lambda o, i, t, e, k: (t.parent.mkdir(parents=True, exist_ok=True), t.write_bytes(o.read(i)))": (
        "test_bundle.py::test_a_flipped_bit_is_noticed"
    ),
    "rift.bundle:_refuse_misfits=lambda d, i: None": f"{HOSTILE}[settings of another name]",
    "rift.sealed:check=lambda p, n: None": f"{HOSTILE}[a number that is none]",
    "rift.sealed:_manifest=lambda m, i: None": f"{HOSTILE}[labels beyond the classes]",
    "rift.sealed:_arrays=lambda p: None": f"{HOSTILE}[a pickle among arrays]",
    "rift.bundle:_shows_pictures=lambda p: False": "test_bundle.py::test_pictures_and_weights_are_in_it_only_where_ticked",
    "rift.runs:Lab.read_only=False": "test_bundle.py::test_an_opened_one_is_a_lab_that_is_looked_at_only",
    "rift.sharing:_hash=lambda token: token": "test_sharing.py::test_the_token_is_128_bits_and_is_not_kept",
    "rift.sharing:_nameless=lambda v, n: v": "test_sharing.py::test_what_was_said_of_single_files_is_not_shared",
    "rift.sharing:_bare=lambda d: d": "test_sharing.py::test_what_was_said_of_single_files_is_not_shared",
    "rift.ui.files:MOST_PIXELS=1024": "test_ui.py::test_a_picture_comes_back_under_its_token",
    "rift.ui.files:URLSafeSerializer.loads=lambda self, t, salt=None: self.load_payload(t.rpartition('.')[0].encode())": (
        "test_ui.py::test_a_token_that_was_not_given_out_opens_nothing"
    ),
    "rift.drafts:_home=lambda lab, key: lab.root / 'drafts' / key": (
        "test_drafts.py::test_a_key_or_a_hash_from_outside_leads_nowhere"
    ),
    "rift.archive:_refuse_link=lambda *a: None": "test_archive.py::test_folders_follow_no_links",
    "rift.runs:Run._length_without_torn_line=lambda self: 10**6": (
        "test_runs.py::test_a_torn_last_line_is_ignored_and_then_closed"
    ),
}
TESTS = {switch: f"tests/reliability/{test}" for switch, test in DEFENCES.items()}
TESTS |= {switch: f"tests/{test}" for switch, test in ELSEWHERE.items()}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str, str], list[str]]]:
    """A process that has imported what the tests need, and runs each in a fork."""
    files = sorted({test.partition("::")[0] for test in TESTS.values()})
    command = [sys.executable, "-m", "tests.reliability.switched", *files]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, bufsize=1, **pipes) as process:

        def ask(switch: str, test: str) -> list[str]:
            process.stdin.write(json.dumps([switch, test]) + "\n")
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("switch", TESTS, ids=lambda switch: switch.partition("=")[0])
def test_a_defence_that_is_off_is_missed(switch, run):
    outcome, why = run(switch, TESTS[switch])
    assert not why.startswith(("NameError", "TypeError")), f"the switch itself is wrong: {why}"
    assert outcome == "failed", f"{TESTS[switch]} without its defence: {outcome} {why}"
