"""The picture of decisions over the signal."""

import textwrap
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from emg_gpt2.live.signals import Signal
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.results.figures import BLUE, GREY, plt
from emg_gpt2.study.panels import COLUMNS, WIDTH, envelope, height, label_colours, round_up
from emg_gpt2.windows.cut import label_runs

BAND = 0.3  # inches, of one line of gestures
LANE_PERCENTILE = 99  # of a channel's envelope; a lane is as high as twice the median of that


class Band(NamedTuple):
    """A line of gestures: from each time (n,) in s to the next, to `until`, the label (n,)."""

    time: np.ndarray
    labels: np.ndarray
    until: float


def draw_timeline(
    signal: Signal, bands: dict[str, Band], confidence: np.ndarray, names: dict[int, str], note: str, path: Path
) -> None:
    """One line per band, the confidence (n,) of the decisions in the last band, and the filtered channels below."""
    heights = [BAND * len(bands), 0.7, height(len(signal.channels), 1.5)]
    shape = {"figsize": (WIDTH, sum(heights) + 1.6), "layout": "constrained"}
    figure, (top, middle, bottom) = plt.subplots(3, sharex=True, height_ratios=heights, **shape)
    _draw_bands(top, bands, names)
    decided = list(bands.values())[-1]
    middle.plot(decided.time, confidence, color=GREY, lw=0.6)
    middle.set(ylim=(0, 1.03), ylabel="confidence")
    middle.grid(alpha=0.3)
    _draw_channels(bottom, signal)
    figure.suptitle(signal.name, fontsize=10)
    figure.supxlabel(textwrap.fill(note, 170), fontsize=7, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_bands(axes: Axes, bands: dict[str, Band], names: dict[int, str]) -> None:
    present = np.unique(np.concatenate([band.labels for band in bands.values()]))
    colours = dict(zip(present, label_colours(present), strict=True))
    for row, (time, labels, until) in enumerate(bands.values()):
        edges = np.append(time, until)
        for label in present:
            runs = [(edges[first], edges[end] - edges[first]) for first, end, one in label_runs(labels) if one == label]
            style = {"hatch": "////", "edgecolor": "#c0c0c0", "lw": 0} if label == UNLABELLED else {}
            shown = {} if row else {"label": names[int(label)]}
            axes.broken_barh(runs, (-row - 0.45, 0.9), facecolor=colours[label], **style, **shown)
    axes.set(ylim=(0.6 - len(bands), 0.6), yticks=-np.arange(len(bands)), yticklabels=list(bands))
    axes.tick_params(length=0, labelsize=8)
    columns = ceil(len(present) / ceil(len(present) / 10))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, fontsize=8, frameon=False)


def _draw_channels(axes: Axes, signal: Signal) -> None:
    """Channels below each other; what leaves the lane ends at the middle of the next."""
    edges = np.unique(np.linspace(0, len(signal.samples), COLUMNS, endpoint=False).astype(int))
    curves = [envelope(channel, edges) for channel in signal.samples.T]  # C × (2M,)
    lane = round_up(2 * np.median([np.percentile(np.abs(curve), LANE_PERCENTILE) for curve in curves]))
    time = signal.start + np.repeat(edges, 2) / signal.rate
    for row, curve in enumerate(curves):
        axes.plot(time, np.clip(curve / lane, -1, 1) - row, lw=0.4, color=BLUE)
    axes.set_yticks(
        -np.arange(len(curves)), signal.channels, fontsize=min(7, 60 * height(len(curves), 0) / len(curves))
    )
    axes.set(xlim=(time[0], signal.start + len(signal.samples) / signal.rate), ylim=(-len(curves), 1))
    axes.set(xlabel="time (s)", ylabel=f"filtered signal (lines {lane:g} apart)")
    axes.grid(axis="y", alpha=0.3)
