"""The picture of decisions over the signal."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from emg_gpt2.live.decisions import REJECTED
from emg_gpt2.live.signals import Signal
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.results.figures import BLACK, BLUE, GREY, ORANGE, PALE, WIDTH, plt, save
from emg_gpt2.results.lanes import LINE, Band, draw_channels, draw_labels, envelopes, height, name_rows, unit_words

HIDDEN = -2  # a label without a row


class Decisions(NamedTuple):
    """Decisions (n,) that stand from their `time` (s) to the next: with smoothing and rejection, and plain.

    confidence: 0 … 1; truth: the label that each is judged by, UNLABELLED where none is; None without labels.
    """

    time: np.ndarray
    labels: np.ndarray
    plain: np.ndarray
    confidence: np.ndarray
    truth: np.ndarray | None


def draw_timeline(
    signal: Signal, decisions: Decisions, names: dict[int, str], unit: str, caption: str, path: Path
) -> None:
    """Draw labels and decisions, where these are wrong, their confidence, and the filtered channels below."""
    drawn = [decisions.labels, decisions.plain] + ([] if decisions.truth is None else [signal.labels])
    present = np.setdiff1d(np.concatenate(drawn), [UNLABELLED, REJECTED]).tolist()
    present += [REJECTED] if (decisions.labels == REJECTED).any() else []
    heights = [LINE * (len(present) + (decisions.truth is not None)), 0.6, height(len(signal.channels), 1.2)]
    shape = {"figsize": (WIDTH, sum(heights) + 1.6), "height_ratios": heights}
    figure, (top, middle, bottom) = plt.subplots(3, sharex=True, **shape)
    _draw_decisions(top, signal, decisions, {label: row for row, label in enumerate(present)}, names)
    middle.plot(decisions.time, decisions.confidence, color=GREY, lw=0.6)
    middle.set(ylim=(0, 1.03), ylabel="confidence")
    middle.grid()
    words = f"filtered signal\n(lines {{lane:g}} {unit_words(unit)} apart)"
    draw_channels(bottom, *envelopes(signal.samples, signal.time), list(signal.channels), words)
    bottom.set_xlim(signal.start, signal.end)
    figure.align_ylabels()
    figure.legend(*top.get_legend_handles_labels(), ncols=5, loc="outside upper center")
    save(figure, caption, path)


def _draw_decisions(
    axes: plt.Axes, signal: Signal, decisions: Decisions, rows: dict[int, int], names: dict[int, str]
) -> None:
    """Draw labels as broad bars and the decisions on them, and below all gestures a row with the wrong decisions."""
    texts, time = [names[label] for label in rows], decisions.time
    kinds = {("predicted", BLUE): np.full(len(time), True)}
    if decisions.truth is not None:
        labels = np.where(signal.labels == REJECTED, HIDDEN, signal.labels)  # −1 is no label, too
        draw_labels(axes, Band(signal.time, labels, signal.end), rows, (0, 0.9), color=PALE, label="label")
        judged = decisions.truth != UNLABELLED
        wrong = judged & (decisions.labels != decisions.truth)
        kinds = {("predicted, right", BLUE): judged & ~wrong, ("predicted, wrong", ORANGE): wrong}
        kinds |= {("predicted, not judged", GREY): ~judged}
        texts.append(f"wrong ({100 * wrong.sum() / max(judged.sum(), 1):.1f} %)")
        band = Band(time, np.where(wrong, 0, HIDDEN), signal.end)
        draw_labels(axes, band, {0: len(rows)}, (0, 0.9), color=ORANGE, lw=0.4)
    for (name, colour), chosen in kinds.items():
        band = Band(time, np.where(chosen, decisions.labels, HIDDEN), signal.end)
        draw_labels(axes, band, rows, (-0.05, 0.4), color=colour, lw=0.3, label=name)
    if (decisions.plain != decisions.labels).any():
        band = Band(time, decisions.plain, signal.end)
        draw_labels(axes, band, rows, (0.3, 0.12), color=BLACK, lw=0, label="not smoothed")
    name_rows(axes, texts)
    if len(texts) > len(rows):
        axes.axhline(len(rows) - 0.5, color=BLACK, lw=0.5)
        axes.get_yticklabels()[-1].set_color(ORANGE)
