"""A pytest plugin (`-p tests.reliability.switched`) that switches a defence off, RIFT_SWITCH: `module:attribute=expression`."""

from __future__ import annotations

import importlib
import os

import pytest


@pytest.fixture(autouse=True)
def off(monkeypatch):
    for switch in os.environ["RIFT_SWITCH"].split(" ; "):
        place, _, expression = switch.partition("=")
        module, _, path = place.partition(":")
        owner = importlib.import_module(module)
        *outer, name = path.split(".")
        for one in outer:
            owner = getattr(owner, one)
        assert hasattr(owner, name), f"{place} is no longer there"
        monkeypatch.setattr(owner, name, eval(expression))
