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
from emg_gpt2.results.figures import BLUE, GREEN, GREY, ORANGE, WIDTH, draw_chance, finish, picture, plt, use_format
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
from emg_gpt2.study.telling import after_others, alone, prompted, tune, windows_to_tell
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import compute_metrics

logger = logging.getLogger(__name__)

LDA_FEATURES = ("log-RMS", "Hudgins")
BEFORE, AFTER, TOLD, LDA = "model as saved", "personalised model", "prompted model", "LDA on log covariances"
KINDS = {  # in words, and the colour of its bars
    "before": ("before", GREY),
    "prompt": ("calibration told, no training", GREEN),
    "after": ("after", ORANGE),
    "baseline": ("calibration part alone", BLUE),
}


def personalise(args: argparse.Namespace, console: Console) -> None:
    """Adapt a model to a session and write the new folder; print the figures to `console`. Raises EMGError."""
    use_format(args.settings.FIGURE_FORMAT)
    began, model = time.perf_counter(), load_model(args.model)
    windows, split, known = session_of(model, args)
    day = args.subject, windows.table["session"][0]
    out = args.out or Path("runs") / f"personalised-{'-'.join(day)}"
    check_place(out)
    result = provenance(model, windows, split, args) | {"training_days_known": known}
    logger.info(f"{split.description}: {len(split.train)} windows to adapt with, {len(split.test)} to test")
    places = order_of_repetitions(windows.table)[split.train]
    adapted = (tune if model.config.context else adapt)(model, windows, split.train, places)
    kept = adapted.model if adapted.is_better or args.keep == "personalised" else model
    figures, verdicts = compare_models(model, adapted.model, windows, split)
    result |= {key: value for key, value in vars(adapted).items() if key != "model"}
    result |= {"kept": AFTER if kept is adapted.model else BEFORE, "verdict": verdicts[AFTER, BEFORE]._asdict()}
    if model.config.context:
        beside = {other: verdict._asdict() for (name, other), verdict in verdicts.items() if name == TOLD}
        result["prompt"] = {"windows": len(windows_to_tell(model, windows, split.train)), "beside": beside}
    result["seconds"] = time.perf_counter() - began
    print_table(figures, result, console)
    for line in (*(verdict_line(*pair, verdict) for pair, verdict in verdicts.items()), kept_line(result, args)):
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


def verdict_line(name: str, other: str, verdict: Comparison) -> str:
    """Whether the first of two is better, in a sentence."""
    return f"Verdict: {verdict.words}. {name[0].upper()}{name[1:]} beside {other}, on the test part: {verdict.sentence}"


def kept_line(result: dict, args: argparse.Namespace) -> str:
    """Which of the two is in the new folder, why, and what to do where the test part contradicts it."""
    why = reason_with_context(result) if "prompt" in result else reason(result)
    advice = "" if args.keep == "better" else "; asked for by --keep personalised"
    if result["kept"] == AFTER and result["verdict"]["words"] == "worse":
        advice += f". The test part contradicts it: go on with {args.model}, or raise --repetitions"
    if "prompt" in result:
        advice += ". The calibration is not in the folder: tell it with predict RECORDING --calibrate CALIBRATION"
    return f"Kept: the {result['kept']}, {why}{advice}"


def reason(result: dict) -> str:
    """Why a model without context was kept, or its adapted copy."""
    how = "on repetitions that LDA was not fitted to" if result["repetitions"] > 1 else "without LDA, which needs two"
    return (
        f"by the cross entropy on the calibration part: personalised model {result['loss']:.3f} ({how}), "
        f"model as saved {result['loss_before']:.3f}"
    )


def reason_with_context(result: dict) -> str:
    """Why a model with context was kept, or its fine-tuned copy."""
    if result["loss"] is None:
        return "as prompt and fine-tuning cannot be judged on one repetition"
    return (
        "by the cross entropy on repetitions of the calibration part that were held out: personalised model "
        f"{result['loss']:.3f}, prompted model {result['loss_before']:.3f}"
    )


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
) -> tuple[list[dict], dict[tuple[str, str], Comparison]]:
    """Return the figures on the test part before and after, and of LDA fitted to the calibration part alone.

    One dict each: `kind` (of KINDS), `name`, `windows`, and the figures that the baselines have too. And the verdicts
    on two of them, by their names.
    """
    measured = with_reference_of(model, windows, split.train)
    if model.config.context:
        logits = logits_with_context(model, adapted, windows, split)
        pairs = [(AFTER, BEFORE), (TOLD, BEFORE), (TOLD, AFTER), (TOLD, LDA)]
    else:
        logits = {
            ("before", BEFORE): logits_of(model, windows, split.test),
            ("before", "model, reference of the session"): logits_of(measured, windows, split.test),
            ("after", AFTER): logits_of(adapted, windows, split.test),
        }
        pairs = [(AFTER, BEFORE)]
    logits["baseline", LDA] = lda_on_covariances(measured, windows, split)
    scored = {key: compute_metrics(windows, split.test, one) for key, one in logits.items()}
    scored |= lda_on_features(windows, split)
    codes, table = np.array(windows.classes), windows.table.iloc[split.test]
    labels = {name: codes[one.argmax(1)] for (_, name), one in logits.items()}
    return [
        {"kind": kind, "name": name, "windows": len(split.test)} | {key: one[key] for key in KEPT}
        for (kind, name), one in scored.items()
    ], {pair: compare(table, *(labels[name] for name in pair)) for pair in pairs}


def logits_with_context(
    model: EMGForSequenceClassification, tuned: EMGForSequenceClassification, windows: WindowSet, split: Split
) -> dict[tuple[str, str], np.ndarray]:
    """Return logits (n_test, K): of windows alone, after those before them, after the calibration, and fine-tuned.

    The prompted and the fine-tuned model have the same information: the calibration, and the window alone.
    """
    return {
        ("before", BEFORE): alone(model, windows, split.test),
        ("before", "model, windows before it"): after_others(model, windows, split.test),
        ("prompt", TOLD): prompted(model, windows, split.train, split.test),
        ("after", AFTER): alone(tuned, windows, split.test),
    }


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
    for kind, (words, _) in KINDS.items():
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
    return Facts(
        figures=kept | {"versions": result["versions"]},
        parts={"calibration": count_part(windows, split.train), "test": count_part(windows, split.test)},
        protocol=protocol_of(figures, result, split),
        notes=notes,
        licence=data_licence(notes, windows.table["recording"].unique()),
        warnings=[f"**Personalised** for {session}: of no use to anyone else."] if adapted else [],
        session=(result["subject"], result["session"]) if adapted and "prompt" not in result else None,
    )


def protocol_of(figures: list[dict], result: dict, split: Split) -> list[str]:
    """Return what was done, in sentences for the card."""
    how = f"with {result['steps']} gradient steps on single windows" if "prompt" in result else "in closed form"
    why = "" if result["loss"] is None else "fits the calibration windows better, and "
    reached = [f"{one['balanced_accuracy']:.3f}" for one in figures if one["name"] == TOLD]
    told = [f"Told the calibration, it reaches a balanced accuracy of {one} on the test part." for one in reached]
    return [
        f"A trained model was adapted {how} to {split.description} (`python -m emg_gpt2 personalise`).",
        *([f"The model as it came {why}is kept here unchanged.", *told] if result["kept"] == BEFORE else []),
        "The test part is all other windows of that session; nothing was measured on it.",
    ]


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
    for kind, (words, colour) in KINDS.items():
        if places := [place for place, one in enumerate(figures) if one["kind"] == kind]:
            values = [figures[place]["balanced_accuracy"] for place in places]
            bars = axes.barh(places, values, 0.7, color=colour, label=words)
            axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=3)
    axes.set_yticks(range(len(figures)), [one["name"] for one in figures])
    axes.set(xlim=(0, 1.08), xlabel="balanced accuracy, test part")
    draw_chance(axes, result["chance"], across=False)
    axes.invert_yaxis()
    axes.grid(axis="x")
    finish(figure, axes, "\n".join(map(str.strip, notes_on(result))), path, columns=2)
