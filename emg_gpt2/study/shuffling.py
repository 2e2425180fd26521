"""Windows whose patches are shuffled: what a model loses on them is what it knew from their order."""

import numpy as np

from emg_gpt2.windows.reading import WindowSet


def shuffle_patches(windows: WindowSet, patch: int, seed: int) -> WindowSet:
    """The same windows with the patches (of so many samples) of each in a random order of its own.

    One order for all windows would tell the model as much as the true one, because it learns a vector per position.
    Mean and covariance of a window stay the same. Beside the order, samples on both sides of a patch's edge change,
    which the `power` filters see together: the arm without a backbone shows how much that matters.
    """
    note = f"{windows.metadata['note'].rstrip('.')}. The patches of every window are shuffled.".removeprefix(". ")
    return WindowSet(ShuffledPatches(windows.emg, patch, seed), windows.table, windows.metadata | {"note": note})


class ShuffledPatches:
    """`shuffled[rows]`: (len(rows), T, C), shuffled as they are read, because emg may be larger than the memory.

    The samples before the first whole patch stay: the model's tokens leave them out.
    """

    def __init__(self, emg: np.ndarray, patch: int, seed: int):
        self.emg, self.patch = emg, patch
        order = np.arange(emg.shape[1] // patch)
        self.orders = np.random.default_rng(seed).permuted(np.tile(order, (len(emg), 1)), axis=1)  # (n, P)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        emg, orders = self.emg[rows], self.orders[rows]
        batch, time, channels = emg.shape
        first = time % self.patch
        patches = emg[:, first:].reshape(batch, -1, self.patch, channels)  # (B, P, p, C)
        shuffled = np.take_along_axis(patches, orders[:, :, None, None], 1).reshape(batch, -1, channels)
        return np.concatenate([emg[:, :first], shuffled], 1)  # (B, T, C)
