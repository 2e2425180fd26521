"""The pictures of `explain`: importance of electrodes, bands and moments; the learned filters."""

from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.tokens import spread_filters
from emg_gpt2.results.figures import BLUE, ORANGE, WIDTH, plt, save
from emg_gpt2.study.occlusion import Importance, Part

COLOURS = "PuOr_r"  # orange is positive; colour-blind readers can tell the two sides apart (ColorBrewer)
MAPS = {"ring": "rings", "band": "frequency bands", "moment": "moments of the window"}
MANY_CELLS = 40  # in a row; more are too narrow for a number
FILTERS_DRAWN = 32  # of more, those of most use
LINE = 0.16  # inches, of a row of a map
COLUMNS, RESPONSE_POINTS = 4, 1024
LOWEST_DB = -50


class Map(NamedTuple):
    """Importance in points (rows, columns), and whether it is at least one and its interval excludes 0."""

    points: np.ndarray
    certain: np.ndarray

    def of(self, *where) -> "Map":
        return Map(self.points[where], self.certain[where])


def draw_importance(
    found: Importance, parts: list[Part], gestures: list[str], ring: int, captions: list[str], path: Path
) -> None:
    """Maps of gestures × electrodes, with a gap between rings of `ring` electrodes, and of gestures × other parts."""
    whole = Map(100 * found.value, (abs(found.value) >= 0.01) & ((found.low > 0) | (found.high < 0)))
    names = {kind: [part.name for part in parts if part.kind == kind] for kind in ("electrode", *MAPS)}
    maps = {kind: whole.of(slice(None), [part.kind == kind for part in parts]) for kind in names}
    tall = 0.7 + LINE * len(gestures)
    figure = plt.figure(figsize=(WIDTH, 2 * tall + 1.3))
    upper, lower = figure.subfigures(2, 1, height_ratios=[tall, tall + 0.2])
    draw_electrodes(upper, maps.pop("electrode"), names["electrode"], gestures, ring)
    draw_maps(lower, {kind: one for kind, one in maps.items() if names[kind]}, names, gestures)
    save(figure, "\n".join([LEGEND, *captions]), path)


LEGEND = (
    "Importance: percentage points that the true gesture's probability loses when this part comes from a window of any "
    "gesture instead of one of the same gesture. A number stands where it is at least one point and its 95 % interval "
    "excludes 0. Rings are consecutive channels (putEMG: ring 1 is nearest the elbow)."
)


def draw_electrodes(figure, electrodes: Map, names: list[str], gestures: list[str], ring: int) -> None:
    """Gestures × electrodes."""
    axes, channels = figure.subplots(), len(names)
    image = draw_cells(axes, electrodes, gestures, limit_of(electrodes.points))
    step = ceil(channels / MANY_CELLS)
    axes.set_xticks(range(0, channels, step), names[::step], rotation=90)
    rings = range(0, channels, ring) if channels % ring == 0 else []
    for number, first in enumerate(rings, 1):
        axes.text(first + (ring - 1) / 2, -0.6, f"ring {number}", ha="center", va="bottom", fontsize=7)
        axes.axvline(first - 0.5, color="white", lw=4)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20, label="importance of one\nelectrode (points)")


def draw_maps(figure, maps: dict[str, Map], names: dict[str, list[str]], gestures: list[str]) -> None:
    """Gestures × rings, bands and moments, on one colour scale."""
    limit = limit_of(np.concatenate([one.points for one in maps.values()], axis=1))
    sizes = [max(3, len(names[kind])) for kind in maps]
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=sizes)[0]
    for place, (kind, one) in enumerate(zip(maps, axes, strict=True)):
        image = draw_cells(one, maps[kind], gestures if place == 0 else [], limit)
        one.set_title(MAPS[kind])
        one.set_xticks(range(len(names[kind])), names[kind], rotation=30, ha="right", rotation_mode="anchor")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20, label="importance (points)")


def limit_of(points: np.ndarray) -> float:
    """The value at either end of the colours; at least one point, so that noise stays pale."""
    return max(1.0, np.nanmax(np.abs(points)))


def draw_cells(axes: plt.Axes, values: Map, gestures: list[str], limit: float):
    """Coloured cells, with a number in those that are certain; returns the image."""
    points, certain = values
    image = axes.imshow(points, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    if points.shape[1] <= MANY_CELLS:
        for row, column in np.argwhere(certain):
            value = points[row, column]
            text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
            style = {"ha": "center", "va": "center", "fontsize": 5.5}
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(column, row, text.replace("-", "−"), color=colour, **style)
    axes.set_yticks(range(len(gestures)), gestures)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
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


def draw_filters(bank: Filters, captions: list[str], path: Path) -> None:
    """A panel per filter, in the order of their starting bands; at most FILTERS_DRAWN, those of most use."""
    drawn = np.sort(np.argsort(-bank.use)[:FILTERS_DRAWN])
    rows = ceil(len(drawn) / COLUMNS)
    size = (WIDTH, 1.2 + 1.1 * rows)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, sharex=True, sharey=True, squeeze=False)
    for one in axes.flat[len(drawn) :]:
        one.axis("off")
    for one, number in zip(axes.flat, drawn, strict=False):
        draw_response(one, bank, number)
    for one in axes[-1]:
        one.set_xlabel("frequency (Hz)")
    figure.supylabel("response (dB below the filter's peak)", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    most = "" if len(drawn) == len(bank.use) else f", the {len(drawn)} of most use"
    moved = f"within 10 dB of a peak, training moved them by at most {largest_move(bank):.1f} dB"
    words = [f"The {len(bank.use)} learned filters{most}: {moved}.", USE, *captions]
    save(figure, "\n".join(words), path)


def draw_response(axes: plt.Axes, bank: Filters, number: int) -> None:
    """One filter, learned and at the start."""
    axes.plot(bank.frequencies, bank.learned[number], color=BLUE, label="learned")
    axes.plot(bank.frequencies, bank.start[number], color=ORANGE, ls="--", lw=0.8, label="at the start")
    peak, use = bank.frequencies[bank.learned[number].argmax()], f"{100 * bank.use[number]:.2f}".replace("-", "−")
    axes.set_title(f"{number + 1}: peak {peak:.0f} Hz, use {use}", fontsize=7)
    axes.set(ylim=(LOWEST_DB, 3), xlim=(0, bank.frequencies[-1]))
    axes.grid()


USE = (
    "Use: percentage points that the true gesture's probability (mean over the gestures) loses without the filter; "
    "negative where it is higher without the filter, so that the filter is of no use on these windows."
)
