"""One arm over several devices: each rank runs its share of every batch, and all have the loss of the whole batch.

Plain data parallel training averages the losses of the shares, and a covariance or a similarity of 8 images is not that of 32:
the penalty would become another one. So the embeddings and outputs of all shares are gathered in each step (as CLIP and SimCLR
do), and every rank computes the task loss and the penalty of the whole batch, whatever the penalty is. N ranks therefore compute
what one rank does with the whole batch: only rounding differs, and noise of dropout, which each rank draws for its own share.
`batch_size` stays the number of images in a step. Where it does not divide, shares differ by one image and nothing else changes.

Every rank has the whole loss L, but what it knows of ∂L through the images is the part of its own share, ∂ₛL; what does not pass
through a share (L2-SP, a trained rotation, a head on cached embeddings) it knows in full, ∂₀L. Gradients are averaged over ranks,
as in torch's DistributedDataParallel, and passing back through the gathering multiplies by N:
Σₛ (N ∂ₛL + ∂₀L) / N = Σₛ ∂ₛL + ∂₀L.
That class itself is not used: stages change what trains, and a batch in parts has several backward passes in a step.

Rank 0 is the worker; it alone evaluates and writes. The others are its children, of one machine, and all end together.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from rift import process
from rift.errors import RunError, SettingError

PATIENCE = datetime.timedelta(hours=2)  # how long the others wait while rank 0 evaluates
WATCH_SECONDS = 0.5
BUCKET = 6_250_000  # numbers that are averaged in one go, 25 MB as in DistributedDataParallel


class ElsewhereError(torch.OutOfMemoryError):
    """Another rank has run out of memory; all try the step again in smaller parts."""


def size() -> int:
    """Return how many ranks work at this arm; 1 outside of `over`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mine(ids: np.ndarray) -> np.ndarray:
    """Return this rank's share of a batch's indices `(b,)`; shares differ by at most one."""
    return ids if size() == 1 else np.array_split(ids, size())[dist.get_rank()]


def whole(share: Tensor, n: int) -> Tensor:
    """Return `(n, …)` of all ranks' shares `(about n / N, …)`, in the order of the batch; gradients pass to the own share."""
    return share if size() == 1 else _Whole.apply(share, n)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, share: Tensor, n: int) -> Tensor:  # type: ignore[override]
        context.places = np.array_split(np.arange(n), size())
        most = len(context.places[0])
        padded = share.new_zeros(most, *share.shape[1:])
        padded[: len(share)] = share
        gathered = share.new_empty(size() * most, *share.shape[1:])
        _meet()
        dist.all_gather_into_tensor(gathered, padded)
        return torch.cat([one[: len(place)] for one, place in zip(gathered.split(most), context.places, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        place = context.places[dist.get_rank()]
        return gradient[place[0] : place[-1] + 1] * size(), None


def average(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks."""
    if size() == 1:
        return
    _meet()
    waiting, many = list[Tensor](), 0
    for gradient in [p.grad for p in parameters if p.grad is not None]:
        waiting, many = [*waiting, gradient], many + gradient.numel()
        if many >= BUCKET:
            _average(waiting)
            waiting, many = [], 0
    _average(waiting)


def _average(gradients: Sequence[Tensor]) -> None:
    if gradients:
        flat = torch.cat([one.flatten() for one in gradients])
        dist.all_reduce(flat)
        flat /= size()
        for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def tell(error: BaseException) -> None:
    """Tell the other ranks that this one has run out of memory in a step, so that none waits for it and all try again."""
    if size() > 1 and not isinstance(error, ElsewhereError):
        _meet(failed=True)


def _meet(failed: bool = False) -> None:
    """Wait for all ranks before they exchange anything; ElsewhereError where one of them has failed."""
    flag = torch.tensor(float(failed), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    if flag and not failed:
        raise ElsewhereError("another device of this arm has run out of memory")


@torch.no_grad()
def same(tensors: Iterable[Tensor]) -> None:
    """Give all ranks the values that rank 0 has."""
    for tensor in tensors if size() > 1 else ():
        dist.broadcast(tensor.data, 0)


def refuse_too_many(devices: int, device: torch.device, images: int | None = None) -> None:
    """Raise `run.missing` for more GPUs than there are, `setting.range` for more devices than `images` in the smallest batch."""
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise RunError("run.missing", f"--devices {devices}, but there are {torch.cuda.device_count()} CUDA devices here.")
    if images is not None and devices > images:
        raise SettingError("setting.range", f"--devices {devices}, but a batch here has only {images} images to share out.")


@contextmanager
def over(devices: int, device: torch.device, module: str, about: Mapping[str, Any]) -> Iterator[None]:
    """Be rank 0 of so many while the block lasts; the others are processes of a module that is told `about`, and end with it.

    When one of them is killed, this process is too: the arm is then lost and taken up from its checkpoint, as after any kill.
    """
    if devices == 1:
        yield
        return
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="rift-ranks-") as folder:
        shared = {**about, "ranks": devices, "device": device.type, "meeting": f"{folder}/meeting"}
        ranks = [process.start(module, [json.dumps({**shared, "rank": rank})]) for rank in range(1, devices)]
        threading.Thread(target=_fall_with, args=(ranks, ended), daemon=True).start()
        try:
            join(0, devices, shared["meeting"], device)
            yield
        except RuntimeError:  # as when a rank does not answer, because it is no more: the watcher has time to see it
            time.sleep(4 * WATCH_SECONDS)
            raise
        finally:
            ended.set()
            for one in ranks:
                one.kill()
                one.wait()
            if dist.is_initialized():
                dist.destroy_process_group()


def join(rank: int, ranks: int, meeting: str, device: torch.device) -> None:
    """Meet the other ranks through a file; a rank but the first ends when the process that started it is gone."""
    if rank:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if device.type == "cuda":
        torch.cuda.set_device(rank)
    elif sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody outside this machine takes part
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=Path(meeting).as_uri(), rank=rank, world_size=ranks, timeout=PATIENCE)


def _fall_with(ranks: Sequence[subprocess.Popen], ended: threading.Event) -> None:
    while not ended.wait(WATCH_SECONDS):
        if any(one.poll() for one in ranks):  # neither at work nor ended well
            os.kill(os.getpid(), signal.SIGKILL)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
