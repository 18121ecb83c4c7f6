"""How processes start: no garbage is looked for meanwhile, no leak is told of at the end, and freed memory stays together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARENAS = """
import ctypes, os, threading, tempfile
libc = ctypes.CDLL(None)
{first}
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
together = threading.Barrier(12)
def use():
    together.wait()
    held = [libc.malloc(5000) for _ in range(100)]
    together.wait()
    for one in held:
        libc.free(one)
threads = [threading.Thread(target=use) for _ in range(12)]
[one.start() for one in threads], [one.join() for one in threads]
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fflush.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
file = tempfile.TemporaryFile()
stream = libc.fdopen(os.dup(file.fileno()), b"w")
libc.malloc_info(0, stream), libc.fflush(stream)
file.seek(0)
print(file.read().count(b"<heap nr="))
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)


def test_no_garbage_is_looked_for_at_the_start_and_then_again():
    code = """
import gc
from rift import process
with process.starting():
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count() > 0
try:
    with process.starting():
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert gc.isenabled()
import atexit
atexit.register(lambda: print(gc.get_freeze_count()))  # the last to register is the first to be called
atexit._run_exitfuncs()
print(gc.get_freeze_count())
"""
    before, after = run(code).stdout.split()[:2]
    assert int(before) > 0 and int(after) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_threads_share_two_arenas():
    kept = int(run(ARENAS.format(first="from rift import process; process.keep_freed_memory_together()")).stdout)
    assert kept == 2 < int(run(ARENAS.format(first="")).stdout)
