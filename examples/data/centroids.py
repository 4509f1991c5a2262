"""Locates the classes in the scenes of a dataset, to draw crops around them.

Every scene is divided into square tiles from its top left corner. A class that occurs in a tile has
its centroid there: the mean row and column of its pixels in the tile. This is HANet's class-uniform
sampling (as released; Choi et al., CVPR 2020). The centroid of a scattered class may lie outside
it.

Centroids are int32 (M, 4), with the rows (scene index, class, row, column). They are ordered by
scene, then tile, then class.
"""

from __future__ import annotations

import numpy as np

NONE = np.empty((0, 4), np.int32)


def of_scene(number: int, labels: np.ndarray, classes: int, tile: int) -> np.ndarray:
    """The centroids of one scene.

    Args:
        number: the index of the scene.
        labels: uint8 (H, W); values from `classes` up have no centroids.
        classes: K.
        tile: the side of a tile, in pixels. The last tile of a row or column may be smaller.

    Example:
        >>> of_scene(7, np.array([[0, 0, 1], [0, 0, 1]], np.uint8), 2, tile=2).tolist()
        [[7, 0, 0, 0], [7, 1, 0, 2]]
    """
    found = [NONE]
    for top in range(0, labels.shape[0], tile):
        for left in range(0, labels.shape[1], tile):
            part = labels[top : top + tile, left : left + tile]
            values = part.ravel()
            rows = np.repeat(np.arange(part.shape[0]), part.shape[1])
            columns = np.tile(np.arange(part.shape[1]), part.shape[0])
            counts = np.bincount(values, minlength=classes)[:classes]
            present = np.flatnonzero(counts)
            row, column = (
                np.bincount(values, weights, classes)[present] // counts[present]
                for weights in (rows, columns)
            )
            here = np.full(len(present), number)
            found.append(np.stack([here, present, top + row, left + column], 1).astype(np.int32))
    return np.concatenate(found)
