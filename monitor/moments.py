"""What a pane hands to a detector, per feature: ``(n, mean, M2)``, checked before any state is touched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def checked_moments(
    features: int, n: npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike
) -> Floats:
    """``(3, features)`` n, mean and M2 of a pane; where n is 0 the others were not read, and are 0.

    Raises:
        ValueError: wrong shape, a negative or fractional count, a mean or M2 that is not finite, a negative M2.
    """
    pane = np.array((n, mean, m2), dtype=np.float64)
    if pane.shape != (3, features):
        raise ValueError(f"n, mean and m2 must have shape ({features},)")
    count = pane[0]
    if not (np.all(count >= 0) and np.all(count == np.floor(count))):
        raise ValueError("n counts events: whole and not negative")
    pane[:, count == 0] = 0.0
    if not (np.all(np.isfinite(pane)) and np.all(pane[2] >= 0)):
        raise ValueError("mean and m2 must be finite, and m2 not negative, where n > 0")
    return pane


def per_feature(
    values: npt.ArrayLike, features: int, name: str, *, least: float = -np.inf
) -> Floats:
    """``(features,)`` of one number for all or one for each; finite and at least ``least``."""
    array = np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), (features,)))
    if not (np.all(np.isfinite(array)) and np.all(array >= least)):
        bound = "" if least == -np.inf else f" and at least {least:g}"
        raise ValueError(f"{name} must be finite{bound}")
    return array
