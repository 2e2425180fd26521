"""The picture of decisions over the signal."""

import textwrap
from pathlib import Path

import numpy as np

from emg_gpt2.live.signals import Signal
from emg_gpt2.results.figures import BLUE, GREY, plt
from emg_gpt2.results.lanes import (
    WIDTH,
    Band,
    draw_band,
    envelopes,
    height,
    lane_of,
    name_labels,
    name_lanes,
)

BAND = 0.3  # inches, of a band of labels
LANE_PERCENTILE = 99  # of a channel's envelope; a lane is twice as high as the median of it


def draw_timeline(
    signal: Signal, bands: dict[str, Band], confidence: np.ndarray, names: dict[int, str], note: str, path: Path
) -> None:
    """Draw the bands, the confidence (n,) of the decisions in the last one, and the filtered channels below."""
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


def _draw_bands(axes: plt.Axes, bands: dict[str, Band], names: dict[int, str]) -> None:
    present = np.unique(np.concatenate([band.labels for band in bands.values()]))
    for row, band in enumerate(bands.values()):
        draw_band(axes, band, (-row - 0.45, 0.9), {} if row else names, present)
    axes.set(ylim=(0.6 - len(bands), 0.6), yticks=-np.arange(len(bands)), yticklabels=list(bands))
    axes.tick_params(length=0, labelsize=8)
    name_labels(axes, 10)


def _draw_channels(axes: plt.Axes, signal: Signal) -> None:
    """Draw channels below each other; what leaves its lane is cut off at the middle of the next."""
    time, curves = envelopes(signal.samples, signal.time)
    lane = lane_of(curves, LANE_PERCENTILE)
    for row, curve in enumerate(curves):
        axes.plot(time, np.clip(curve / lane, -1, 1) - row, lw=0.4, color=BLUE)
    name_lanes(axes, signal.channels)
    axes.set(xlim=(time[0], signal.end), ylabel=f"filtered signal (lines {lane:g} apart)")
