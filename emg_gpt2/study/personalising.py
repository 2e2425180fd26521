"""A model before and after its adaptation to a person and day: figures, picture, card, and the adapted model."""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import sklearn
from huggingface_hub import ModelCard
from rich.console import Console
from rich.table import Table

from EMG_DATA_LOADER import Split
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_folder, write_json
from emg_gpt2.base.versions import versions
from emg_gpt2.model.build import load_model
from emg_gpt2.model.card import Facts, count_part, data_licence, model_card
from emg_gpt2.model.config import MOST_DAYS, day_mark, start_words
from emg_gpt2.model.files import save_card, save_weights
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.figures import BLUE, GREY, ORANGE, WIDTH, draw_chance, finish, picture, plt, use_format
from emg_gpt2.results.verdicts import Comparison, compare
from emg_gpt2.study.adapting import adapt, covariances, lda_logits, logits_of, with_reference_of
from emg_gpt2.study.baselines import FEW_WINDOWS, KEPT
from emg_gpt2.study.bench import Bench
from emg_gpt2.study.calibration import (
    check_gestures,
    check_recordings,
    check_unseen,
    cut_repetitions,
    order_of_repetitions,
    windows_of_session,
)
from emg_gpt2.study.levels import USUAL_CONTEXT
from emg_gpt2.study.rivals import plain_rival
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import compute_metrics

logger = logging.getLogger(__name__)

LDA_FEATURES = ("log-RMS", "Hudgins")
BEFORE, AFTER = "model as saved", "personalised model"
KINDS = {"before": "before", "after": "after", "baseline": "calibration part alone"}


def personalise(args: argparse.Namespace, console: Console) -> None:
    """Adapt a model to a session and write the new folder; print the figures to `console`. Raises EMGError."""
    use_format(args.settings.FIGURE_FORMAT)
    began, model = time.perf_counter(), load_model(args.model)
    if model.config.context:
        raise EMGError(f"{args.model}: a model with context is told the gestures: predict RECORDING --calibrate FILE")
    windows, split, known = session_of(model, args)
    day = args.subject, windows.table["session"][0]
    out = args.out or Path("runs") / f"personalised-{'-'.join(day)}"
    check_place(out)
    result = provenance(model, windows, split, args) | {"training_days_known": known}
    logger.info(f"{split.description}: {len(split.train)} windows to adapt with, {len(split.test)} to test")
    adapted = adapt(model, windows, split.train, order_of_repetitions(windows.table)[split.train])
    kept = adapted.model if adapted.is_better or args.keep == "personalised" else model
    figures, verdict = compare_models(model, adapted.model, windows, split)
    result |= {key: value for key, value in vars(adapted).items() if key != "model"}
    result |= {"kept": AFTER if kept is adapted.model else BEFORE, "verdict": verdict._asdict()}
    result["seconds"] = time.perf_counter() - began
    print_table(figures, result, console)
    for line in (verdict_line(verdict), kept_line(result, args)):
        console.print(line, markup=False, soft_wrap=True)
    if kept is adapted.model:
        note_session(kept, split, day)
    card = model_card(kept.config, card_facts(model, windows, split, figures, result))
    replace_folder(out, lambda folder: write_results(kept, card, figures, result, folder))
    drawn = picture(Path("personalise")).name
    logger.info(f"{out}: the {result['kept']} and its card, personalise.json and {drawn}")


def session_of(model: EMGForSequenceClassification, args: argparse.Namespace) -> tuple[WindowSet, Split, bool]:
    """Return the session's windows and split, and whether the model's training days are known. Raises EMGError."""
    everything = load_windows(args.settings)
    check_recordings(model, everything, args)
    windows = windows_of_session(everything, args)
    check_gestures(model, windows, args)
    split = cut_repetitions(windows, args.repetitions)
    return windows, split, check_unseen(model, everything, (args.subject, windows.table["session"][0]), args.model)


def note_session(model: EMGForSequenceClassification, split: Split, day: tuple[str, str]) -> None:
    """Note in the config that the model was adapted to a session."""
    config = model.config
    config.data_note = f"{config.data_note} Personalised for {split.description}.".strip()
    if 0 < len(config.trained_days) < MOST_DAYS:  # none: not known
        config.trained_days = [*config.trained_days, day_mark(*day)]


def verdict_line(verdict: Comparison) -> str:
    """Whether the personalised model is better than the model as saved, in a sentence."""
    return f"Verdict: {verdict.words}. Personalised model beside model as saved, on the test part: {verdict.sentence}"


def kept_line(result: dict, args: argparse.Namespace) -> str:
    """Which of the two is in the new folder, why, and what to do where the test part contradicts it."""
    how = "on repetitions that LDA was not fitted to" if result["repetitions"] > 1 else "without LDA, which needs two"
    why = (
        f"by the cross entropy on the calibration part: personalised model {result['loss']:.3f} ({how}), "
        f"model as saved {result['loss_before']:.3f}"
    )
    advice = "" if args.keep == "better" else "; asked for by --keep personalised"
    if result["kept"] == AFTER and result["verdict"]["words"] == "worse":
        advice += f". The test part contradicts it: go on with {args.model}, or raise --repetitions"
    return f"Kept: the {result['kept']}, {why}{advice}"


def check_place(out: Path) -> None:
    """Raise EMGError where there is something already, or nothing can be written."""
    make_folder(out.parent)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EMGError(f"{out}: there is something already; name a new folder with --out")


def provenance(model: EMGForSequenceClassification, windows: WindowSet, split: Split, args: argparse.Namespace) -> dict:
    """Return what was adapted to what, for personalise.json."""
    table = windows.table
    repetitions = table.iloc[split.train][["TRAJ_GT", "recording", "repetition"]].drop_duplicates()
    return {
        "model": str(args.model),
        "weights": model.config.weights,
        "model_data_note": model.config.data_note,
        "data": str(args.data),
        "data_note": windows.metadata["note"],
        "subject": args.subject,
        "session": table["session"][0],
        "repetitions": args.repetitions,
        "split_description": split.description,
        "calibration_repetitions": repetitions.sort_values(["TRAJ_GT", "recording"]).to_dict("records"),
        "n_calibration": len(split.train),
        "n_test": len(split.test),
        "classes": dict(zip(map(str, windows.classes), windows.class_names, strict=True)),
        "chance": 1 / len(windows.classes),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }


# ---- figures ----------------------------------------------------------------------------------------------------


def compare_models(
    model: EMGForSequenceClassification, adapted: EMGForSequenceClassification, windows: WindowSet, split: Split
) -> tuple[list[dict], Comparison]:
    """Return the figures on the test part before and after, and of LDA fitted to the calibration part alone.

    One dict each: `kind` (of KINDS), `name`, `windows`, and the figures that the baselines have too. And the verdict
    on the personalised model beside the model as saved.
    """
    measured = with_reference_of(model, windows, split.train)
    logits = {
        ("before", BEFORE): logits_of(model, windows, split.test),
        ("before", "model, reference of the session"): logits_of(measured, windows, split.test),
        ("after", AFTER): logits_of(adapted, windows, split.test),
        ("baseline", "LDA on log covariances"): lda_on_covariances(measured, windows, split),
    }
    scored = {key: compute_metrics(windows, split.test, one) for key, one in logits.items()}
    scored |= lda_on_features(windows, split)
    codes = np.array(windows.classes)
    labels = [codes[logits[key].argmax(1)] for key in (("after", AFTER), ("before", BEFORE))]
    return [
        {"kind": kind, "name": name, "windows": len(split.test)} | {key: one[key] for key in KEPT}
        for (kind, name), one in scored.items()
    ], compare(windows.table.iloc[split.test], *labels)


def lda_on_covariances(model: EMGForSequenceClassification, windows: WindowSet, split: Split) -> np.ndarray:
    """Return the logits (n_test, K) that the adaptation adds to the model's."""
    learnt, tested = (covariances(model, windows, rows) for rows in (split.train, split.test))
    return lda_logits(learnt, windows.targets[split.train], tested)


def lda_on_features(windows: WindowSet, split: Split) -> dict[tuple[str, str], dict]:
    """Score LDA with shrinkage as among the baselines, with the scale of the calibration part."""
    bench, scored = Bench(windows, split.train, split.test, USUAL_CONTEXT), {}
    for name in LDA_FEATURES:
        predicted = plain_rival(name, "LDA shrinkage").predict(bench, "inductive", None, 1, FEW_WINDOWS)
        one_hot = np.eye(bench.classes)[predicted]
        scored["baseline", f"LDA on {name}"] = compute_metrics(windows, bench.rows_of("inductive"), one_hot)
    return scored


# ---- results ----------------------------------------------------------------------------------------------------


def notes_on(result: dict) -> list[str]:
    """Return what a reader of the figures should know, in lines."""
    unknown = [
        "Whether the model was trained on this session cannot be checked (neither its config nor a split.csv beside "
        "its folder says so): if it was, its figures are too good"
    ]
    return [
        f"{result['split_description']}; {result['n_calibration']} windows to adapt, "
        f"{result['n_test']} to test; chance {result['chance']:.3f}",
        *([] if result["training_days_known"] else unknown),
        f"Model: {result['model']}, {start_words(result['weights'])}. {result['model_data_note']}",
        f"Data: {Path(result['data']).name}. {result['data_note']}",
    ]


def print_table(figures: list[dict], result: dict, console: Console) -> None:
    """Print every figure of the test part; the best of each column is marked."""
    columns = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "macro_f1": "macro F1"}
    best = {key: max(one[key] for one in figures) for key in columns}
    table = Table("", "", *columns.values(), "windows", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for kind, words in KINDS.items():
        for place, one in enumerate(one for one in figures if one["kind"] == kind):
            cells = [f"[bold]{one[key]:.3f} *[/]" if one[key] == best[key] else f"{one[key]:.3f}  " for key in columns]
            table.add_row("" if place else words, one["name"], *cells, str(result["n_test"]))
    console.print("Test part (* best of the column)")
    console.print(table)
    for line in notes_on(result):
        console.print(line.strip(), markup=False, soft_wrap=True)


def card_facts(
    model: EMGForSequenceClassification, windows: WindowSet, split: Split, figures: list[dict], result: dict
) -> Facts:
    """Return what the card of the model that is kept says; `model` is the one before."""
    (kept,) = [one for one in figures if one["name"] == result["kept"]]
    session, adapted = f"subject {result['subject']}, session {result['session']}", result["kept"] == AFTER
    notes = [model.config.data_note, windows.metadata["note"]]
    tried = f"A trained model was adapted in closed form to {split.description} (`python -m emg_gpt2 personalise`)."
    left = "The model as it came fits the calibration windows better, and is kept here unchanged."
    return Facts(
        figures=kept | {"versions": result["versions"]},
        parts={"calibration": count_part(windows, split.train), "test": count_part(windows, split.test)},
        protocol=[
            tried,
            *([] if adapted else [left]),
            "The test part is all other windows of that session; nothing was measured on it.",
        ],
        notes=notes,
        licence=data_licence(notes, windows.table["recording"].unique()),
        warnings=[f"**Personalised** for {session}: of no use to anyone else."] if adapted else [],
        session=(result["subject"], result["session"]) if adapted else None,
    )


def write_results(
    kept: EMGForSequenceClassification, card: ModelCard, figures: list[dict], result: dict, folder: Path
) -> None:
    """Write the model, its card, the picture and personalise.json."""
    save_weights(kept, folder)
    save_card(card, folder)
    draw_bars(figures, result, folder / "personalise.png")
    write_json(folder / "personalise.json", result | {"figures": figures})


def draw_bars(figures: list[dict], result: dict, path: Path) -> None:
    """Draw bars of balanced accuracy: before, after, and LDA with the same calibration part."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    for kind, colour in zip(KINDS, (GREY, ORANGE, BLUE), strict=True):
        places = [place for place, one in enumerate(figures) if one["kind"] == kind]
        values = [figures[place]["balanced_accuracy"] for place in places]
        bars = axes.barh(places, values, 0.7, color=colour, label=KINDS[kind])
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=3)
    axes.set_yticks(range(len(figures)), [one["name"] for one in figures])
    axes.set(xlim=(0, 1.08), xlabel="balanced accuracy, test part")
    draw_chance(axes, result["chance"], across=False)
    axes.invert_yaxis()
    axes.grid(axis="x")
    finish(figure, axes, "\n".join(map(str.strip, notes_on(result))), path, columns=2)
