"""Tables for a paper: runs, or evaluations over people, as LaTeX, CSV or Markdown.

Runs that differ only in fold and seed share a row: mean ± standard deviation over them. The best figure is bold only
where the rows were tested on the same windows.
"""

import json
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd

from emg_gpt2.base.errors import EMGError
from emg_gpt2.results.comparison import HIGHER, cells, names_of, notes_of, why_not_comparable
from emg_gpt2.results.reading import FinishedRun, read_run
from emg_gpt2.results.used_settings import shown, used_settings

METRICS = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "macro_f1": "macro F1"}
DEVIATION = "_std"  # ends the name of a metric's deviation
REPEATED = ("FOLD", "SEED")  # settings that a row's runs may differ in

LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "μ": r"$\mu$",
}
MARKDOWN = {letter: f"\\{letter}" for letter in "\\`*_[]<>|#"}


@dataclass(frozen=True)
class PaperTable:
    """rows: texts and counts, then each metric and its deviation (NaN for none); comparable: whether the best of a
    column may be named; sentences: what a caption must say; notes: on the data, and on leaks."""

    rows: pd.DataFrame
    comparable: bool
    sentences: list[str]
    notes: list[str]


def paper_tables(folders: list[Path], form: str) -> str:
    """The tables of run folders, or of evaluations, as `latex`, `csv` or `markdown`. Raises EMGError."""
    evaluations = [folder for folder in folders if (folder / "evaluation.json").is_file()]
    if evaluations and len(evaluations) < len(folders):
        raise EMGError(f"{evaluations[0]} is an evaluation, and others are runs; name only the one or the other")
    tables = [table_of_evaluation(folder) for folder in evaluations] or [table_of_runs(folders)]
    if form == "csv":
        noted = [table.rows.assign(note=" ".join(table.notes)) for table in tables]
        return pd.concat(noted).to_csv(index=False, lineterminator="\n")
    return "\n".join(map({"latex": latex, "markdown": markdown}[form], tables))


# ---- rows -----------------------------------------------------------------------------------------------------


def table_of_runs(folders: list[Path]) -> PaperTable:
    """One row for the runs that differ in nothing but fold and seed."""
    runs = dict(zip(names_of(folders), map(read_run, folders), strict=True))
    groups = groups_of(runs)
    figures = {name: pd.DataFrame([run.metrics for run in group])[list(METRICS)] for name, group in groups.items()}
    rows = [
        {"run": name, "runs": len(found)} | with_deviations(found.mean().to_dict(), found.std().to_dict())
        for name, found in figures.items()
    ]
    differences = why_groups_differ(groups)
    return PaperTable(pd.DataFrame(rows), not differences, sentences_of(groups) + differences, notes_of(runs))


def groups_of(runs: dict[str, FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Name of a row → its runs.

    The name is the folder's; or, where several runs share a row, the settings by which the rows differ.
    """
    kept, groups = {name: settings_of_row(run) for name, run in runs.items()}, {}
    for name, settings in kept.items():
        groups.setdefault(json.dumps(settings, sort_keys=True) if settings else name, []).append(name)
    if len(groups) == len(runs):
        return {name: [run] for name, run in runs.items()}
    firsts = [kept[names[0]] for names in groups.values()]
    return {
        label(settings, firsts) or names[0]: [runs[name] for name in names]
        for settings, names in zip(firsts, groups.values(), strict=True)
    }


def settings_of_row(run: FinishedRun) -> dict:
    """The settings that have an effect, without fold and seed."""
    return {name: value for name, value in used_settings(run).items() if name not in REPEATED}


def label(settings: dict, others: list[dict]) -> str:
    """The settings that are not the same in all others, else the model's name; empty where nothing is known."""
    differ = [name for name in settings if any(one.get(name) != settings[name] for one in others)]
    texts = [f"{name} {shown(settings[name])}" for name in differ]
    return ", ".join(texts) or Path(settings.get("MODEL_NAME", "")).name


def with_deviations(means: dict, deviations: dict) -> dict:
    """Each metric, then its deviation."""
    return {f"{name}{end}": found[name] for name in METRICS for end, found in (("", means), (DEVIATION, deviations))}


def why_groups_differ(groups: dict[str, list[FinishedRun]]) -> list[str]:
    """Sentences on what differs, fold by fold, so that the rows must not be compared; empty where they may be."""
    folds = {name: {run.settings.get("FOLD"): run for run in group} for name, group in groups.items()}
    first = next(iter(folds.values()))
    if any(found.keys() != first.keys() for found in folds.values()):
        return ["The folds differ: the rows were not tested on the same windows."]
    found = [why_not_comparable({name: runs[fold] for name, runs in folds.items()}) for fold in first]
    return [f"{sentence}." for sentence in dict.fromkeys(chain.from_iterable(found))]


def sentences_of(groups: dict[str, list[FinishedRun]]) -> list[str]:
    """Data, what was held out, over what the deviation is, weights and chance."""
    runs = [run for group in groups.values() for run in group]
    data = dict.fromkeys(Path(run.metrics.get("data", "")).name for run in runs)
    sentences = [f"Test on {', '.join(data)}.", *dict.fromkeys(run.held_out for run in runs)]
    if len(runs) > len(groups):
        sentences.append(f"Mean ± standard deviation over {repeated(runs)}.")
    weights = dict.fromkeys(run.metrics.get("weights", "unknown") for run in runs)
    chances = dict.fromkeys(f"{run.chance:.3f}" for run in runs)
    return [*filter(None, sentences), f"Weights before training: {', '.join(weights)}. Chance: {', '.join(chances)}."]


def repeated(runs: list[FinishedRun]) -> str:
    """folds 0, 1 and seeds 0, 1, 2"""
    found = {name: sorted({run.settings[name] for run in runs if name in run.settings}) for name in REPEATED}
    several = [f"{name.lower()}s {', '.join(map(str, values))}" for name, values in found.items() if len(values) > 1]
    return " and ".join(several) or "equal runs"


def table_of_evaluation(folder: Path) -> PaperTable:
    """Rows for this project, and where baselines were run, for the one of each level that is best on validation."""
    try:
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except ValueError:
        raise EMGError(f"{folder / 'evaluation.json'}: the file cannot be read; run evaluate anew") from None
    people, methods = len(found["per_subject"]), {}
    for row in found["baselines"] or [found["overall"] | {"features": "ours", "classifier": "", "level": ""}]:
        methods.setdefault((row["features"] == "ours", row["level"]), row)  # the best one on validation comes first
    kinds, whom = (("mean", "std"), f"{people} people") if people > 1 else (("mean", "std_over_seeds"), "seeds")
    rows = [
        {"evaluation": found["title"]}
        | {
            "method": f"{row['classifier']} on {row['features']}" if row["classifier"] else "this project",
            "session": row["level"],
        }
        | with_deviations(*({name: row[name].get(kind) for name in METRICS} for kind in kinds))
        for row in methods.values()
    ]
    table = pd.DataFrame(rows)
    more = " ± standard deviation" if table[f"accuracy{DEVIATION}"].notna().any() else ""
    sentences = [f"{found['title']}.", f"Mean{more} over {whom}.", found["origin"], f"Chance: {found['chance']:.3f}."]
    return PaperTable(table, True, sentences, ["Baselines: the best on the validation part."] if len(rows) > 1 else [])


# ---- text -----------------------------------------------------------------------------------------------------


def as_texts(table: PaperTable) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells as a reader sees them, and whether each is the best of its column."""
    rows = table.rows
    words = [name for name in rows if name.removesuffix(DEVIATION) not in METRICS and name != "evaluation"]
    texts = rows[words].astype(str)
    texts = texts.loc[:, ~(texts == "1").all()]  # single runs
    best = pd.DataFrame(False, rows.index, [*texts, *METRICS.values()])
    for name, title in METRICS.items():
        found = cells(list(rows[name]), "{:.3f}", HIGHER if table.comparable else None)
        deviations = [f" ± {one:.3f}" if pd.notna(one) else "" for one in rows[f"{name}{DEVIATION}"]]
        texts[title] = [text + more for (text, _), more in zip(found, deviations, strict=True)]
        best[title] = [top for _, top in found]
    return texts, best


def caption(table: PaperTable, best: pd.DataFrame) -> str:
    """All that must be said, in one line."""
    bold = ["Best in bold."] if best.to_numpy().any() else []
    return " ".join([*table.sentences, *bold, *table.notes])


def escaped(text: str, letters: dict[str, str]) -> str:
    """The text in one line, with its letters replaced: names and notes come from untrusted files."""
    return " ".join(str(text).split()).translate(str.maketrans(letters))


def latex(table: PaperTable) -> str:
    """A table of booktabs."""
    texts, best = as_texts(table)
    bold = best.replace({True: "textbf:--rwrap;", False: ""})
    style = texts.style.hide(axis="index").apply(lambda _: bold, axis=None)
    style = style.format(partial(escaped, letters=LATEX)).format_index(partial(escaped, letters=LATEX), axis=1)
    about = {"caption": escaped(caption(table, best), LATEX), "position": "ht", "position_float": "centering"}
    made = style.to_latex(hrules=True, column_format="l" + "r" * (texts.shape[1] - 1), **about)
    return f"% needs \\usepackage{{booktabs}}\n{made}"


def markdown(table: PaperTable) -> str:
    """The caption, then a table with a line for every row."""
    texts, best = as_texts(table)
    bold = texts.map(partial(escaped, letters=MARKDOWN)).mask(best, "**" + texts + "**")
    lines = [list(bold.columns), ["---", *["---:"] * (bold.shape[1] - 1)], *bold.to_numpy().tolist()]
    table_lines = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{escaped(caption(table, best), MARKDOWN)}\n\n{table_lines}\n"
