"""What a judge makes of embeddings of the natural images: one reading for every diagnostic that names them."""

from __future__ import annotations

import numpy as np

from rift.snapshot import Judge


def logits(embeddings: np.ndarray, judge: Judge) -> np.ndarray:
    """Return scale · cosine `(n, k)` of embeddings `(n, d)` with the rows of the k classes that the judge knows."""
    wide, known = embeddings.astype(np.float64), judge.known
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    cosines = np.empty((len(unit), len(known)))
    for fold, rows in enumerate(judge.rows[:, known].astype(np.float64)):
        cosines[judge.fold == fold] = unit[judge.fold == fold] @ rows.T
    return judge.scale * cosines
