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
from scipy.stats import bootstrap, wilcoxon
from sklearn.metrics import confusion_matrix

from emg_gpt2.base.files import new_files, write_json
from emg_gpt2.model.config import start_words
from emg_gpt2.results.figures import BLACK, BLUE, GREY, ORANGE, SKY, WIDTH, draw_chance, finish, plt
from emg_gpt2.results.paper import METRICS
from emg_gpt2.results.verdicts import FEWEST_UNITS, over_linear_path
from emg_gpt2.study.levels import CONTEXT_OF, LEVELS
from EMG_utils import draw_confusion_matrix, summary

FEWEST_PEOPLE = 3  # for an interval: the resamples of two people are three different means
RESAMPLES = 9999
MANY_PEOPLE = 12  # of more, the names are turned upright in the picture
METHOD = ["features", "classifier", "level"]


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
            each = people_of_run(read_json(folder / "metrics.json"), read_json(folder / "env.json"))
            names = {"features": "ours", "classifier": "", "validation": np.nan}
            ours = [names | {"level": level, "per_subject": people} for level, people in each.items()]
            for one in [*ours, *read_json(path)["baselines"]]:
                method = {name: one[name] for name in (*METHOD, "validation")} | {"seed": seed}
                rows += [method | {"subject": subject} | found for subject, found in one["per_subject"].items()]
    return pd.DataFrame(rows)


def compare_methods(fold_figures: pd.DataFrame) -> list[dict]:
    """Every method's figures: mean over folds, weighted by windows, and over seeds; then mean ± deviation over people.

    Predictions of baselines are not kept, so no figure here is one of pooled windows, neither theirs nor ours.
    `validation`: mean balanced accuracy on the validation parts, by which the rows are in order, ours first; `ahead`:
    by how much the balanced accuracy of ours is higher at that level, None where ours has none, and `p` of it.
    """
    weights = fold_figures["windows"]
    totals = fold_figures[list(METRICS)].mul(weights, axis=0).join(fold_figures[[*METHOD, "seed", "subject"]])
    keys = [*METHOD, "subject", "seed"]
    means = totals.groupby(keys).sum().div(weights.groupby([fold_figures[key] for key in keys]).sum(), axis=0)
    people = means.groupby([*METHOD, "subject"]).mean()
    ours, validation = people.loc[("ours", "")], fold_figures.groupby(METHOD)["validation"].mean()
    rows = []
    for method, found in people.groupby(METHOD):
        row = dict(zip(METHOD, method, strict=True)) | {"validation": validation[method], "ahead": None, "p": None}
        if method[2] in ours.index:
            differences = (ours.loc[method[2]] - found.loc[method])["balanced_accuracy"].dropna().to_numpy()
            row |= {"ahead": differences.mean(), "p": wilcoxon_p(differences)}
        rows.append(row | {metric: over_values(found[metric].to_numpy()) for metric in METRICS})
    return sorted(rows, key=lambda row: (row["features"] != "ours", -row["validation"]))


def people_of_run(metrics: dict, settings: dict) -> dict[str, dict]:
    """Level → person → figures of a run of main.py on its test part, from metrics.json and env.json."""
    usual = "transductive" if settings.get("SCALE", "session") == "session" else "inductive"
    context = {CONTEXT_OF[name]: one["per_subject"] for name, one in metrics.get("context", {}).items()}
    return context or {usual: metrics["per_subject"]}


def over_values(values: np.ndarray) -> dict:
    """Mean, deviation and 95 % bootstrap interval of one value per person; None for what too few people give."""
    low, high = interval(values) or (None, None)
    std = values.std(ddof=1) if len(values) > 1 else None
    return {"mean": values.mean(), "std": std, "low": low, "high": high}


def wilcoxon_p(differences: np.ndarray) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test of one difference per person; None for too few people."""
    if len(differences) < FEWEST_UNITS:
        return None
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


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
    theirs = [row for row in found["baselines"] if row["features"] != "ours"]
    theirs = [row for row in theirs if row["ahead"] is not None]  # at a level of ours
    if theirs:
        name, mean = f"{theirs[0]['classifier']} on {theirs[0]['features']}", theirs[0]["balanced_accuracy"]["mean"]
        words = f"best baseline on validation ({theirs[0]['level']}), mean over people ({name})"
        axes.axhline(mean, ls="--", color=ORANGE, label=f"{words}: {mean:.3f}")
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
    """Balanced accuracy at each level; the best one on validation is marked, and how far ours is ahead is said."""
    title = (
        "Balanced accuracy of the test part beside the baselines: mean over folds, then mean ± deviation over people"
    )
    levels = [level for level in LEVELS if any(row["level"] == level for row in rows)]
    table, methods = new_table(f"{title} (* best on validation)", "method", *levels), {}
    best = [next((row for row in rows if row["level"] == level != row["features"] != "ours"), None) for level in levels]
    for row in rows:
        name = "ours" if row["features"] == "ours" else f"{row['classifier']} on {row['features']}"
        star = " *" if row in best else ""
        methods.setdefault(name, {})[row["level"]] = mean_and_deviation(row["balanced_accuracy"]) + star
    for name, cells in methods.items():
        table.add_row(name, *(cells.get(level, "") for level in levels), style="bold" if name == "ours" else "")
    for row in filter(None, best):
        if row["ahead"] is not None:
            p = "too few people to test" if row["p"] is None else f"p = {row['p']:.2g}, Wilcoxon over people"
            table.caption = (
                f"{table.caption or ''}\n{row['level']}: ours is {row['ahead']:+.3f} from the best ({p})".strip()
            )
    return table


def mean_and_deviation(one: dict) -> str:
    """0.812 ± 0.040."""
    return number(one["mean"]) if one["std"] is None else f"{number(one['mean'])} ± {number(one['std'])}"


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
