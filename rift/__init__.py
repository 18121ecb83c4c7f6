"""RIFT Lab: finetune a Vision Transformer with and without RIFT, and see what it keeps and what it forgets."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["compare", "open", "verify"]


def __getattr__(name: str) -> Any:
    """Load the public functions only when used, so that `import rift` stays light."""
    if name == "open":
        from rift.notebook import open_comparison

        return open_comparison
    if name in __all__:
        from rift import api

        return getattr(api, name)
    raise AttributeError(f"module 'rift' has no attribute {name!r}")
