"""Entry point of `python -m rift`."""

import sys

from rift.cli import main

sys.exit(main())
