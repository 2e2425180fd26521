"""What all pictures have in common: palette, printed size, captions, saving; and the pictures of a sweep and baselines.

Every picture is drawn at the size at which a paper prints it: WIDTH, its page's two columns, with letters of 6 to 9 pt.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from emg_gpt2.base.files import replace_file

# Okabe and Ito's colours, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color/)
BLUE, ORANGE, BLACK, GREEN, SKY = "#0072b2", "#d55e00", "#000000", "#009e73", "#56b4e9"
GREY, PALE = "#6b6b6b", "#d9d9d9"
POINTS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (SKY, "v"))  # of kinds that are compared
WIDTH = 7.2  # inches
CAPTION = 22  # letters of a caption in an inch
FEW_CLASSES = 12  # of more, the cells of a confusion matrix have no room for their counts
FEW_TRIALS = 12  # of a sweep; of more, the points are not numbered
FEW_VALUES = 6  # of a setting; more are drawn on a scale
LEAST_SPAN = 0.05  # of an axis of accuracies, so that negligible differences look small
PANELS = 3  # of a sweep, side by side

plt.rcParams |= {
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # texts stay texts,
    "pdf.fonttype": 42,  # and fonts are embedded as journals ask for them
}


def use_format(kind: str) -> None:
    """Draw all pictures from now on as `png`, `pdf` or `svg`."""
    plt.rcParams["savefig.format"] = kind


def picture(path: Path) -> Path:
    """Return the path of a picture with the suffix of the format in use."""
    return path.with_suffix(f".{plt.rcParams['savefig.format']}")


def save(figure: plt.Figure, caption: str, path: Path) -> None:
    """Add the caption below, and write the picture in the format in use, whatever the suffix of `path`."""
    wide = int(CAPTION * figure.get_figwidth())
    lines = "\n".join(textwrap.fill(line, wide) for line in caption.splitlines())
    figure.supxlabel(lines, fontsize=6, color=GREY, x=0.01, ha="left", multialignment="left")
    replace_file(picture(path), figure.savefig)
    plt.close(figure)


def finish(figure: plt.Figure, axes: plt.Axes, caption: str, path: Path, columns: int = 3) -> None:
    """Add the legend of the axes above, in so many columns, and the caption below, and write the picture."""
    figure.legend(*axes.get_legend_handles_labels(), ncols=columns, loc="outside upper center")
    save(figure, caption, path)


def shortened(description: str) -> str:
    """Return the description of a split for a caption, without the end of a long list of recordings."""
    text = textwrap.shorten(description, 130, placeholder=" … (all in split.csv)")
    return text[:1].upper() + text[1:]


def accuracy_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that shows what these accuracies differ by: at least LEAST_SPAN, at most 0 to 1."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.1 * (high - low), (LEAST_SPAN - (high - low)) / 2, 0.005)
    top = min(1 + margin / 4, high + margin)
    low = min(low - margin, top - LEAST_SPAN)
    return (0, top) if low < 0.1 else (low, top)


def axis_note(low: float) -> str:
    """Return what the label of an axis says where it does not begin at 0."""
    return "" if low == 0 else f" (axis from {low:.2f})"


def show_differences(axes: plt.Axes) -> None:
    """Let the axis of y show what its lines, accuracies, differ by, and say where it does not begin at 0."""
    low, high = accuracy_limits(np.concatenate([line.get_ydata() for line in axes.get_lines()]))
    axes.set(ylim=(low, high), ylabel=f"{axes.get_ylabel()}{axis_note(low)}")


def percent(count: int, total: int) -> str:
    """Return a share in whole percent; never 0 of some, nor 100 of less than all."""
    text = f"{100 * count / max(total, 1):.0f}"
    return "<1" if text == "0" and count else ">99" if text == "100" and count < total else text


def chosen_words(epoch: int) -> str:
    """What a legend says of the epoch whose weights were kept."""
    return f"chosen by the loss: epoch {epoch}"


def draw_chance(axes: plt.Axes, chance: float, across: bool = True) -> None:
    """Draw chance as a dotted line; the legend says it where the axis does not reach it."""
    below = chance < (axes.get_ylim() if across else axes.get_xlim())[0]
    label = f"chance, balanced: {chance:.3f}" + (" (outside the axis)" if below else "")
    style = {"ls": "" if below else ":", "color": GREY, "label": label}
    (axes.axhline if across else axes.axvline)(np.nan if below else chance, **style)


# ---- sweep ------------------------------------------------------------------------------------------------------


def draw_sweep(
    table: pd.DataFrame, importances: dict[str, float], why_not: str, logarithmic: list[str], caption: str, run: Path
) -> None:
    """sweep.png from the trials of sweep.csv: a panel per setting that was varied, the most important one first.

    importances: share of each setting in the variance; empty for the reason `why_not`.
    """
    varied = [name for name in table if name.isupper() and table[name].nunique() > 1]
    names = [name for name in importances if name in varied] or varied or ["trial"]
    rows, columns = -(-len(names) // PANELS), min(PANELS, len(names))
    figure, panels = plt.subplots(rows, columns, figsize=(WIDTH, 1 + 2.1 * rows), sharey=True, squeeze=False)
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(panels.flat, names, strict=False):
        _draw_over(axes, table, name, name in logarithmic)
        share = f" ({100 * importances[name]:.0f} % of the variance)" if name in importances else ""
        axes.set_xlabel(f"{name}{share}")
    for axes in panels[:, 0]:
        axes.set_ylabel("balanced accuracy, validation")
    variance = "Variance: of the complete trials' values, by fANOVA" if importances else why_not
    numbers = "Numbers: of the trials in sweep.csv. " if len(table) <= FEW_TRIALS else ""
    finish(figure, panels[0, 0], f"{numbers}{variance}. {caption}", run / "sweep.png", columns=4)


def _draw_over(axes: plt.Axes, table: pd.DataFrame, name: str, logarithmic: bool) -> None:
    """The trials over one setting: few values stand side by side, many on their own scale."""
    x, ticks = table[name], sorted(table[name].dropna().unique())
    if len(ticks) <= FEW_VALUES:
        names = [f"{tick:g}" if isinstance(tick, float) else str(tick) for tick in ticks]
        axes.set_xticks(range(len(ticks)), [name.replace("-", "−").replace(",", ",\n") for name in names])
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        x = x.map(ticks.index, na_action="ignore")
    elif logarithmic:
        axes.set_xscale("log")
    _draw_trials(axes, table, x)


def _draw_trials(axes: plt.Axes, table: pd.DataFrame, x: pd.Series) -> None:
    value, states = table["validation_balanced_accuracy"], table["state"]
    for state, marker, colour in (("complete", "o", BLUE), ("pruned", "v", GREY), ("failed", "x", GREY)):
        chosen = states == state
        if chosen.any():
            axes.plot(x[chosen], value[chosen], marker, color=colour, label=f"{state}: {chosen.sum()}")
    best = value.where(states == "complete").idxmax()
    axes.plot(x[best], value[best], "o", ms=10, mfc="none", color=ORANGE, label=f"best: trial {table['trial'][best]}")
    if len(table) <= FEW_TRIALS:
        at = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 6, "color": GREY}
        for place, trials in table["trial"].groupby([x, value]):
            axes.annotate(", ".join(map(str, trials)), place, **at)
    axes.grid()


# ---- baselines --------------------------------------------------------------------------------------------------


def draw_baselines(
    groups: list[str],
    values: dict[str, list[float]],
    best: dict[str, int],
    order: np.ndarray,
    run: tuple[str, float],
    chance: float,
    caption: str,
    path: Path,
) -> None:
    """Balanced accuracy of each group in `order`, in a column of points and one of numbers per key; nan: it has none.

    best: per key the group that is marked; run: name and value of the run that they stand beside.
    """
    names = [run[0], *(groups[place] for place in order)]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + 0.15 * len(names)))
    axes.axvline(run[1], color=BLACK, lw=0.8)
    axes.plot(run[1], 0, "D", color=BLACK, label=run[0])
    axes.text(1.02, 0, f"{run[1]:.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=6)
    rows = np.arange(1, len(names))
    columns = [np.array(one)[order] for one in values.values()]
    axes.hlines(rows, np.nanmin(columns, axis=0), np.nanmax(columns, axis=0), color=PALE)
    for place, (name, column, (colour, marker)) in enumerate(zip(values, columns, POINTS, strict=False)):
        axes.plot(column, rows, marker, color=colour, mfc=("none" if place % 2 else colour), ms=4, label=name)
        for row, value in zip(rows[np.isfinite(column)], column[np.isfinite(column)], strict=True):
            weight = "bold" if order[row - 1] == best[name] else "normal"
            at = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 6, "color": colour}
            axes.text(1.02 + 0.08 * place, row, f"{value:.3f}", weight=weight, **at)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xlabel="balanced accuracy, test part")
    draw_chance(axes, chance, across=False)
    axes.grid(axis="x")
    finish(figure, axes, caption, path, columns=4)


# ---- epochs -----------------------------------------------------------------------------------------------------


def epoch_axes(label: str) -> tuple[plt.Figure, plt.Axes]:
    """Return a figure over epochs, and its axes with the label of y."""
    figure, axes = plt.subplots(figsize=(5, 3.4))
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid()
    return figure, axes
