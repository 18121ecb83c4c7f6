"""A rotation that turns every direction by one angle, so that a slider can go from nothing to everything."""

from __future__ import annotations

import numpy as np
import scipy


def turn(dimensions: int, degrees: float, seed: int = 0) -> np.ndarray:
    """Return the rotation cos(a) I + sin(a) A `(d, d)`, d even, with a random A = -Aᵀ and A² = -I: each vector turns by a."""
    basis = scipy.stats.ortho_group.rvs(dimensions, random_state=seed)
    quarter = basis @ np.kron(np.eye(dimensions // 2), [[0.0, -1.0], [1.0, 0.0]]) @ basis.T
    angle = np.deg2rad(degrees)
    return np.cos(angle) * np.eye(dimensions) + np.sin(angle) * quarter
