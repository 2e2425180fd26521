"""Palette, axes and saving of the figures, and those of a sweep and of the baselines."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from emg_gpt2.base.files import replace_file

BLUE, ORANGE, GREY = "#1f5fa8", "#c8560a", "#6b6b6b"  # apart for colour-blind eyes, dark enough for print
BLACK = "#1a1a1a"
FEW_CLASSES = 12  # more get smaller cells and print
FEW_VALUES = 6  # of a setting; more are drawn on a scale


def draw_sweep(
    table: pd.DataFrame, importances: dict[str, float], why_not: str, logarithmic: list[str], note: str, run: Path
) -> None:
    """sweep.png from the trials of sweep.csv: their values, and which settings matter, or `why_not`."""
    rows, size = (2, (9, 7.5)) if importances else (1, (7, 4.5))
    figure, panels = plt.subplots(rows, rows, figsize=size, layout="constrained", squeeze=False)
    _draw_trials(panels[0, 0], table, table["trial"])
    panels[0, 0].set(xlabel="trial", title=why_not)
    panels[0, 0].title.set(fontsize=9, color=GREY)
    panels[0, 0].xaxis.get_major_locator().set_params(integer=True)
    if importances:
        panels[0, 1].barh(list(importances), importances.values(), color=BLUE)
        panels[0, 1].invert_yaxis()
        panels[0, 1].set(xlabel="share of the variance of complete trials (fANOVA)", xlim=(0, 1))
        for axes, name in zip(panels[1], importances, strict=False):
            _draw_over(axes, table, name, name in logarithmic)
    finish(figure, panels[0, 0], note, run / "sweep.png")


def _draw_over(axes, table: pd.DataFrame, name: str, logarithmic: bool) -> None:
    """The trials over one setting: few values stand side by side, many on their own scale."""
    x, ticks = table[name], sorted(table[name].dropna().unique())
    if len(ticks) <= FEW_VALUES:
        names = [f"{tick:g}" if isinstance(tick, float) else str(tick) for tick in ticks]
        axes.set_xticks(range(len(ticks)), [name.replace("-", "−") for name in names])
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        x = x.map(ticks.index, na_action="ignore")
    elif logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(name)
    _draw_trials(axes, table, x)


def _draw_trials(axes, table: pd.DataFrame, x: pd.Series) -> None:
    value, states = table["validation_balanced_accuracy"], table["state"]
    for state, marker, color in (("complete", "o", BLUE), ("pruned", "v", GREY), ("failed", "x", GREY)):
        chosen = states == state
        if chosen.any():
            axes.plot(x[chosen], value[chosen], marker, color=color, ms=5, label=f"{state}: {chosen.sum()}")
    best = value.where(states == "complete").idxmax()
    axes.plot(x[best], value[best], "o", ms=11, mfc="none", color=ORANGE, label="best")
    axes.set_ylabel("validation, balanced accuracy")
    axes.grid(alpha=0.3)


def draw_baselines(
    groups: list[str], bars: dict[str, list[float]], run: tuple[str, float], chance: float, note: str, path: Path
) -> None:
    """Horizontal bars of balanced accuracy: the run's (name, value) on top, then each group with one bar per key."""
    figure, axes = plt.subplots(figsize=(7.5, 1.8 + 0.36 * len(groups)), layout="constrained")
    rows, size = np.arange(len(groups)), 0.8 / len(bars)
    drawn = [axes.barh(-1, run[1], 0.9, color="black", label=run[0])]
    for index, ((name, values), colour) in enumerate(zip(bars.items(), (BLUE, ORANGE), strict=True)):
        hatch = {"hatch": "////", "edgecolor": "white", "linewidth": 0} if index else {}
        drawn.append(axes.barh(rows + size * (index - 0.5), values, size, color=colour, label=name, **hatch))
    for one in drawn:
        axes.bar_label(one, fmt="%.3f", fontsize=7, padding=3, bbox={"facecolor": "white", "lw": 0, "pad": 0.4})
    axes.axvline(run[1], color="black", lw=0.8)
    axes.axvline(chance, ls=":", color=GREY, label=f"chance ({chance:.3f})")
    axes.set_yticks([-1, *rows], ["this run", *groups], fontsize=8)
    axes.set(xlim=(0, 1.08), ylim=(len(groups) - 0.4, -1.7), xlabel="balanced accuracy, test part")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    finish(figure, axes, note, path)


def epoch_axes(label: str):
    """A figure over epochs, and its axes with the label of y."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    return figure, axes


def finish(figure, axes, note: str, path: Path, columns: int = 3) -> None:
    """Add the legend above, in so many columns, and the note below, and write the picture."""
    looks = {"loc": "outside upper center", "fontsize": 8, "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), ncols=columns, **looks)
    save(figure, note, path)


def save(figure, note: str, path: Path) -> None:
    """Add the note below, and write the picture."""
    figure.supxlabel(note, fontsize=7, color=GREY, wrap=True)
    replace_file(path, lambda new: figure.savefig(new, dpi=150))
    plt.close(figure)
