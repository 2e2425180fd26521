"""The panels of the pictures that tools.inspect draws."""

import textwrap
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator

from emg_gpt2.raw.power_line import LINE_FREQUENCIES
from emg_gpt2.raw.recording import UNLABELLED, Recording
from emg_gpt2.results.figures import BLUE, GREY, ORANGE, plt
from emg_gpt2.windows.cut import label_runs

WIDTH = 12.0  # inches, of a page
COLUMNS = 1500  # of an envelope, about one per pixel
FINDINGS_DRAWN = 6  # the terminal names all
CELLS_NUMBERED = 32  # in a row; more are too narrow for a number
ROWS_NAMED = 100


class Finding(NamedTuple):
    """What is wrong with a channel, counted from 0: flat, clipped or noisy, and how much, where."""

    channel: int
    kind: str
    words: str

    def __str__(self) -> str:
        return f"EMG_{self.channel + 1} {self.kind}: {self.words}"


class Spectrum(NamedTuple):
    """`frequencies` (F,) in Hz and `power` (F, C) in unit² per Hz."""

    frequencies: np.ndarray
    power: np.ndarray


class Report(NamedTuple):
    """What is said of one file: `amounts` per gesture in the terminal, the rest also above the picture."""

    name: str
    facts: list[str]
    amounts: str
    findings: list[Finding]
    sought: str  # the kinds of findings that such a file can show

    def finding_lines(self, most: int | None = None) -> list[str]:
        lines = [str(finding) for finding in self.findings[:most]]
        more = len(self.findings) - len(lines)
        return [*lines, f"and {more} more"] if more else lines or [f"no {self.sought} channel"]


def page(report: Report, heights: list[float]) -> tuple[plt.Figure, list]:
    """A page with the report at its top, and a part below it for each of `heights` (inches)."""
    texts = [
        (report.name, 11, "black"),
        *((line, 8.5, "black") for fact in report.facts for line in textwrap.wrap(fact, 170)),
    ]
    colour = ORANGE if report.findings else GREY
    texts += [(line, 8.5, colour) for line in report.finding_lines(FINDINGS_DRAWN)]
    head = 0.15 + 0.18 * len(texts)
    figure = plt.figure(figsize=(WIDTH, head + sum(heights)), layout="constrained")
    top, *parts = figure.subfigures(1 + len(heights), 1, height_ratios=[head, *heights])
    for i, (text, size, colour) in enumerate(texts):
        top.text(0.01, 1 - (0.2 + 0.18 * i) / head, text, fontsize=size, color=colour)
    return figure, parts


def height(lines: int, least: float) -> float:
    """Inches for so many channels or rows of a map below each other."""
    return min(max(0.2 * lines, least), 14)


def draw_labels(axes: plt.Axes, recording: Recording, names: list[str]) -> None:
    time, labels = recording.time, recording.labels
    runs = label_runs(labels)
    present, ends = np.unique(labels), np.append(time, time[-1])
    for label, colour, name in zip(present, label_colours(present), names, strict=True):
        spans = [(time[first], ends[end] - time[first]) for first, end, one in runs if one == label]  # start, length, s
        style = {"hatch": "////", "edgecolor": "#c0c0c0", "lw": 0} if label == UNLABELLED else {}
        axes.broken_barh(spans, (0, 1), facecolor=colour, label=name, **style)
    axes.set(ylim=(0, 1), yticks=[0.5], yticklabels=["label"])
    axes.tick_params(length=0, labelsize=7)
    columns = ceil(len(names) / ceil(len(names) / 8))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, fontsize=8, frameon=False)


def label_colours(labels: np.ndarray) -> list:
    """White for no label, light grey for rest (0), and a colour of its own for every gesture."""
    gestures = labels[labels > 0]
    few = [plt.cm.tab10(i) for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # 7 is grey
    colours = few if len(gestures) <= len(few) else plt.cm.turbo(np.linspace(0, 1, len(gestures)))
    return [{UNLABELLED: "white", 0: "#d0d0d0"}[x] if x <= 0 else colours[(gestures < x).sum()] for x in labels]


def draw_channels(axes: plt.Axes, recording: Recording, findings: list[Finding], unit: str) -> None:
    """Raw channels below each other, less their medians; what leaves the lane ends at the middle of the next."""
    edges = np.unique(np.linspace(0, len(recording.time), COLUMNS, endpoint=False).astype(int))
    curves = [envelope(x, edges) - np.median(x) for x in recording.emg.T]  # C × (2M,)
    lane = round_up(2 * np.median([np.percentile(np.abs(curve), 95) for curve in curves]))
    time, kinds = np.repeat(recording.time[edges], 2), _kinds(findings)
    for channel, (curve, x) in enumerate(zip(curves, recording.emg.T, strict=True)):
        colour = ORANGE if channel in kinds else BLUE
        axes.plot(time, np.clip(curve / lane, -1, 1) - channel, lw=0.5, color=colour)
        extent = f"{x.min():.4g} … {x.max():.4g}"
        axes.text(1.005, -channel, extent, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=colour)
    axes.set(xlim=recording.time[[0, -1]], ylim=(-len(curves), 1), xlabel="time (s)")
    axes.set_ylabel(f"raw signal\n(lines {lane:g} {unit} apart)")
    names = [f"{name} {kinds.get(channel, '')}" for channel, name in enumerate(recording.channels)]
    axes.set_yticks(-np.arange(len(names)), names, fontsize=min(7, 60 * height(len(names), 0) / len(names)))
    _mark(axes.get_yticklabels(), range(len(names)), kinds)
    axes.grid(axis="y", alpha=0.3)


def envelope(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Lowest and highest of the samples (N,) from each of the M rows `edges` to the next, in turn: (2M,)."""
    return np.stack([np.minimum.reduceat(x, edges), np.maximum.reduceat(x, edges)], axis=1).reshape(-1)


def round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-12)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _kinds(findings: list[Finding]) -> dict[int, str]:
    """Channel → what is wrong with it, each kind once."""
    return {one: ", ".join(sorted({f.kind for f in findings if f.channel == one})) for one, _, _ in findings}


def _mark(texts: list[plt.Text], channels: Iterable[int], flagged: dict[int, str]) -> None:
    for text, channel in zip(texts, channels, strict=True):
        if channel in flagged:
            text.set(color=ORANGE, fontweight="bold")


def draw_spectra(
    axes: plt.Axes, spectra: dict[str, Spectrum], band: tuple[float, float], findings: list[Finding], unit: str
) -> None:
    """Median and 10th to 90th percentile over the channels, and the flagged channels of the last spectrum."""
    middles = []
    for (name, (frequencies, power)), colour in zip(spectra.items(), [GREY, BLUE][-len(spectra) :], strict=True):
        low, middle, high = np.quantile(power[1:], (0.1, 0.5, 0.9), axis=1)
        axes.fill_between(frequencies[1:], low, high, color=colour, alpha=0.25, lw=0)
        axes.plot(frequencies[1:], middle, color=colour, lw=1, label=name)
        middles.append(middle)
    for channel in _kinds(findings):
        axes.plot(frequencies[1:], power[1:, channel], color=ORANGE, lw=0.6, label="flagged channels")
    for edge in band:
        axes.axvline(edge, color="black", ls="--", lw=0.8, label="band edges")
    for line in LINE_FREQUENCIES:
        axes.axvline(line, color="black", ls=":", lw=0.8, label="line frequencies")
    inside = (frequencies[1:] >= band[0]) & (frequencies[1:] <= min(band[1], 0.9 * frequencies[-1]))
    top = np.max(middles)
    bottom = max(np.min(middles, where=inside, initial=top), 1e-9 * top)
    axes.set(xscale="log", yscale="log", xlim=frequencies[[1, -1]], ylim=(bottom / 10, top * 10))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize=8)
    axes.set_xlabel("frequency (Hz)")
    axes.set_ylabel(f"power ({unit}²/Hz)")
    once = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    style = {"ncols": 3, "fontsize": 7, "frameon": False, "loc": "lower center", "bbox_to_anchor": (0.5, 1)}
    axes.legend(once.values(), once.keys(), **style)
    axes.grid(alpha=0.3)


def draw_electrodes(
    axes: plt.Axes, rms: np.ndarray, rows: list[str], findings: list[Finding], ring: int, label: str
) -> None:
    """Map of (rows, C) RMS values, with a gap between rings of `ring` electrodes."""
    draw_map(axes, rms, rows, label)
    channels, flagged = rms.shape[1], _kinds(findings)
    ticks = sorted({*range(0, channels, ceil(channels / CELLS_NUMBERED)), *flagged})
    axes.set_xticks(ticks, [str(channel + 1) for channel in ticks])
    _mark(axes.get_xticklabels(), ticks, flagged)
    axes.set_xlabel("EMG channel")
    name = "ring " if channels <= 10 * ring else ""
    for number, first in enumerate(range(0, channels, ring), 1):
        if first:
            axes.axvline(first - 0.5, color="white", lw=4)
        middle = (first + min(first + ring, channels) - 1) / 2
        axes.text(middle, -0.6, f"{name}{number}", ha="center", va="bottom", fontsize=8)


def draw_map(axes: plt.Axes, values: np.ndarray, rows: list[str], label: str) -> None:
    """(rows, columns) as colours on a logarithmic scale, with numbers where they fit; NaN and 0 are left white."""
    known = values[values > 0]  # NaN is not
    low, high = np.percentile(known, (2, 98)) if known.size else (1, 1)
    low = min(low, high / 2)  # small differences stay pale
    image = axes.imshow(np.where(values > 0, values, np.nan), cmap="Blues", norm=LogNorm(low, high), aspect="auto")
    if values.shape[1] <= CELLS_NUMBERED and len(rows) <= ROWS_NAMED:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > np.sqrt(low * high) else "black"
                text = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    step = ceil(len(rows) / ROWS_NAMED)
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    axes.tick_params(length=0, labelsize=7)
    style = {"aspect": max(20, 2 * len(rows)), "pad": 0.01, "ticks": LogLocator(subs=(1, 2, 5)), "format": "{x:g}"}
    bar = axes.figure.colorbar(image, ax=axes, label=label, **style)
    bar.ax.tick_params(labelsize=7)
    bar.minorticks_off()
