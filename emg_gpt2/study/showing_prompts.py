"""The results of a study of prompts: figures over people, three pictures and a table."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from emg_gpt2.base.files import new_files, write_json
from emg_gpt2.results.figures import BLUE, GREEN, GREY, ORANGE, WIDTH, draw_chance, finish, plt, show_differences
from emg_gpt2.settings import Settings
from emg_gpt2.study.people import counted, interval, new_table, without_nan
from emg_gpt2.windows.reading import WindowSet

LOOKS = ((GREY, "o"), (BLUE, "s"), (ORANGE, "^"), (GREEN, "D"))


def results_of_prompts(figures: pd.DataFrame, settings: Settings, windows: WindowSet) -> dict:
    """The content of prompts.json. figures: one row per person, session, seed, number of people and context."""
    rows = []
    for key, part in figures.groupby(["people", "kind", "mix", "amount"], sort=False):
        people = part.groupby(["subject", "seed"])["balanced_accuracy"].mean().unstack("seed")
        each, seeds = people.mean(axis=1), people.mean()
        low, high = interval(each.to_numpy()) or (None, None)
        row = dict(zip(("people", "kind", "mix", "amount"), key, strict=True))
        row |= {"mean": each.mean(), "std": each.std(), "low": low, "high": high, "std_over_seeds": seeds.std()}
        rows.append(row | {"per_subject": each.to_dict()})
    return {
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "model": settings.MODEL_NAME,
        "context": settings.CONTEXT,
        "chance": 1 / len(windows.classes),
        "unseen_people": int(figures["subject"].nunique()),
        "seeds": sorted(map(int, figures["seed"].unique())),
        "results": rows,
    }


def write_prompts(found: dict, figures: pd.DataFrame, out: Path) -> None:
    """prompts.json, prompts.csv, people.png, seconds.png and calibration.png, each one whole."""
    rows = pd.DataFrame(found["results"])
    most = rows[rows["people"] == rows["people"].max()]
    words = f"after learning from {most['people'].iloc[0]} people"
    with new_files(out) as new:
        write_json(new / "prompts.json", without_nan(found))
        figures.to_csv(new / "prompts.csv", index=False)
        draw_people(rows, found, new / "people.png")
        unlabelled = most[most["kind"] == "unlabelled"]
        lines = {f"gestures: {mix}": part for mix, part in unlabelled.groupby("mix", sort=False)}
        draw(lines, "amount", f"seconds of unlabelled signal, {words}", found, new / "seconds.png")
        told = pd.concat([unlabelled[unlabelled["amount"] == 0], most[most["kind"] == "calibrated"]])
        axis = f"windows of each gesture in the calibration, {words}"
        draw({"calibrated": told}, "amount", axis, found, new / "calibration.png")


def draw_people(rows: pd.DataFrame, found: dict, path: Path) -> None:
    """A line for nothing, the longest balanced signal, and the smallest and largest calibration."""
    lines = {}
    for kind, part in rows[rows["mix"] == "balanced"].groupby("kind", sort=False):
        for amount in sorted({part["amount"].min(), part["amount"].max()}):
            lines[words_of(kind, amount)] = part[part["amount"] == amount]
    draw(lines, "people", "people to learn from", found, path)


def words_of(kind: str, amount: float) -> str:
    """What was read, for tables and legends."""
    if kind == "calibrated":
        return f"{counted(int(amount), 'window')} of each gesture"
    return f"{amount:g} s of signal" if amount else "nothing"


def draw(lines: dict[str, pd.DataFrame], across: str, label: str, found: dict, path: Path) -> None:
    """Balanced accuracy over one column, a line with intervals over people for each entry."""
    figure, axes = plt.subplots(figsize=(WIDTH / 1.6, 3))
    places = sorted(set(np.concatenate([part[across] for part in lines.values()])))
    apart = 0.012 * (places[-1] - places[0])  # so that bars do not hide each other
    for number, ((name, part), (colour, marker)) in enumerate(zip(lines.items(), LOOKS, strict=False)):
        below, above = part["mean"] - part["low"].fillna(part["mean"]), part["high"].fillna(part["mean"]) - part["mean"]
        looks = {"fmt": f"{marker}-", "color": colour, "capsize": 2, "label": name}
        axes.errorbar(part[across] + number * apart, part["mean"], [below, above], **looks)
    axes.set(xlabel=label, ylabel="balanced accuracy", xticks=places)
    axes.grid(axis="y")
    show_differences(axes)
    draw_chance(axes, found["chance"])
    people, seeds = counted(found["unseen_people"], "person"), counted(len(found["seeds"]), "seed")
    about = f"Unseen people: mean over {people} and {seeds}; bars: 95 % interval over people."
    about += f" {found['model']}. {found['data_note']}"
    finish(figure, axes, about, path, columns=2)


def print_prompts(found: dict, console: Console) -> None:
    """One row per context, one column per number of people."""
    rows = pd.DataFrame(found["results"])
    people = sorted(rows["people"].unique())
    title = f"Balanced accuracy, unseen people ({found['unseen_people']}), by the number of people to learn from"
    table = new_table(title, "what was read", *map(str, people))
    for (kind, mix, amount), part in rows.groupby(["kind", "mix", "amount"], sort=False):
        reached = part.set_index("people")
        cells = [f"{reached['mean'][n]:.3f} ± {reached['std'][n]:.3f}" if n in reached.index else "–" for n in people]
        table.add_row(words_of(kind, amount) + f", {mix}" * (amount > 0 and kind == "unlabelled"), *cells)
    console.print(table)
    for name, why in found["failed"].items():
        console.print(f"FAILED: {name}: {why}", markup=False)
