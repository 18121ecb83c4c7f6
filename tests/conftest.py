"""One thread, fixed seeds, and the way to the development data; a test whose data is absent skips with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the development data and weights: beside the checkout, or where RIFT_SHARED says."""
    root = Path(os.environ.get("RIFT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip("development data is not at hand (set RIFT_SHARED to its folder)")
    return root


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads on a busy two-core machine were up to seven times slower than one, and give other bits."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
