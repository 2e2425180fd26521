"""Figures over people: from the predictions of many runs to tables, pictures and evaluation.json.

A person is the unit: windows of one person are not independent, so their number does not make a figure more certain.
"""

import json
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap
from sklearn.metrics import confusion_matrix

from emg_gpt2.base.files import new_files, write_json
from emg_gpt2.model.config import start_words
from emg_gpt2.results.figures import BLACK, BLUE, GREY, ORANGE, SKY, WIDTH, draw_chance, finish, plt
from emg_gpt2.results.paper import METRICS
from emg_gpt2.results.reading import SCALES
from emg_gpt2.results.verdicts import over_linear_path
from EMG_utils import draw_confusion_matrix, summary

FEWEST_PEOPLE = 3  # for an interval: the resamples of two people are three different means
RESAMPLES = 9999
MANY_PEOPLE = 12  # of more, the names are turned upright in the picture
METHOD = ["features", "classifier", "scaling"]


# ---- figures --------------------------------------------------------------------------------------------------


def read_predictions(runs: dict[tuple[str, int], Path]) -> pd.DataFrame:
    """subject, seed, TRAJ_GT and predicted of every test window. runs: (fold, seed) → folder."""
    columns = ["subject", "TRAJ_GT", "predicted"]
    return pd.concat(
        [
            pd.read_parquet(folder / "predictions.parquet", columns=columns).assign(seed=seed)
            for (_, seed), folder in runs.items()
        ],
        ignore_index=True,
    )


def per_subject_and_seed(predictions: pd.DataFrame) -> pd.DataFrame:
    """Figures of each person's test windows, pooled over the folds of one seed; indexed by subject and seed."""
    groups = predictions.groupby(["subject", "seed"])
    figures = {key: summary(part["TRAJ_GT"], part["predicted"]) for key, part in groups}
    return pd.DataFrame.from_dict(figures, orient="index").rename_axis(["subject", "seed"])


def per_subject(figures: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds of each person's figures, and the standard deviation over them (NaN for one seed)."""
    groups = figures.groupby("subject")
    deviation = groups[list(METRICS)].std().add_suffix("_std_over_seeds")
    return groups[["windows"]].max().join(groups[list(METRICS)].mean()).join(deviation)


def over_people(figures: pd.DataFrame) -> dict[str, dict]:
    """Of each metric: mean, standard deviation and bootstrap interval over people; standard deviation over seeds.

    The deviation over seeds is that of the mean over the people who have a figure with every seed.
    """
    people, overall = per_subject(figures), {}
    for metric in METRICS:
        values, seeds = people[metric], figures[metric].unstack("seed").dropna().mean()
        overall[metric] = {"mean": values.mean(), "std": values.std(), "std_over_seeds": seeds.std()}
        overall[metric] |= dict(zip(("low", "high"), interval(values.to_numpy()) or (None, None), strict=True))
    return overall


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean of one value per person; None for fewer than three people.

    The percentile method (Efron and Tibshirani, 1993, section 13.3): unlike BCa it also holds where all are equal.
    """
    if len(values) < FEWEST_PEOPLE:
        return None
    rng = np.random.default_rng(0)
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng).confidence_interval
    return float(found.low), float(found.high)


# ---- baselines ------------------------------------------------------------------------------------------------


def read_fold_figures(runs: dict[tuple[str, int], Path]) -> pd.DataFrame:
    """One row per run, method and person: ours (features `ours`) from metrics.json, the others from baselines.json."""
    rows = []
    for (_, seed), folder in runs.items():
        path = folder / "baselines.json"
        if path.is_file():
            ours = {"features": "ours", "classifier": "", "scaling": read_json(folder / "env.json")["SCALE"]}
            ours["per_subject"] = read_json(folder / "metrics.json")["per_subject"]
            for one in [ours, *read_json(path)["baselines"]]:
                method = {name: one[name] for name in METHOD} | {"seed": seed}
                rows += [method | {"subject": subject} | found for subject, found in one["per_subject"].items()]
    return pd.DataFrame(rows)


def compare_methods(fold_figures: pd.DataFrame) -> list[dict]:
    """Every method's figures: mean over folds, weighted by windows, and over seeds; then mean ± deviation over people.

    Predictions of baselines are not kept, so no figure here is one of pooled windows, neither theirs nor ours.
    `ahead`: by how much the balanced accuracy of ours is higher.
    """
    weights = fold_figures["windows"]
    totals = fold_figures[list(METRICS)].mul(weights, axis=0).join(fold_figures[[*METHOD, "seed", "subject"]])
    keys = [*METHOD, "subject", "seed"]
    means = totals.groupby(keys).sum().div(weights.groupby([fold_figures[key] for key in keys]).sum(), axis=0)
    people = means.groupby([*METHOD, "subject"]).mean()
    ours = people.loc[("ours", "")].droplevel("scaling")
    rows = []
    for method, found in people.groupby(METHOD):
        row = dict(zip(METHOD, method, strict=True)) | {"ahead": (ours - found.loc[method]).mean()["balanced_accuracy"]}
        rows.append(row | {metric: {"mean": found[metric].mean(), "std": found[metric].std()} for metric in METRICS})
    return sorted(rows, key=lambda row: -row["balanced_accuracy"]["mean"])


def own_scaling(rows: list[dict]) -> str:
    """The scaling that ours has among the rows of `compare_methods`."""
    return next(row["scaling"] for row in rows if row["features"] == "ours")


# ---- results --------------------------------------------------------------------------------------------------


def results_over_people(runs: dict[tuple[str, int], Path], facts: dict) -> dict:
    """The content of evaluation.json: `facts`, and the figures of the finished runs, (fold, seed) → folder."""
    predictions, metrics = read_predictions(runs), [read_json(folder / "metrics.json") for folder in runs.values()]
    figures, fold_figures = per_subject_and_seed(predictions), read_fold_figures(runs)
    codes = [int(code) for code in facts["classes"]]
    weights, data = sorted({one["weights"] for one in metrics}), Path(facts["data"]).name
    origin = f"{facts['model']}, {' and '.join(map(start_words, weights))}. Data: {data}. {facts['data_note']}".strip()
    return facts | {
        "origin": origin,
        "weights": weights,
        "parameters": sorted({one["parameters"] for one in metrics}),
        "device": sorted({one["device"] for one in metrics}),
        "overall": over_people(figures),
        "per_subject": per_subject(figures).to_dict("index"),
        "per_subject_and_seed": figures.reset_index().to_dict("records"),
        "baselines": compare_methods(fold_figures) if len(fold_figures) else [],
        "confusion_matrix": confusion_matrix(predictions["TRAJ_GT"], predictions["predicted"], labels=codes).tolist(),
        "verdict": verdict_over_people(list(runs.values())),
        "versions": metrics[-1]["versions"],
    }


def verdict_over_people(folders: list[Path]) -> str:
    """What the backbone adds to the linear path on the validation parts of all runs, in a sentence."""
    files = [folder / "validation.parquet" for folder in folders]
    if not all(path.is_file() for path in files):
        return "Runs of an older version are among them, so there is no verdict on the validation parts."
    blocks = read_json(folders[0] / "env.json").get("BLOCKS")
    together = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    return f"On the validation parts {over_linear_path(together, 'person', blocks)}."


def write_evaluation(found: dict, out: Path) -> None:
    """evaluation.json, per_subject.csv, evaluation.png and confusion_matrix.png, each one whole."""
    with new_files(out) as new:
        write_json(new / "evaluation.json", without_nan(found))
        people = pd.DataFrame.from_dict(found["per_subject"], orient="index").rename_axis("subject")
        people.assign(evaluated=found["title"]).to_csv(new / "per_subject.csv")
        draw_people(found, new / "evaluation.png")
        title = f"{textwrap.fill(found['title'], 70)}\nall test windows, {counted(len(found['seeds']), 'seed')}"
        draw_confusion_matrix(found, title, found["origin"], new)


def read_json(path: Path):
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def without_nan(found):
    """The same with None for NaN, such as a deviation over one person or seed: JSON has no NaN."""
    if isinstance(found, dict):
        return {key: without_nan(value) for key, value in found.items()}
    if isinstance(found, list):
        return [without_nan(value) for value in found]
    return None if isinstance(found, float) and np.isnan(found) else found


# ---- the picture ----------------------------------------------------------------------------------------------


def draw_people(found: dict, path: Path) -> None:
    """Each person's balanced accuracy and every seed of it; mean and interval over people; baseline and chance."""
    places = {subject: x for x, subject in enumerate(found["per_subject"])}
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    people, seeds = found["per_subject"], found["per_subject_and_seed"]
    single = [(places[one["subject"]], one["balanced_accuracy"]) for one in seeds]
    axes.plot(*zip(*single, strict=True), "_", ms=9, color=SKY, label="one seed")
    values = [one["balanced_accuracy"] for one in people.values()]
    axes.plot(list(places.values()), values, "o", color=BLUE, label="person, mean over seeds")
    _draw_mean(axes, found["overall"]["balanced_accuracy"], len(places))
    if found["baselines"]:
        own = own_scaling(found["baselines"])  # the same information
        best = next(row for row in found["baselines"] if row["features"] != "ours" and row["scaling"] == own)
        name, mean = f"{best['classifier']} on {best['features']}", best["balanced_accuracy"]["mean"]
        axes.axhline(mean, ls="--", color=ORANGE, label=f"best baseline, mean over people ({name}): {mean:.3f}")
    names = [*places, "mean"]
    axes.set_xticks([*places.values(), len(places) + 0.5], names, rotation=90 if len(names) > MANY_PEOPLE else 0)
    axes.set(xlim=(-0.7, len(places) + 1.2), ylim=(0, 1.03), xlabel="person", ylabel="balanced accuracy, test part")
    draw_chance(axes, found["chance"])
    axes.grid(axis="y")
    finish(figure, axes, f"{found['title']}. {found['origin']}", path, columns=3)


def _draw_mean(axes: plt.Axes, overall: dict, count: int) -> None:
    """The mean over people at the right, with its interval where there is one."""
    mean, low, high = overall["mean"], overall["low"], overall["high"]
    axes.axvline(count - 0.1, color=GREY, lw=0.8)
    if low is None:
        axes.plot(count + 0.5, mean, "D", color=BLACK, label="mean (too few people for an interval)")
    else:
        looks = {"fmt": "D", "color": BLACK, "capsize": 4, "label": "mean over people, 95 % interval"}
        axes.errorbar(count + 0.5, mean, [[mean - low], [high - mean]], **looks)


# ---- the tables -----------------------------------------------------------------------------------------------


def print_evaluation(found: dict, console: Console) -> None:
    """Print the tables: overall, per person, beside baselines and literature; then who and what is missing."""
    console.print(f"\n{found['title']}", style="bold", markup=False)
    console.print(found["origin"], markup=False)
    console.print(_overall_table(found))
    if len(found["per_subject"]) < FEWEST_PEOPLE:
        console.print("There is no interval over fewer than three people.")
    console.print(_subject_table(found))
    if found["baselines"]:
        console.print(_baseline_table(found["baselines"]))
    console.print(f"\n{found['verdict']}", markup=False)
    notes = {
        f"Reported by others for protocol {found['protocol']}, on putEMG": found["literature"],
        "Left out": found["left_out"],
        "FAILED, and missing above": [f"{name}: {why}" for name, why in found["failed"].items()],
    }
    for title, lines in notes.items():
        if lines:
            console.print(f"\n{title}:", *(f"  {line}" for line in lines), sep="\n", markup=False)


def _overall_table(found: dict) -> Table:
    sizes = {"person": found["per_subject"], "fold": found["folds"], "seed": found["seeds"]}
    several = ", ".join(counted(len(group), one) for one, group in sizes.items())
    title = f"{several}; chance (balanced) {found['chance']:.3f}"
    table = new_table(title, "", "mean", "± over people", "95 % interval", "± over seeds")
    for metric, name in METRICS.items():
        one = found["overall"][metric]
        bounds = "–" if one["low"] is None else f"{one['low']:.3f} to {one['high']:.3f}"
        table.add_row(name, number(one["mean"]), number(one["std"]), bounds, number(one["std_over_seeds"]))
    return table


def _subject_table(found: dict) -> Table:
    table = new_table("Each person, mean ± deviation over seeds", "person", "windows", *METRICS.values())
    for subject, one in found["per_subject"].items():
        cells = (f"{number(one[metric])} ± {number(one[f'{metric}_std_over_seeds'])}" for metric in METRICS)
        table.add_row(subject, str(one["windows"]), *cells)
    return table


def _baseline_table(rows: list[dict]) -> Table:
    """Balanced accuracy with both scalings; the rest with the scaling that ours has."""
    title = "Beside the baselines: mean over folds, then mean ± deviation over people;\n"
    title += "accuracy, macro F1 and our lead at the scale that ours has"
    names = ("balanced,\ntraining scale", "balanced, session\n(transductive)", "accuracy", "macro F1", "ours ahead\nby")
    table, methods = new_table(title, "method", *names), {}
    own = own_scaling(rows)
    for row in rows:  # the best one first
        methods.setdefault((row["features"], row["classifier"]), {})[row["scaling"]] = row
    for (features, classifier), both in methods.items():
        balanced = [both[scaling]["balanced_accuracy"] if scaling in both else None for scaling in SCALES]
        cells = [f"{number(one['mean'])} ± {number(one['std'])}" if one else "" for one in balanced]
        cells += [number(both[own][metric]["mean"]) for metric in ("accuracy", "macro_f1")]
        if features == "ours":
            table.add_row("ours", *cells, style="bold")
        else:
            table.add_row(f"{classifier} on {features}", *cells, f"{both[own]['ahead']:+.3f}")
    return table


def new_table(title: str, *columns: str) -> Table:
    """An empty table whose columns but the first are aligned to the right."""
    table = Table(*columns, title=f"\n{title}", title_justify="left", title_style="", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def number(value: float) -> str:
    """0.123, or a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:.3f}"


def counted(number: int, one: str) -> str:
    """1 fold, 2 folds, 3 people."""
    several = {"person": "people"}.get(one, f"{one}s")
    return f"{number} {one if number == 1 else several}"
