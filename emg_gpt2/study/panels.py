"""The panels of the pictures that `inspect` draws."""

import textwrap
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator

from emg_gpt2.raw.filter import LINE_FREQUENCIES
from emg_gpt2.raw.quality import Finding, Spectrum
from emg_gpt2.raw.recording import Recording
from emg_gpt2.results.figures import BLACK, BLUE, CAPTION, GREY, ORANGE, WIDTH, plt
from emg_gpt2.results.lanes import Band, draw_channels, draw_labels, envelopes, name_rows

FINDINGS_DRAWN = 6  # the terminal names all
CELLS_NUMBERED = 32  # in a row; more are too narrow for a number
ROWS_NAMED = 100


class Report(NamedTuple):
    """What the terminal and the head of the picture say of one file, and what its panels share.

    amounts: label → name and amount of a gesture; sought: the kinds of findings that such a file can show; unit: of
    the samples; band: of the filter, Hz; ring: electrodes in a ring; warning: why gestures go by number, which the
    terminal says once for all files.
    """

    name: str
    facts: list[str]
    amounts: dict[int, str]
    findings: list[Finding]
    sought: str
    unit: str
    band: tuple[float, float]
    ring: int
    warning: str = ""

    def finding_lines(self, most: int | None = None) -> list[str]:
        """Return a line per finding, at most `most` of them."""
        lines = [str(finding) for finding in self.findings[:most]]
        more = len(self.findings) - len(lines)
        return [*lines, f"and {more} more"] if more else lines or [f"no {self.sought} channel"]

    @property
    def flagged(self) -> dict[int, str]:
        """Channel → what is wrong with it, each kind once."""
        return {
            one: ", ".join(sorted({finding.kind for finding in self.findings if finding.channel == one}))
            for one, _, _ in self.findings
        }


def page(report: Report, heights: list[float]) -> tuple[plt.Figure, list]:
    """Return a page with the report at its top, and a part below it for each of `heights` (inches)."""
    texts = [(report.name, 9, BLACK), *((fact, 7, BLACK) for fact in report.facts)]
    texts += [(line, 7, ORANGE if report.findings else GREY) for line in report.finding_lines(FINDINGS_DRAWN)]
    lines = [(line, *looks) for text, *looks in texts for line in textwrap.wrap(text, int(0.85 * CAPTION * WIDTH))]
    head = 0.15 + 0.14 * len(lines)
    figure = plt.figure(figsize=(WIDTH, head + sum(heights)))
    top, *parts = figure.subfigures(1 + len(heights), 1, height_ratios=[head, *heights])
    for i, (text, size, colour) in enumerate(lines):
        top.text(0.01, 1 - (0.15 + 0.14 * i) / head, text, fontsize=size, color=colour)
    return figure, parts


# ---- a recording ------------------------------------------------------------------------------------------------


def draw_amounts(axes: plt.Axes, recording: Recording, report: Report) -> None:
    """Draw the labels, in a row each, and how long each lasts."""
    band = Band(recording.time, recording.labels, recording.time[-1])
    draw_labels(axes, band, {label: row for row, label in enumerate(report.amounts)}, (0, 0.8), color=BLACK, lw=0)
    name_rows(axes, list(report.amounts.values()))
    axes.set_ylabel("label")


def draw_raw(axes: plt.Axes, recording: Recording, report: Report) -> None:
    """Draw raw channels below each other, less their medians, and the range of each."""
    time, curves = envelopes(recording.emg, recording.time)
    curves -= np.array([np.median(x) for x in recording.emg.T])[:, None]
    flagged, beside = report.flagged, {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 6}
    names = [f"{name} {flagged.get(channel, '')}" for channel, name in enumerate(recording.channels)]
    draw_channels(axes, time, curves, names, f"raw signal\n(lines {{lane:g}} {report.unit} apart)", flagged)
    _mark(axes.get_yticklabels(), range(len(curves)), flagged)
    axes.text(1.01, 1, f"min … max ({report.unit})", **beside)
    for channel, x in enumerate(recording.emg.T):
        text = f"{x.min():.4g} … {x.max():.4g}".replace("-", "−")
        axes.text(1.01, -channel, text, color=ORANGE if channel in flagged else BLACK, **beside)


def _mark(texts: list[plt.Text], channels: Iterable[int], flagged: dict[int, str]) -> None:
    for text, channel in zip(texts, channels, strict=True):
        if channel in flagged:
            text.set(color=ORANGE, fontweight="bold")


# ---- spectra ----------------------------------------------------------------------------------------------------


def draw_spectra(axes: plt.Axes, spectra: dict[str, Spectrum], report: Report) -> None:
    """Draw median and 10th to 90th percentile over the channels, and the flagged channels of the last spectrum."""
    middles = []
    for (name, (frequencies, power)), colour in zip(spectra.items(), [GREY, BLUE][-len(spectra) :], strict=True):
        low, middle, high = np.quantile(power[1:], (0.1, 0.5, 0.9), axis=1)
        axes.fill_between(frequencies[1:], low, high, color=colour, alpha=0.25, lw=0)
        axes.plot(frequencies[1:], middle, color=colour, lw=1, label=name)
        middles.append(middle)
    for channel in report.flagged:
        axes.plot(frequencies[1:], power[1:, channel], color=ORANGE, lw=0.6, label="flagged channels")
    _limit(axes, frequencies, np.array(middles), report.band)
    axes.set_ylabel(f"power ({report.unit}²/Hz)")
    for edge in report.band:
        axes.axvline(edge, color=BLACK, ls="--", lw=0.8, label="band edges")
    for line in LINE_FREQUENCIES:
        axes.axvline(line, color=BLACK, ls=":", lw=0.8, label="line frequencies")
    once = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(once.values(), once.keys(), loc="center left", bbox_to_anchor=(1, 0.5))


def _limit(axes: plt.Axes, frequencies: np.ndarray, middles: np.ndarray, band: tuple[float, float]) -> None:
    """Set logarithmic axes that show the medians (spectra, F − 1), at least all that lies inside the band."""
    inside = (frequencies[1:] >= band[0]) & (frequencies[1:] <= min(band[1], 0.9 * frequencies[-1]))
    top = np.max(middles)
    bottom = max(np.min(middles, where=inside, initial=top), 1e-9 * top)
    axes.set(xscale="log", yscale="log", xlim=frequencies[[1, -1]], ylim=(bottom / 10, top * 10))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("frequency (Hz)")
    axes.grid()


# ---- maps -------------------------------------------------------------------------------------------------------


def draw_electrodes(axes: plt.Axes, rms: np.ndarray, rows: list[str], report: Report, what: str) -> None:
    """Draw a map of (rows, C) RMS values, with a gap between the rings of electrodes."""
    draw_map(axes, rms, rows, f"{what} ({report.unit})")
    channels, ring, flagged = rms.shape[1], report.ring, report.flagged
    ticks = sorted({*range(0, channels, ceil(channels / CELLS_NUMBERED)), *flagged})
    axes.set_xticks(ticks, [str(channel + 1) for channel in ticks])
    _mark(axes.get_xticklabels(), ticks, flagged)
    axes.set_xlabel("EMG channel")
    name = "ring " if channels <= 10 * ring else ""
    for number, first in enumerate(range(0, channels, ring), 1):
        if first:
            axes.axvline(first - 0.5, color="white", lw=4)
        middle = (first + min(first + ring, channels) - 1) / 2
        axes.text(middle, -0.6, f"{name}{number}", ha="center", va="bottom", fontsize=7)


def draw_map(axes: plt.Axes, values: np.ndarray, rows: list[str], label: str) -> None:
    """Draw (rows, columns) as colours on a logarithmic scale, with numbers where they fit; NaN and 0 stay white."""
    known = values[values > 0]  # NaN is not
    low, high = np.percentile(known, (2, 98)) if known.size else (1, 1)
    low = min(low, high / 2)  # so that small differences stay pale
    image = axes.imshow(np.where(values > 0, values, np.nan), cmap="Blues", norm=LogNorm(low, high), aspect="auto")
    if values.shape[1] <= CELLS_NUMBERED and len(rows) <= ROWS_NAMED:
        _write_numbers(axes, values, low**0.4 * high**0.6)
    step = ceil(len(rows) / ROWS_NAMED)
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    style = {"aspect": max(20, 2 * len(rows)), "pad": 0.01, "ticks": LogLocator(subs=(1, 2, 5)), "format": "{x:g}"}
    bar = axes.figure.colorbar(image, ax=axes, label=label, **style)
    bar.minorticks_off()


def _write_numbers(axes: plt.Axes, values: np.ndarray, dark: float) -> None:
    """Write each value into its cell, white where it is above `dark`."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text, colour = f"{value:.0f}" if value >= 10 else f"{value:.2g}", "white" if value > dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
