"""The four public endpoints of `contract.md`; every other handler of the page is private."""

# Gradio reads these functions' types as they stand, so no annotation here may wait to be evaluated.
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from rift import jobs, remote, visitors
from rift.errors import UserError
from rift.ui.state import App

STARTS_AT_ONCE = 2  # an upload is read in the request: a few at a time


def build(app: App) -> None:
    """Add the endpoints to the page."""

    def device() -> str:
        """Where a page does the worker's work, callers without one get a worker on the CPU."""
        return "cpu" if app.device == jobs.IN_EVENT else app.device

    def start(data: str | dict, settings: dict | None = None, lab: str = "") -> str:
        """Start a comparison and return its id. data: "sample:NAME", the digest of a set that is here, or an uploaded file
        (gradio_client's handle_file). settings: options of `python -m rift compare` by name, such as {"epochs": 3, "seeds": 3,
        "regularizer": ["rift", "rsc"], "strength": "auto", "set": {"shots": 10}}. lab: on a public server
        a key of your own, 32 random hexadecimal digits; a file of yours needs {"consent": true} there."""
        files: list[Path] = []
        try:
            with visitors.as_(lab):
                if app.apart and isinstance(settings, dict) and settings.get("consent") is True:
                    settings = {name: value for name, value in settings.items() if name != "consent"}
                    visitors.consent(app.lab, True)
                return remote.start(app.lab, data, settings, device=device(), uploaded=functools.partial(_uploaded, app, files))
        finally:
            for path in files:
                path.unlink(missing_ok=True)

    def status(run: str, lab: str = "") -> dict:
        """Return {state, progress, seconds_left, message}: state is queued, preparing, training, evaluating, done, stopped,
        failed or lost, progress lies in [0, 1], seconds_left is null where nobody can know."""
        with visitors.as_(lab):
            return remote.status(app.lab, run, device=device())

    def stop(run: str, lab: str = "") -> None:
        """Stop a comparison within a second. What is done is kept; the same start again goes on from there."""
        with visitors.as_(lab):
            remote.stop(app.lab, run)

    def result(run: str, lab: str = "") -> dict:
        """Return the comparison document, the same as comparison.json: arms, numbers, differences and verdicts. An error with the
        code run.missing while no run is finished."""
        with visitors.as_(lab):
            return remote.result(app.lab, run)

    gr.api(_said(start), api_name="start", concurrency_limit=STARTS_AT_ONCE)
    for function in (status, stop, result):
        gr.api(_said(function), api_name=function.__name__, concurrency_limit=None)


def _said(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a UserError reach the caller as the line that the command line ends with, `error[CODE]: sentence`."""

    @functools.wraps(handler)
    def wrapped(*values: Any) -> Any:
        try:
            return handler(*values)
        except UserError as error:
            raise gr.Error(f"error[{error.code}]: {error.sentence}", print_exception=False) from None

    return wrapped


def _uploaded(app: App, files: list[Path], value: Any) -> Path | None:
    """Return the file of a value that gradio_client uploaded, remembered in `files`; a path that anyone makes up is none."""
    if not isinstance(value, dict) or (value.get("meta") or {}).get("_type") != "gradio.FileData":
        return None
    path = Path(str(value.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        return None
    files.append(path)
    app.door()
    return path
