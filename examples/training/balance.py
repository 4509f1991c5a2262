"""Class weights from the frequencies of the classes in the training labels."""

from __future__ import annotations

import math

import numpy as np

BALANCES = ("none", "median", "log")


def weights(balance: str, counts: np.ndarray) -> list[float]:
    """One weight per class, higher for rare classes; 0 for a class that does not occur.

    `median`: median(f) / f_k, where f_k is the share of class k in the pixels of the scenes that
    contain it (median frequency balancing, Eigen and Fergus, ICCV 2015; SegNet). `log`:
    1 / ln(1.02 + p_k), where p_k is its share of all pixels; between 1.42 and 50 (ENet).

    Args:
        counts: pixels per scene and class, (M, K + 1); the last column counts unlabelled pixels.

    Example:
        >>> weights("median", np.array([[90, 10, 0], [50, 0, 50]]))
        [0.553..., 5.166...]
    """
    labelled = counts[:, :-1].astype(np.float64)
    pixels = labelled.sum(0)
    if balance == "log":
        shares = pixels / pixels.sum()
        return [1 / math.log(1.02 + share) if share else 0.0 for share in shares.tolist()]
    if balance != "median":
        raise ValueError(f"weights: balance must be median or log, got {balance!r}")
    where = (labelled.sum(1, keepdims=True) * (labelled > 0)).sum(0)
    present = pixels > 0
    shares = pixels / np.where(present, where, 1)
    median = float(np.median(shares[present]))
    return [median / share if share else 0.0 for share in shares.tolist()]
