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
from emg_gpt2.model.build import load_model
from emg_gpt2.model.card import Facts, count_part, data_licence, model_card
from emg_gpt2.model.files import save_card, save_weights
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.figures import BLUE, GREY, ORANGE, WIDTH, draw_chance, finish, picture, plt, use_format
from emg_gpt2.results.run import trained_recordings
from emg_gpt2.study.adapting import adapt, covariances, logits_of, with_reference_of
from emg_gpt2.study.baselines import KEPT, scaled_features, score
from emg_gpt2.study.calibration import check_gestures, check_recordings, cut_repetitions, windows_of_session
from emg_gpt2.study.features import FEATURE_SETS
from emg_gpt2.training.new_model import linear_discriminant
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import compute_metrics, versions

logger = logging.getLogger(__name__)

LDA_FEATURES = ("log-RMS", "Hudgins")
KINDS = {"before": "before", "after": "after", "baseline": "calibration part alone"}


def personalise(args: argparse.Namespace, console: Console) -> None:
    """Adapt a model to a session and write the new folder; print the figures to `console`. Raises EMGError."""
    use_format(args.settings.FIGURE_FORMAT)
    began, model = time.perf_counter(), load_model(args.model)
    windows = load_windows(args.settings)
    check_recordings(model, windows, args)
    windows = windows_of_session(windows, args)
    check_gestures(model, windows, args)
    split = cut_repetitions(windows, args.repetitions)
    out = args.out or Path("runs") / f"personalised-{args.subject}-{windows.table['session'][0]}"
    check_place(out)
    result = provenance(model, windows, split, args)
    logger.info(f"{split.description}: {len(split.train)} windows to adapt with, {len(split.test)} to test")
    adapted, result["factor"] = adapt(model, windows, split.train)
    adapted.config.data_note = f"{model.config.data_note} Personalised for {split.description}.".strip()
    figures = compare(model, adapted, windows, split)
    result["seconds"] = time.perf_counter() - began
    print_table(figures, result, console)
    card = model_card(adapted.config, card_facts(model, windows, split, figures, result))
    replace_folder(out, lambda folder: write_results(adapted, card, figures, result, folder))
    drawn = picture(Path("personalise")).name
    logger.info(f"{out}: the adapted model and its card, personalise.json and {drawn}")


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
        "trained_on_this_session": bool(table["recording"].isin(trained_recordings(args.model)).any()),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }


# ---- figures ----------------------------------------------------------------------------------------------------


def compare(
    model: EMGForSequenceClassification, adapted: EMGForSequenceClassification, windows: WindowSet, split: Split
) -> list[dict]:
    """Return the figures on the test part before and after, and of LDA fitted to the calibration part alone.

    One dict each: `kind` (of KINDS), `name`, `windows`, and the figures that the baselines have too.
    """
    measured = with_reference_of(model, windows, split.train)
    logits = {
        ("before", "model as saved"): logits_of(model, windows, split.test),
        ("before", "model, reference of the session"): logits_of(measured, windows, split.test),
        ("after", "personalised model"): logits_of(adapted, windows, split.test),
        ("baseline", "LDA on log covariances"): lda_on_covariances(measured, windows, split),
    }
    scored = {key: compute_metrics(windows, split.test, one) for key, one in logits.items()}
    scored |= lda_on_features(windows, split)
    return [
        {"kind": kind, "name": name, "windows": len(split.test)} | {key: one[key] for key in KEPT}
        for (kind, name), one in scored.items()
    ]


def lda_on_covariances(model: EMGForSequenceClassification, windows: WindowSet, split: Split) -> np.ndarray:
    """Return the logits (n_test, K) that the adaptation adds to the model's."""
    learnt, tested = (covariances(model, windows, rows) for rows in (split.train, split.test))
    coefficients, intercepts = linear_discriminant(learnt, windows.targets[split.train], len(windows.classes))
    return (tested.double() @ coefficients.T + intercepts).numpy()


def lda_on_features(windows: WindowSet, split: Split) -> dict[tuple[str, str], dict]:
    """Score LDA with shrinkage as among the baselines, with the scale of the calibration part."""
    features, everything = scaled_features(windows, split, "training"), np.arange(len(split.train))
    scored = {}
    for name in LDA_FEATURES:
        table = np.concatenate([features[member] for member in FEATURE_SETS[name]], axis=1)
        scored["baseline", f"LDA on {name}"] = score(windows, split, table, "LDA shrinkage", everything)
    return scored


# ---- results ----------------------------------------------------------------------------------------------------


def notes_on(result: dict) -> list[str]:
    """Return what a reader of the figures should know, in lines."""
    seen = ["The model was trained on this session (split.csv): its figures are too good"]
    return [
        f"{result['split_description']}; {result['n_calibration']} windows to adapt, "
        f"{result['n_test']} to test; chance {result['chance']:.3f}",
        *(seen if result["trained_on_this_session"] else []),
        f"Model: {result['model']}, backbone from {result['weights']} weights. {result['model_data_note']}",
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
    """Return what the card of the adapted model says; `model` is the one before."""
    (after,) = [one for one in figures if one["kind"] == "after"]
    session = f"subject {result['subject']}, session {result['session']}"
    notes, seen = [model.config.data_note, windows.metadata["note"]], result["trained_on_this_session"]
    return Facts(
        figures=after | {"versions": result["versions"]},
        parts={"calibration": count_part(windows, split.train), "test": count_part(windows, split.test)},
        protocol=[
            f"A trained model was adapted in closed form to {split.description} (`python -m emg_gpt2 personalise`).",
            "The test part is all other windows of that session; nothing was measured on it.",
        ],
        notes=notes,
        licence=data_licence(notes, windows.table["recording"].unique()),
        warnings=[
            f"**Personalised** for {session}: of no use to anyone else.",
            *(["The model before was trained on this session: the figures are **too good**."] if seen else []),
        ],
        session=(result["subject"], result["session"]),
    )


def write_results(
    adapted: EMGForSequenceClassification, card: ModelCard, figures: list[dict], result: dict, folder: Path
) -> None:
    """Write the model, its card, the picture and personalise.json."""
    save_weights(adapted, folder)
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
