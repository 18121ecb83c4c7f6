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


@pytest.fixture(scope="session")
def toy_backbone():
    """timm's toy ViT with random weights: 64 wide, 6 blocks, 0.4 million parameters."""
    import timm
    import torch

    from rift.model import Backbone

    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0)
    return Backbone(vit, pixels=vit.patch_embed.img_size[0], mean=(0.5,) * 3, std=(0.5,) * 3).eval()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads on a busy two-core machine were up to seven times slower than one, and give other bits."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With RIFT_NO_SKIPS, as in .ci/run, a skip for any reason but a missing GPU or network is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("RIFT_NO_SKIPS") or reporter is None:
        return
    reasons = [str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])]
    others = [reason for reason in reasons if not any(word in reason.lower() for word in ("gpu", "cuda", "network"))]
    if others:
        reporter.write_line(f"skipped for other reasons than GPU and network: {others}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
