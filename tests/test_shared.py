"""What pages share: parts that are made once for all of them, and how rarely each asks where many watch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio.components.plot import PlotData

from rift import figures
from rift.ui import shared
from rift.ui.shared import MOST_MADE, Made, Pace, Seen
from rift.ui.state import sent


def test_of_many_pages_that_ask_at_once_one_makes_it_and_all_get_it():
    made, drawn = Made(), []

    def make():
        drawn.append(threading.get_ident())
        time.sleep(0.05)
        return ["figure", "text"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: made.once(("one",), make), range(30)))
    assert len(drawn) == 1 and all(one is found[0] for one in found)
    assert made.once(("other",), make) is not found[0] and len(drawn) == 2


def test_of_many_who_ask_soon_one_looks(monkeypatch):
    now, looks = [100.0], []
    monkeypatch.setattr(shared.time, "monotonic", lambda: now[0])
    seen = Seen()

    def ask(key="run", seconds=2.0):
        return seen.once(key, seconds, lambda: looks.append(now[0]) or len(looks))

    assert [ask(), ask(), ask("other")] == [1, 1, 2]
    now[0] += 1.9
    assert ask() == 1
    now[0] += 0.2
    assert ask() == 3, "what was seen is old"
    seen.forget("run")
    assert ask() == 4 and ask() == 4, "somebody changed it"
    now[0] += 9
    ask("third")
    assert list(seen._seen) == ["third"], "nothing old is kept"


def test_a_slow_part_of_one_page_holds_up_no_other():
    made, slow = Made(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(made.once, ("slow",), lambda: [slow.wait(30)])
        assert made.once(("quick",), lambda: ["there"]) == ["there"] and not waits.done()
        slow.set()
        assert waits.result() == [True]


def test_what_raised_is_told_to_all_who_wait_and_made_again():
    made, tries = Made(), []

    def fail():
        tries.append(1)
        raise ValueError("the disk is gone")

    for _ in range(2):
        with pytest.raises(ValueError, match="the disk is gone"):
            made.once(("one",), fail)
    assert len(tries) == 2 and made.once(("one",), lambda: ["again"]) == ["again"]


def test_the_oldest_parts_go_and_all_of_them_where_data_were_deleted():
    made, count = Made(), []
    for number in range(MOST_MADE + 1):
        made.once((number,), lambda: count.append(1) or [])
    made.once((MOST_MADE,), lambda: count.append(1) or [])
    assert len(count) == MOST_MADE + 1
    made.once((0,), lambda: count.append(1) or [])
    assert len(count) == MOST_MADE + 2
    made.forget()
    made.once((MOST_MADE,), lambda: count.append(1) or [])
    assert len(count) == MOST_MADE + 3


def test_a_figure_is_kept_as_the_text_that_is_sent():
    found = sent(figures.empty("none yet"))
    assert isinstance(found, PlotData) and "none yet" in found.plot and sent("text") == "text"


def test_few_pages_ask_each_second_and_many_together_as_often_as_ten(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(shared.time, "monotonic", lambda: clock[0])
    pace = Pace(looks=10)
    assert [pace.seconds(f"page {number}") for number in range(10)] == [1.0] * 10
    waits = [pace.seconds(f"page {number}") for number in range(50)]
    assert waits[10] == 2.0 and waits[-1] == 5.0
    clock[0] += 5
    assert pace.seconds("page 0") == 5.0  # all the others are within their turn
    clock[0] += 14
    assert pace.seconds("page 1") == 1.0  # 49 have missed three turns and are gone
