"""What a page sends and is given is what Gradio makes of it, with less work."""

from __future__ import annotations

import asyncio
import copy
import itertools
import re

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from rift.ui.session import Blocks

VALUES = ("text", 3, {"a": 1}, {"__type__": "update", "value": "words", "interactive": False})


async def answers(kind: type[gr.Blocks], asked: list[list]) -> list[tuple[list, object, int]]:
    """What is sent for values of a text, a number, a state and a button; what the state holds then; how many were made anew."""
    with kind(analytics_enabled=False) as blocks:
        parts = [gr.Textbox(), gr.Number(), gr.State("before"), gr.Button("press")]
        parts[3].click(lambda: None, None, parts)
    (event,) = [one for one in blocks.fns.values() if len(one.outputs) == 4]
    found = []
    for values in asked:
        session = SessionState(blocks)
        sent = await blocks.postprocess_data(event, values, session)
        found.append((sent, session[parts[2]._id], sum(session[one._id] is not one for one in parts if not one.stateful)))
    return found


def test_what_is_sent_is_what_gradio_sends():
    every = itertools.product([False, True], repeat=4)
    asked = [[gr.skip() if skipped else one for skipped, one in zip(kept, VALUES, strict=True)] for kept in every]
    ours, theirs = (asyncio.run(answers(kind, copy.deepcopy(asked))) for kind in (Blocks, gr.Blocks))
    assert [one[:2] for one in ours] == [one[:2] for one in theirs] and len(ours) == 16


def test_what_is_left_alone_is_not_made_again():
    values = [gr.skip(), 1, gr.skip(), gr.skip()]
    assert asyncio.run(answers(gr.Blocks, [values]))[0][2] == 2, "what this is for: where Gradio makes none, our class may go"
    assert asyncio.run(answers(Blocks, [values]))[0][2] == 0


INPUTS = (gr.Number, gr.Slider, gr.Checkbox, gr.CheckboxGroup, gr.Radio, gr.Dropdown, gr.Textbox, gr.HTML, gr.BrowserState)
FILE = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
GIVEN = (None, 3, 2.5, -1, True, "a", "other", "", ["a", "b"], ["other"], [], {"a": 1}, FILE, [FILE])


async def passed(kind: type[gr.Blocks], part: type, values: list, way: str) -> list:
    """What a handler is given for each value that comes, or what is sent for each of its values; else what is wrong with it."""
    bounds = {"minimum": 0, "maximum": 5} if part in (gr.Number, gr.Slider) else {}
    choices = {"choices": ["a", "b"]} if part in (gr.Radio, gr.Dropdown, gr.CheckboxGroup) else {}
    with kind(analytics_enabled=False) as blocks:
        both = [part(**bounds, **choices), gr.Textbox()]
        gr.Button().click(lambda *_: None, both, both)
    (event,) = [one for one in blocks.fns.values() if len(one.outputs) == 2]
    found = []
    for value in values:
        try:
            found.append(await getattr(blocks, way)(event, [value, "text"], SessionState(blocks)))
        except Exception as error:  # of the components only those are named that Gradio was given
            found.append((type(error), re.sub(r"components: \[.*?\]", "", str(error))))
    return found


@pytest.mark.filterwarnings("ignore:The value passed into gr.Dropdown")
@pytest.mark.parametrize("way", ["preprocess_data", "postprocess_data"])
@pytest.mark.parametrize("part", INPUTS)
def test_every_value_comes_and_goes_as_gradio_lets_it(part, way):
    ours, theirs = (asyncio.run(passed(kind, part, list(GIVEN), way)) for kind in (Blocks, gr.Blocks))
    assert ours == theirs
    assert [[type(each) for each in one] for one in ours] == [[type(each) for each in one] for one in theirs]


def test_plain_values_need_no_other_thread(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("another thread was asked")

    monkeypatch.setattr("anyio.to_thread.run_sync", refuse)
    for way in ("preprocess_data", "postprocess_data"):
        assert asyncio.run(passed(Blocks, gr.Number, [3], way)) == [[3, "text"]]
        assert asyncio.run(passed(gr.Blocks, gr.Number, [3], way)) != [[3, "text"]], "what this is for"


@pytest.mark.parametrize("wrong", [[1, 2], [gr.skip()] * 3])
def test_too_few_values_are_gradios_error(wrong):
    with pytest.raises(ValueError, match="didn't return enough output values"):
        asyncio.run(answers(Blocks, [wrong]))
