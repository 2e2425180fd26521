"""Signals over time: channels below each other, each in a lane of its own, and bands of labels."""

from math import ceil
from typing import NamedTuple

import numpy as np

from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.results.figures import plt
from emg_gpt2.windows.cut import label_runs

WIDTH = 12.0  # inches, of a page
COLUMNS = 1500  # of an envelope, about one per pixel


class Band(NamedTuple):
    """A row of labels: labels (n,), each from its time (n,) in s to the next, the last one to `until`."""

    time: np.ndarray
    labels: np.ndarray
    until: float


def height(lines: int, least: float) -> float:
    """Return the inches that so many channels, or rows of a map, take below each other."""
    return min(max(0.2 * lines, least), 14)


def envelopes(samples: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) samples at (N,) times → times (2M,) and curves (C, 2M) through the extremes of M pieces of the signal."""
    edges = np.unique(np.linspace(0, len(samples), COLUMNS, endpoint=False).astype(int))
    return np.repeat(time[edges], 2), np.stack([envelope(channel, edges) for channel in samples.T])


def envelope(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(N,) → (2M,): lowest and highest sample from each of the M rows `edges` to the next, in turn."""
    return np.stack([np.minimum.reduceat(x, edges), np.maximum.reduceat(x, edges)], axis=1).reshape(-1)


def lane_of(curves: np.ndarray, percentile: float) -> float:
    """Return the height of a lane: about twice the median of that percentile of the channels' curves (C, 2M)."""
    value = 2 * np.median([np.percentile(np.abs(curve), percentile) for curve in curves])
    power = 10.0 ** np.floor(np.log10(max(value, 1e-12)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def name_lanes(axes: plt.Axes, names: list[str]) -> None:
    """Write the names of the channels beside their lanes, at 0, −1, −2, …"""
    axes.set_yticks(-np.arange(len(names)), names, fontsize=min(7, 60 * height(len(names), 0) / len(names)))
    axes.set(ylim=(-len(names), 1), xlabel="time (s)")
    axes.grid(axis="y", alpha=0.3)


def label_colours(labels: np.ndarray) -> dict[int, object]:
    """Rising labels → colours: white for no label, light grey for rest (0), one of its own for every gesture."""
    gestures = labels[labels > 0]
    few = [plt.cm.tab10(i) for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # 7 is grey
    colours = few if len(gestures) <= len(few) else plt.cm.turbo(np.linspace(0, 1, len(gestures)))
    return {UNLABELLED: "white", 0: "#d0d0d0"} | dict(zip(gestures.tolist(), colours, strict=False))


def draw_band(axes: plt.Axes, band: Band, place: tuple[float, float], names: dict[int, str], of: np.ndarray) -> None:
    """Draw a band at `place` (lower edge, height) in the colours of the labels `of`; `names` are for the legend."""
    edges, runs, colours = np.append(band.time, band.until), label_runs(band.labels), label_colours(of)
    for label in of.tolist():
        spans = [(edges[first], edges[end] - edges[first]) for first, end, one in runs if one == label]  # start, length
        style = {"hatch": "////", "edgecolor": "#c0c0c0", "lw": 0} if label == UNLABELLED else {}
        axes.broken_barh(spans, place, facecolor=colours[label], label=names.get(label), **style)


def name_labels(axes: plt.Axes, columns: int) -> None:
    """Write the legend above the bands, in rows of about equal length, at most `columns` in a row."""
    count = len(axes.get_legend_handles_labels()[1])
    columns = ceil(count / ceil(count / columns))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, fontsize=8, frameon=False)
