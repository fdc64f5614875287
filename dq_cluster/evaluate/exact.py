"""What exact search compares: the features' directions from their mean."""

import numpy as np


def directions(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Features (n, D) minus `mean` (D,), scaled to unit length; float32. Their inner products
    are the cosines of the centred features."""
    centred = features.astype(np.float32) - mean.astype(np.float32)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.maximum(length, np.finfo(np.float32).tiny)
