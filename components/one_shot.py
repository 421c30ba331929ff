"""What a model earns in one one-shot trial; the same rule wherever trials are counted."""

from typing import Any

import numpy as np
import numpy.typing as npt


def trial_credit(
    labels: npt.NDArray[np.int64],
    logits: npt.NDArray[np.floating[Any]],
    ways: npt.NDArray[np.int64],
) -> float | None:
    """Credit in [0, 1] that a model earns in one trial, or None for a malformed trial.

    Args:
      labels, logits, ways: [N], the pairs of one trial.
    """
    if np.any(ways != len(labels)) or np.count_nonzero(labels == 1) != 1:
        return None
    if np.isnan(logits).any():
        return 0.0
    best = logits == logits.max()
    return 1.0 / np.count_nonzero(best) if best[labels == 1][0] else 0.0
