"""Signals over time: channels below each other, each in a lane of its own, and labels in a row for each gesture."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from emg_gpt2.results.figures import BLUE, ORANGE, SKY, plt
from emg_gpt2.windows.cut import label_runs

COLUMNS = 1500  # of an envelope, about one per pixel
LINE, LARGEST = 0.13, 8.0  # inches, of a channel or a row of a map, and of all together
PERCENTILE = 99  # of a channel's envelope; a lane is twice as high as the median of it


class Band(NamedTuple):
    """Labels over time: labels (n,), each from its time (n,) in s to the next, the last one to `until`."""

    time: np.ndarray
    labels: np.ndarray
    until: float


def height(lines: int, least: float) -> float:
    """Return the inches that so many channels, or rows of a map, take below each other."""
    return min(max(LINE * lines, least), LARGEST)


def envelopes(samples: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) samples at (N,) times → times (2M,) and curves (C, 2M) through the extremes of M pieces of the signal."""
    edges = np.unique(np.linspace(0, len(samples), COLUMNS, endpoint=False).astype(int))
    return np.repeat(time[edges], 2), np.stack([envelope(channel, edges) for channel in samples.T])


def envelope(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(N,) → (2M,): lowest and highest sample from each of the M rows `edges` to the next, in turn."""
    return np.stack([np.minimum.reduceat(x, edges), np.maximum.reduceat(x, edges)], axis=1).reshape(-1)


def unit_words(unit: str) -> str:
    """Return the unit of a windows file, `count` or `as recorded`, for an axis."""
    return "counts" if unit == "count" else "a.u."


def draw_channels(
    axes: plt.Axes, time: np.ndarray, curves: np.ndarray, names: list[str], label: str, flagged: Collection[int] = ()
) -> float:
    """Draw curves (C, 2M) at times (2M,) in lanes at 0, −1, −2, … and return the height of a lane.

    No curve is cut: a large one runs behind the smaller ones of its neighbours, which have another colour. label: of
    the axis, with {lane:g} where it says the height.
    """
    lane, order = lane_of(curves), np.argsort(np.argsort(-np.abs(curves).max(1)))
    for channel, (curve, rank) in enumerate(zip(curves, order, strict=True)):
        colour = ORANGE if channel in flagged else (BLUE, SKY)[channel % 2]
        axes.plot(time, curve / lane - channel, lw=0.4, color=colour, zorder=2 + rank / len(curves))
    axes.set_yticks(-np.arange(len(names)), names, fontsize=min(7, 60 * height(len(names), 0) / len(names)))
    axes.set(xlim=time[[0, -1]], ylim=(-len(names), 1), xlabel="time (s)", ylabel=label.format(lane=lane))
    axes.grid(axis="y")
    return lane


def lane_of(curves: np.ndarray) -> float:
    """Return the height of a lane: about twice the median of the PERCENTILE of the channels' curves (C, 2M)."""
    value = 2 * np.median([np.percentile(np.abs(curve), PERCENTILE) for curve in curves])
    power = 10.0 ** np.floor(np.log10(max(value, 1e-12)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def draw_labels(axes: plt.Axes, band: Band, rows: dict[int, int], place: tuple[float, float], **looks) -> None:
    """Draw bars in the row of each label of a band; place: their middle, from that of the row, and height."""
    edges = np.append(band.time, band.until)
    for first, end, label in label_runs(band.labels):
        if label in rows:
            span, (middle, size) = (edges[first], edges[end] - edges[first]), place
            axes.broken_barh([span], (rows[label] + middle - size / 2, size), **looks)
            looks.pop("label", None)


def name_rows(axes: plt.Axes, names: list[str]) -> None:
    """Write a name beside each row, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
