"""A stand-in for the package `spaces` on ZeroGPU: it forks, it pickles what goes in and out, and it refuses CUDA in the parent.

Written after what the package's documentation and source are reported to do; the real one has not been run here.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gradio as gr
import pytest
import torch

fork = multiprocessing.get_context("fork")


class StandIn(ModuleType):
    """`most`: longest call allowed; `quota`: seconds left; `asked`: what was asked for; `killed`: end the next call half way."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.most, self.quota, self.asked, self.killed = 300.0, float("inf"), [], False

    def GPU(self, task: Callable[..., Any] | None = None, *, duration: Any = 60) -> Any:
        if task is None:
            return lambda one: self.GPU(one, duration=duration)

        def wrapped(*values: Any) -> Any:
            seconds = duration(*values) if callable(duration) else duration
            self.asked.append(seconds)
            if seconds > self.most:
                raise gr.Error(
                    f"The requested GPU duration ({seconds}s) is larger than the maximum allowed",
                    title="ZeroGPU illegal duration",
                )
            if seconds > self.quota:
                raise gr.Error(
                    f"You have exceeded your GPU quota ({seconds}s requested vs. {self.quota:g}s left).",
                    title="ZeroGPU quota exceeded",
                )
            return self._call(pickle.dumps((task, values)))

        return wrapped

    def _call(self, packed: bytes) -> Any:
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=_be, args=(packed, there, self.killed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork of several threads, as the real one is
            process.start()
        there.close()
        try:
            kind, value = pickle.loads(here.recv_bytes())
        except EOFError:
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error") from None
        finally:
            process.join()
            here.close()
        if kind == "error":
            raise value
        return value


def _be(packed: bytes, answers: Any, killed: bool) -> None:
    """Be the call: in a process of its own, where CUDA may be used (there is none here)."""
    os.environ["STAND_IN_GPU"] = "1"
    task, values = pickle.loads(packed)
    if killed:
        from rift import attempt, recipe

        attempt.CHECKPOINT_SECONDS = 0.0
        append = recipe.Run.append
        recipe.Run.append = lambda run, kind, **more: (
            os._exit(9) if kind == "step" and more["step"] == 4 else append(run, kind, **more)
        )
    try:
        answer = ("value", task(*values))
    except Exception as error:
        answer = ("error", error)
    answers.send_bytes(pickle.dumps(answer))
    os._exit(0)


def forbid_cuda(monkeypatch: Any) -> None:
    """Let the parent believe that there is a GPU, as the real package does, and fail where it would use it."""

    def reached() -> None:
        raise RuntimeError("Low-level CUDA init reached: CUDA must not be initialized in the main process")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: "STAND_IN_GPU" not in os.environ)
    monkeypatch.setattr(torch.cuda, "_lazy_init", reached)


@pytest.fixture(name="spaces")
def lent_gpus(monkeypatch) -> StandIn:
    """ZeroGPU as far as this machine can be it."""
    one = StandIn()
    one.__spec__ = importlib.util.spec_from_loader("spaces", None)
    monkeypatch.setitem(sys.modules, "spaces", one)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    forbid_cuda(monkeypatch)
    return one
