"""What an ablation shows: its files, its table in the terminal, its figure."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from emg_gpt2.base.files import new_files, write_json
from emg_gpt2.results.figures import (
    GREY,
    ORANGE,
    PALE,
    WIDTH,
    accuracy_limits,
    axis_note,
    draw_chance,
    finish,
    plt,
    shortened,
)
from emg_gpt2.results.reading import caveats
from emg_gpt2.study.differences import ALWAYS, IN_ORDER, SHUFFLED, join, reason, signed
from emg_gpt2.study.people import FEWEST_PEOPLE, counted, new_table, without_nan


def write_ablation(found: dict, table: pd.DataFrame, out: Path) -> None:
    """ablation.json, ablation.csv and ablation.png, each one whole."""
    with new_files(out) as new:
        write_json(new / "ablation.json", without_nan(found))
        table.to_csv(new / "ablation.csv", index=False)
        draw_ablation(found, new / "ablation.png")


def origin(found: dict) -> str:
    """Backbone, weights, budget, split and data."""
    weights = join([one for one in found["weights"] if one != "none"])
    return (
        f"{found['model']}, {counted(found['blocks'], 'block')}, {weights} weights, at most "
        f"{counted(found['epochs'], 'epoch')}; chance {found['chance']:.3f}. "
        f"{shortened(found['split_description'])}{caveats(found)}. "
        f"Data: {Path(found['data']).name}. {found['data_note']}".strip()
    )


def print_ablation(found: dict, console: Console) -> None:
    """Print the table, the sentence, and what is missing."""
    console.print("\nDoes the language model help?", style="bold")
    console.print(origin(found), markup=False)
    people, seeds = counted(len(found["people"]), "person"), counted(len(found["seeds"]), "seed")
    title = f"Balanced accuracy on the test part, mean over {people} ± deviation over {seeds},\n"
    title += "by share of the training windows; then what shuffled patches change"
    shares = [f"{share:.0%}" for share in found["shares"]]
    table = new_table(title, "arm", "trained\nat rate", *shares, "shuffled\nat test", "shuffled\nalways")
    table.columns[0].min_width = 18
    for arm in found["arms"]:
        table.add_row(*cells(arm, found))
    console.print(table)
    edge = [arm["title"] for arm in found["arms"] if arm.get("lr_at_the_edge")]
    if edge:
        console.print(f"* the lowest or highest rate tried ({'; '.join(edge)}): try a wider range", markup=False)
    console.print("", *found["statements"], sep="\n", markup=False)
    if found["failed"]:
        lines = (f"  {name}: {why}" for name, why in found["failed"].items())
        console.print("\nFAILED, and missing above:", *lines, sep="\n", markup=False)


def cells(arm: dict, found: dict) -> list[str]:
    """One row of the table."""
    if "why_not" in arm:
        return [f"{arm['title']}\n({reason(arm)})"]
    results = {one["share"]: one for one in arm["results"] if one["order"] == IN_ORDER}
    own = [row for row in found["differences"] if row["of"] == row["from"] == arm["name"]]
    gains = {row["order"]: row for row in own if row["share"] == found["shares"][-1]}
    rate = f"\n{arm['lr']:g}{'*' * arm['lr_at_the_edge']}" if arm["lr"] else ""
    return [
        *(arm["title"], f"{arm['trainable_parameters']:,}{rate}"),
        *(f"{one['mean']:.3f}{plus_minus(one)}" if one else "–" for one in map(results.get, found["shares"])),
        *(f"{signed(gains[order]['mean'])}{plus_minus(gains[order])}" for order in SHUFFLED if order in gains),
    ]


def plus_minus(one: dict) -> str:
    return "" if np.isnan(one["std_over_seeds"]) else f"\n± {one['std_over_seeds']:.3f}"


def draw_ablation(found: dict, path: Path) -> None:
    """A row per arm: its mean with an interval for each share of the training windows, and with shuffled patches."""
    arms, shares = found["arms"], found["shares"]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.6 + len(arms) * (0.2 + 0.1 * len(shares))))
    for row, arm in enumerate(arms):
        if "why_not" in arm:
            place = {"xy": (0.02, row), "xycoords": ("axes fraction", "data"), "va": "center"}
            axes.annotate(reason(arm), **place, color=GREY)
    drawn, colours = [], plt.cm.Blues(np.linspace(0.4, 1, len(shares)))
    for share, colour, marker, place in zip(
        shares, colours, itertools.cycle("^so"), offsets(len(shares)), strict=False
    ):
        drawn.append(draw_means(axes, found, share, IN_ORDER, place, colour, marker))
    drawn.append(draw_means(axes, found, shares[-1], ALWAYS, 0.32, ORANGE, "x"))
    low, high = accuracy_limits(np.concatenate(drawn))
    axes.set(xlim=(low, high), xlabel=f"balanced accuracy, test part{axis_note(low)}")
    axes.set_yticks(range(len(arms)), [arm["title"] for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.hlines(np.arange(len(arms) - 1) + 0.5, low, high, color=PALE, lw=0.5)
    draw_chance(axes, found["chance"], across=False)
    axes.grid(axis="x")
    people, seeds = counted(len(found["people"]), "person"), counted(len(found["seeds"]), "seed")
    bars = "95 % interval over people" if len(found["people"]) >= FEWEST_PEOPLE else "± deviation over seeds"
    finish(figure, axes, f"Mean over {people} and {seeds}; bars: {bars}. {origin(found)}", path, columns=2)


def draw_means(axes, found: dict, share: float, order: str, place: float, colour, marker: str) -> list[float]:
    """Draw the mean and interval of every arm; returns what the axis must show."""
    rows = [
        (row + place, *ends(one))
        for row, arm in enumerate(found["arms"])
        for one in arm.get("results", [])
        if (one["share"], one["order"]) == (share, order)
    ]
    if not rows:
        return []
    y, mean, low, high = np.array(rows).T
    name = f"{100 * share:g} % of the training windows" + f", patches {order}" * (order != IN_ORDER)
    looks = {"fmt": marker, "color": colour, "capsize": 2, "lw": 0.8, "ms": 4, "label": name}
    axes.errorbar(mean, y, xerr=[mean - low, high - mean], **looks)
    return [*low, *high]


def ends(one: dict) -> tuple[float, float, float]:
    """The mean and the ends of its interval: over people, else ± deviation over seeds, else none."""
    margin = 0 if one["std_over_seeds"] is None or np.isnan(one["std_over_seeds"]) else one["std_over_seeds"]
    low, high = (one["mean"] - margin, one["mean"] + margin) if one["low"] is None else (one["low"], one["high"])
    return one["mean"], low, high


def offsets(count: int) -> np.ndarray:
    """Places of so many points in a row, from its middle."""
    return np.linspace(-0.3, 0.12, count) if count > 1 else np.zeros(1)
