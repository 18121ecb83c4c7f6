"""Start the web app over a lab folder; also what Hugging Face Spaces runs."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path


def main() -> int:
    """Serve until Ctrl-C; the first line of standard output is the address. Exit code 2 where the user can mend it."""
    parser = argparse.ArgumentParser(description=__doc__)
    home = os.environ.get("RIFT_LAB", str(Path.home() / "rift-lab"))
    parser.add_argument("--lab", type=Path, default=Path(home), help="folder of images and runs (default %(default)s)")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="default %(default)s")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)), help="0: any free one")
    public = bool(os.environ.get("RIFT_PUBLIC") or os.environ.get("SPACE_ID"))
    parser.add_argument("--public", action="store_true", default=public, help="keep visitors apart, each with limits")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where runs are trained")
    ready = "have a worker ready before anybody presses Start, which takes 1 GB of memory (default on)"
    parser.add_argument("--stand-by", action=argparse.BooleanOptionalAction, default=True, help=ready)
    chosen = parser.parse_args()

    if os.environ.get("SPACES_ZERO_GPU"):  # there it has to come before torch
        with suppress(ImportError):
            import spaces  # noqa: F401
    from rift import process
    from rift.errors import UserError

    process.keep_freed_memory_together()
    try:
        with process.starting():
            from rift.ui import serve

            page = serve(chosen.lab, chosen.host, chosen.port, chosen.device, chosen.public, stand_by=chosen.stand_by)
        page.block_thread()
    except UserError as error:
        print(f"error[{error.code}]: {error.sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
