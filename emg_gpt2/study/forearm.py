"""The pictures of `explain`: importance on the forearm's electrodes, in bands and moments; the learned filters."""

import textwrap
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.tokens import spread_filters
from emg_gpt2.results.figures import BLUE, GREY, ORANGE, plt
from emg_gpt2.study.occlusion import Importance, Part

COLOURS = "PuOr_r"  # orange is positive; colour-blind readers can tell the two sides apart (ColorBrewer)
PANELS = 3  # in a row
MAPS = {"ring": "rings", "band": "frequency bands", "moment": "moments of the window"}
MANY_CELLS = 40  # in a row; more are too narrow for a number
FILTERS_DRAWN = 32  # of more, those of most use
COLUMNS, RESPONSE_POINTS = 4, 1024
LOWEST_DB = -50


class Map(NamedTuple):
    """Importance in points (rows, columns), and whether it is at least one and its interval excludes 0."""

    points: np.ndarray
    certain: np.ndarray

    def of(self, *where) -> "Map":
        return Map(self.points[where], self.certain[where])


def draw_importance(
    found: Importance, parts: list[Part], gestures: list[str], ring: int, notes: list[str], path: Path
) -> None:
    """A grid of electrodes per gesture, a row per ring of `ring` electrodes; then maps of gestures × other parts."""
    whole = Map(100 * found.value, (abs(found.value) >= 0.01) & ((found.low > 0) | (found.high < 0)))
    kinds = [part.kind for part in parts]
    electrodes = whole.of(slice(None), [kind == "electrode" for kind in kinds])
    maps = [kind for kind in MAPS if kind in kinds]
    rows, (bands, width) = ceil(len(gestures) / PANELS), grid_shape(electrodes.points.shape[1], ring)
    top, bottom = rows * (0.45 + 0.28 * bands), 1.1 + 0.26 * len(gestures)
    figure = plt.figure(figsize=(13, 1.1 + top + bottom), layout="constrained")
    figure.suptitle(f"{TITLE}\n{notes[0]}", fontsize=10, x=0.01, ha="left")
    upper, lower = figure.subfigures(2, 1, height_ratios=[top, bottom])
    draw_grids(upper, electrodes, gestures, (bands, width), rows)
    names = {kind: [part.name for part in parts if part.kind == kind] for kind in maps}
    draw_maps(lower, {kind: whole.of(slice(None), [one == kind for one in kinds]) for kind in maps}, names, gestures)
    figure.supxlabel(textwrap.fill(f"{LEGEND} {notes[1]}", 190), fontsize=7.5, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


TITLE = "Importance for the true gesture's probability (percentage points)"
LEGEND = (
    "Importance: what the probability loses when this part comes from a window of any gesture instead of one of the "
    "same gesture. A number stands where that is at least one point and its 95 % interval excludes 0. Rings are "
    "consecutive channels (putEMG: ring 1 is nearest the elbow)."
)


def grid_shape(channels: int, ring: int) -> tuple[int, int]:
    """Rows and columns: a row per ring, or one row where the channels are no whole number of rings."""
    return (1, channels) if channels % ring else (channels // ring, ring)


def draw_grids(figure, electrodes: Map, gestures: list[str], shape: tuple[int, int], rows: int) -> None:
    """One grid per gesture, all on one colour scale."""
    limit, axes = limit_of(electrodes.points), figure.subplots(rows, PANELS, squeeze=False)
    for place, one in enumerate(axes.flat):
        if place >= len(gestures):
            one.axis("off")
            continue
        image = draw_cells(one, electrodes.of(place), shape, limit)
        one.set_title(gestures[place], fontsize=9, fontweight="bold" if place == 0 else "normal")
        one.set_yticks(range(shape[0]), [f"ring {ring + 1}" for ring in range(shape[0])] if shape[0] > 1 else [""])
        step = ceil(shape[1] / 24)
        one.set_xticks(range(0, shape[1], step), range(1, shape[1] + 1, step))
        if place + PANELS >= len(gestures):
            one.set_xlabel("electrode of the ring" if shape[0] > 1 else "channel", fontsize=8)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=30, label="points, one electrode").ax.tick_params(labelsize=7)


def draw_maps(figure, maps: dict[str, Map], names: dict[str, list[str]], gestures: list[str]) -> None:
    """Gestures × rings, bands and moments, on one colour scale."""
    limit = limit_of(np.concatenate([one.points for one in maps.values()], axis=1))
    sizes = [max(3, len(names[kind])) for kind in maps]
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=sizes)[0]
    for place, (kind, one) in enumerate(zip(maps, axes, strict=True)):
        image = draw_cells(one, maps[kind], maps[kind].points.shape, limit)
        one.set_title(MAPS[kind], fontsize=9)
        one.set_xticks(range(len(names[kind])), names[kind], rotation=30, ha="right", rotation_mode="anchor")
        one.set_yticks(range(len(gestures)), gestures if place == 0 else [])
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20, label="points").ax.tick_params(labelsize=7)


def limit_of(points: np.ndarray) -> float:
    """The value at either end of the colours; at least one point, so that noise stays pale."""
    return max(1.0, np.nanmax(np.abs(points)))


def draw_cells(axes: plt.Axes, values: Map, shape: tuple[int, int], limit: float):
    """Coloured cells, with a number in those that are certain; returns the image."""
    points, certain = (one.reshape(shape) for one in values)
    image = axes.imshow(points, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    if shape[1] <= MANY_CELLS:
        for row, column in np.argwhere(certain):
            value = points[row, column]
            colour = "white" if abs(value) > 0.6 * limit else "black"
            text = f"{value:.0f}".replace("-", "−") if abs(value) >= 9.95 else f"{value:.1f}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.tick_params(length=0, labelsize=7.5)
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1)
    axes.tick_params(which="minor", length=0)
    return image


# ---- filters --------------------------------------------------------------------------------------------------


class Filters(NamedTuple):
    """Responses of F filters at frequencies (H,) Hz: learned and start (F, H), dB below each filter's peak.

    use (F,): what the true gesture's probability loses without the filter.
    """

    frequencies: np.ndarray
    learned: np.ndarray
    start: np.ndarray
    use: np.ndarray


def read_filters(model: EMGForSequenceClassification, use: np.ndarray) -> Filters:
    """The filters of the `power` tokeniser."""
    taps = model.tokenisers["power"].filters.detach()
    frequencies = np.fft.rfftfreq(RESPONSE_POINTS, 1 / model.config.sampling_rate)
    return Filters(frequencies, response(taps.numpy()), response(spread_filters(*taps.shape).numpy()), use)


def response(taps: np.ndarray) -> np.ndarray:
    """(F, taps) → (F, H) dB below each filter's peak, from 0 to Nyquist."""
    gain = np.abs(np.fft.rfft(taps, RESPONSE_POINTS))
    return 20 * np.log10(np.maximum(gain / gain.max(1, keepdims=True), 1e-6))


def largest_move(bank: Filters) -> float:
    """Largest difference (dB) between a filter and its start, within 10 dB of the start's peak."""
    return float(np.abs(bank.learned - bank.start)[bank.start > -10].max())


def draw_filters(bank: Filters, notes: list[str], path: Path) -> None:
    """A panel per filter, in the order of their starting bands; at most FILTERS_DRAWN, those of most use."""
    drawn = np.sort(np.argsort(-bank.use)[:FILTERS_DRAWN])
    rows = ceil(len(drawn) / COLUMNS)
    size = (12, 1.0 + 1.6 * rows)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for one in axes.flat[len(drawn) :]:
        one.axis("off")
    for one, number in zip(axes.flat, drawn, strict=False):
        draw_response(one, bank, number)
    words = textwrap.fill(" ".join([USE, *notes]), 170)
    figure.supxlabel(f"frequency (Hz)\n{words}", fontsize=7.5, color=GREY)
    figure.supylabel("response (dB below the filter's peak)", fontsize=8)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    most = "" if len(drawn) == len(bank.use) else f", the {len(drawn)} of most use"
    moved = f"within 10 dB of a peak, training moved them by at most {largest_move(bank):.1f} dB"
    figure.suptitle(f"The {len(bank.use)} learned filters{most}: {moved}", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_response(axes: plt.Axes, bank: Filters, number: int) -> None:
    """One filter, learned and at the start."""
    axes.plot(bank.frequencies, bank.learned[number], color=BLUE, lw=1.6, label="learned")
    axes.plot(bank.frequencies, bank.start[number], color=ORANGE, ls="--", lw=1, label="at the start")
    peak, use = bank.frequencies[bank.learned[number].argmax()], f"{100 * bank.use[number]:.2f}".replace("-", "−")
    axes.set_title(f"{number + 1}: peak {peak:.0f} Hz, use {use}", fontsize=8)
    axes.set(ylim=(LOWEST_DB, 3), xlim=(0, bank.frequencies[-1]))
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)


USE = "Use: points of the true gesture's probability (mean over the gestures) that are lost without the filter."
