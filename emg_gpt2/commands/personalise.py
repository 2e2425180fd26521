"""Adapt a trained model to a new person or day with the first repetitions of every gesture.

    python -m tools.personalise RUN/best_model DATA --subject S [--repetitions 1] [--session DATE] [--out FOLDER]

A new person or day is one session: without --session, the person's last one. Its first repetitions of every gesture,
in the order of time, are the calibration part, and all its other windows the test part. Nothing is measured on the
test part, not even its scale. A gesture that the model does not know is refused, and so is a session that lacks one of
the model's: what a prosthesis cannot do should not vanish from its figures.

The model is adapted in closed form, in seconds: its reference becomes that of the calibration windows, its logits are
taken times a factor from 0 to 1 that fits these windows best, which the model has not seen before, and LDA fitted to
their log covariances is added to the linear path. A model that knows the person keeps its say, one that does not loses
it. On average over development sessions this was better than moving the linear path by gradient, or training the head
or all layers (EXPERIMENTS.md).

The new folder holds the model, whose own reference is now that of the session, its card, and personalise.json and .png:
before, after, and LDA fitted to the same calibration windows alone. That on log covariances is what the adaptation
adds to the model, so the lead over it is what the trained model is worth to this person. Where RUN/split.csv says that
the model was trained on the session, the results say so too.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import argparse
import copy
import logging
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
import torch
from huggingface_hub import ModelCard
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import nn
from transformers.utils import logging as transformers_logging

from EMG_DATA_LOADER import MIN_TRAINING_WINDOWS, Split, batches, read_emg, seconds_apart
from emg_gpt2.base.command_line import Parser, between, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_folder, write_json
from emg_gpt2.model.build import load_model
from emg_gpt2.model.card import Facts, count_part, data_licence, model_card
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.results.figures import BLUE, GREY, ORANGE, plt
from emg_gpt2.results.run import save_card, save_weights, trained_recordings
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.study.baselines import KEPT, scaled_features, score
from emg_gpt2.study.features import FEATURE_SETS
from emg_gpt2.windows.cut import RATE_TOLERANCE
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import EVALUATION_BATCH, LINEAR_WEIGHT, balanced_loss, compute_metrics, linear_discriminant, versions
from main import ConsoleHandler

GROUP = "use"

logger = logging.getLogger("personalise")

DATE_TIME = len("2018-05-11-11-05-00-695")  # at the end of every recording's name
SHAPING = ("FILTER", "BAND_HZ")  # preprocessing that changes what a window of the same rate and length looks like
LDA_FEATURES = ("log-RMS", "Hudgins")
KINDS = {"before": "before", "after": "after", "baseline": "calibration part alone"}


def main(argv: list[str] | None = None) -> int:
    """Adapt the model that the command line names; returns the exit status."""
    start_log()
    work = lambda: personalise(parse(argv))  # noqa: E731
    return with_status(
        "personalise",
        work,
        full_memory="lower --memory-gb",
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it, or with the settings."""
    about = "Adapt a trained model to a new person or day with the first repetitions of every gesture."
    parser = Parser(prog="python -m tools.personalise", description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="folder of a trained model, such as RUN/best_model")
    add("data", type=Path, metavar="DATA", help="windows file (.parquet) of Preprocessing.py")
    add("--subject", required=True, metavar="S", help="the person, as in the file: 03")
    add("--session", metavar="DATE", help="the day, as in the file: 2018-05-11 (the person's last)")
    repetitions = "first repetitions of every gesture to adapt with (%(default)s)"
    add("--repetitions", type=between(int, 1, 1000), default=1, metavar="N", help=repetitions)
    add("--out", type=Path, metavar="FOLDER", help="new folder of the results (runs/personalised-S-DATE)")
    add("--memory-gb", metavar="X", help="larger files are mapped, not held in memory (MEMORY_GB of ENV.py)")
    args = parser.parse_args(argv)
    memory = [] if args.memory_gb is None else [f"--memory-gb={args.memory_gb}"]
    args.settings = read_settings(Settings, [f"--data-location={args.data}", *memory])
    return args


def start_log() -> None:
    """What happens, on the error output."""
    handler = ConsoleHandler(Console(stderr=True, highlight=False))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logger.setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def personalise(args: argparse.Namespace) -> None:
    """Model and session → calibration and test part → before, after and baselines → folder. Raises EMGError."""
    began, model = time.perf_counter(), load_model(args.model)
    windows = load_windows(args.settings)
    check_recordings(model, windows, args)
    windows = windows_of_session(windows, args)
    check_gestures(model, windows, args)
    split = cut_repetitions(windows, args.repetitions)
    out = args.out or Path("runs") / f"personalised-{args.subject}-{windows.table['session'][0]}"
    check_place(out)
    described = describe(model, windows, split, args)
    logger.info(f"{split.description}: {len(split.train)} windows to adapt with, {len(split.test)} to test")
    adapted, described["factor"] = adapt(model, windows, split.train)
    adapted.config.data_note = f"{model.config.data_note} Personalised for {split.description}.".strip()
    figures = evaluate(model, adapted, windows, split)
    described["seconds"] = time.perf_counter() - began
    print_table(figures, described)
    card = model_card(adapted.config, facts_of_session(model, windows, split, figures, described))
    replace_folder(out, lambda folder: write_results(adapted, card, figures, described, folder))
    logger.info(f"{out}: the adapted model and its card, personalise.json and personalise.png")


# ---- what fits, and what is used for what ---------------------------------------------------------------------


def check_recordings(model: EMGForSequenceClassification, windows: WindowSet, args: argparse.Namespace) -> None:
    """Raise EMGError where the windows are not like those that the model was trained on."""
    config, described = model.config, windows.metadata
    rates, channels = (described["sampling_rate"], config.sampling_rate), (described["channels"], config.channels)
    pairs = {
        "number of channels": tuple(map(len, channels)),
        "channel": next((pair for pair in zip(*channels, strict=False) if len(set(pair)) > 1), ("", "")),
        "samples a window": (described["window"], config.window),
        "unit": (described["unit"], config.unit),
        **{name: (described["settings"][name], config.preprocessing.get(name)) for name in SHAPING},
        "Hz": rates if abs(rates[0] / rates[1] - 1) > RATE_TOLERANCE else (0, 0),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise EMGError(
                f"{args.data}: {name}: {found}, and {args.model} was trained on {expected}; "
                "preprocess the recordings as those it was trained on, or choose another model"
            )


def windows_of_session(windows: WindowSet, args: argparse.Namespace) -> WindowSet:
    """The windows of one person and day. Raises EMGError where there are none."""
    table, whose = windows.table, str(args.data)
    for column, wanted in (("subject", args.subject), ("session", args.session)):
        known = sorted(table[column].unique())
        if wanted is not None and wanted not in known:
            raise EMGError(f"--{column} {wanted}: {whose} has no such {column}; choose from {', '.join(known)}")
        table = table[table[column] == (known[-1] if wanted is None else wanted)]
        whose = f"subject {args.subject} of {args.data}"
    rows = table.index.to_numpy()
    return WindowSet(windows.emg[rows], table.reset_index(drop=True), windows.metadata)


def check_gestures(model: EMGForSequenceClassification, windows: WindowSet, args: argparse.Namespace) -> None:
    """Raise EMGError where the model and the session do not have the same gestures, by label and by name."""
    known = dict(zip(model.config.class_codes, model.config.class_names, strict=True))
    found = dict(zip(windows.classes, windows.class_names, strict=True))
    if unknown := [f"{name} (label {label})" for label, name in found.items() if label not in known]:
        kept = ",".join(str(label) for label in found if label in known)
        raise EMGError(
            f"{args.data}: {', '.join(unknown)}: no gesture that {args.model} knows; leave it out with "
            f"Preprocessing.py --legal-values {kept}, or choose a model that was trained on it"
        )
    if renamed := [
        f"label {label} is {name}, not {known[label]}" for label, name in found.items() if name != known[label]
    ]:
        raise EMGError(
            f"{args.data}: {', '.join(renamed)} as {args.model} knows it; choose a model of the same gestures, or give "
            "them the same names with Preprocessing.py --class-names"
        )
    if missing := [name for label, name in known.items() if label not in found]:
        raise EMGError(
            f"{args.data}: {', '.join(missing)}: not in this session, and {args.model} knows it; record it too, "
            "choose another --session, or train a model without it"
        )


def check_place(out: Path) -> None:
    make_folder(out.parent)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EMGError(f"{out}: there is something already; name a new folder with --out")


def cut_repetitions(windows: WindowSet, count: int) -> Split:
    """One session's first `count` repetitions of every gesture, to adapt with, and all its other windows, to test.

    Raises EMGError where a gesture has no repetition left to test, or too few windows to adapt with.
    """
    table, order = windows.table, order_of_repetitions(windows.table)
    where = f"subject {table['subject'][0]}, session {table['session'][0]}"
    for index, name in enumerate(windows.class_names):
        check_repetitions(order[windows.targets == index], count, f"{where}: {name}")
    check_apart(windows, order < count)
    words = f"{where}, first {'repetition' if count == 1 else f'{count} repetitions'} of every gesture"
    calibration, test = np.flatnonzero(order < count), np.flatnonzero(order >= count)
    return Split(calibration, test[:0], test, "calibration", words)


def check_repetitions(order: np.ndarray, count: int, gesture: str) -> None:
    """Raise EMGError where the windows of a gesture, (n,) places of their repetitions, are too few to be cut."""
    if order.max() < count:
        raise EMGError(
            f"{gesture} has {order.max() + 1} repetitions, and {count + 1} are needed, {count} to adapt and one to "
            "test; lower --repetitions or choose another --session"
        )
    if (order < count).sum() < MIN_TRAINING_WINDOWS:
        raise EMGError(
            f"{gesture} has {(order < count).sum()} windows in its first repetitions, and at least "
            f"{MIN_TRAINING_WINDOWS} are needed to adapt; raise --repetitions"
        )


def order_of_repetitions(table: pd.DataFrame) -> np.ndarray:
    """(n,) place of each window's repetition among those of its gesture, from 0, in the order of time.

    That of the date and time in the recording's name, then of the start in the recording.
    """
    table = table[["TRAJ_GT", "recording", "repetition", "start"]].assign(time=table["recording"].str[-DATE_TIME:])
    repetition = ["TRAJ_GT", "time", "recording", "repetition"]
    first = table.groupby(repetition)["start"].min().reset_index().sort_values(["TRAJ_GT", "time", "start"])
    first["place"] = first.groupby("TRAJ_GT").cumcount()
    return table.merge(first.drop(columns="start"), on=repetition, how="left")["place"].to_numpy()


def check_apart(windows: WindowSet, calibration: np.ndarray) -> None:
    """Raise EMGError where a calibration and a test window share samples; (n,) tells them apart.

    All windows are equally long: where two overlap, so do all that start between them.
    """
    table = windows.table.assign(calibration=calibration, apart=seconds_apart(windows))
    table = table.sort_values(["recording", "start"])
    after = table.shift(-1)
    near = (after["start"] - table["start"] < table["apart"]) & (after["recording"] == table["recording"])
    both = table[near & (after["calibration"] != table["calibration"])]
    if len(both):
        one = both.iloc[0]
        raise EMGError(
            f"{one['recording']}: windows of two repetitions overlap at {one['start']:.3f} s, and the test part would "
            "share samples with the calibration part; write the file anew with Preprocessing.py"
        )


# ---- adaptation -----------------------------------------------------------------------------------------------


def adapt(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray
) -> tuple[EMGForSequenceClassification, float]:
    """A copy of the model, adapted to the windows `calibration` of one session, and the factor on its own logits.

    logits = factor · (the model's, measured against the session's reference) + LINEAR_WEIGHT · LDA's on the session's
    log covariances. Both are linear in the head and the linear path, so the model keeps its form.
    """
    adapted = with_reference_of(model, windows, calibration)
    add_linear_path(adapted)
    targets, covariance = windows.targets[calibration], covariances(adapted, windows, calibration)
    factor = best_factor(predict(adapted, windows, calibration), targets)
    coefficients, intercepts = linear_discriminant(covariance, targets, len(windows.classes))
    adapted.residual_weight.data *= factor
    adapted.linear.weight.data.mul_(factor).add_(LINEAR_WEIGHT * coefficients)
    adapted.linear.bias.data.mul_(factor).add_(LINEAR_WEIGHT * intercepts)
    return adapted, factor


def add_linear_path(model: EMGForSequenceClassification) -> None:
    """Of zeros, where the model was trained without one."""
    if model.linear is None:
        model.config.linear_path = True
        model.linear = nn.Linear(model.centre.shape[1], len(model.config.class_codes)).requires_grad_(False)
        nn.init.zeros_(model.linear.weight)
        nn.init.zeros_(model.linear.bias)


def with_reference_of(
    model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray
) -> EMGForSequenceClassification:
    """A copy of the model whose own reference is that of the windows `rows`; labels are not used."""
    measured = copy.deepcopy(model)
    measured.set_reference(measure_reference(read_emg(windows, rows)))
    return measured


def best_factor(logits: np.ndarray, targets: np.ndarray) -> float:
    """The factor from 0 to 1 on (n, K) logits with the lowest cross entropy on (n,) targets, classes counting the same.

    Temperature scaling (Guo et al., ICML 2017) that only ever makes a model less sure.
    """
    loss = lambda factor: balanced_loss(targets, softmax(factor * logits, axis=1))  # noqa: E731
    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x)


@torch.inference_mode()
def predict(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """(n, K) logits of the windows `rows`, measured against the model's own reference."""
    return np.concatenate([model(emg=emg).logits.numpy() for emg, _, _ in batches(windows, rows, EVALUATION_BATCH)])


def covariances(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> torch.Tensor:
    """(n, C(C+1)/2) log covariances of the windows `rows`, normalised with the model's own reference."""
    parts = batches(windows, rows, EVALUATION_BATCH)
    return torch.cat([model.normalise(emg, model.reference)[1] for emg, _, _ in parts])


# ---- figures --------------------------------------------------------------------------------------------------


def evaluate(
    model: EMGForSequenceClassification, adapted: EMGForSequenceClassification, windows: WindowSet, split: Split
) -> list[dict]:
    """Figures on the test part, before, after, and of LDA fitted to the calibration part alone; one dict each.

    `kind` (of KINDS), `name`, `windows`, and the figures of EMG_utils.compute_metrics that tools.baselines keeps.
    """
    measured = with_reference_of(model, windows, split.train)
    rows = {
        ("before", "model as saved"): predict(model, windows, split.test),
        ("before", "model, reference of the session"): predict(measured, windows, split.test),
        ("after", "personalised model"): predict(adapted, windows, split.test),
        ("baseline", "LDA on log covariances"): lda_on_covariances(measured, windows, split),
    }
    scored = {key: compute_metrics(windows, split.test, logits) for key, logits in rows.items()}
    scored |= lda_on_features(windows, split)
    return [
        {"kind": kind, "name": name, "windows": len(split.test)} | {key: one[key] for key in KEPT}
        for (kind, name), one in scored.items()
    ]


def lda_on_covariances(model: EMGForSequenceClassification, windows: WindowSet, split: Split) -> np.ndarray:
    """(n_test, K) logits of what the adaptation adds to the model."""
    learnt, tested = (covariances(model, windows, rows) for rows in (split.train, split.test))
    coefficients, intercepts = linear_discriminant(learnt, windows.targets[split.train], len(windows.classes))
    return (tested.double() @ coefficients.T + intercepts).numpy()


def lda_on_features(windows: WindowSet, split: Split) -> dict[tuple[str, str], dict]:
    """LDA with shrinkage as tools.baselines has it, with the scale of the calibration part."""
    features, everything = scaled_features(windows, split, "training"), np.arange(len(split.train))
    scored = {}
    for name in LDA_FEATURES:
        table = np.concatenate([features[member] for member in FEATURE_SETS[name]], axis=1)
        scored["baseline", f"LDA on {name}"] = score(windows, split, table, "LDA shrinkage", everything)
    return scored


# ---- results --------------------------------------------------------------------------------------------------


def describe(model: EMGForSequenceClassification, windows: WindowSet, split: Split, args: argparse.Namespace) -> dict:
    """What was adapted to what, in words and numbers."""
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
        "trained_on_this_session": bool(windows.table["recording"].isin(trained_recordings(args.model)).any()),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
    }


def notes(described: dict) -> list[str]:
    """What a reader of the figures should know, in lines."""
    seen = ["The model was trained on this session (split.csv): its figures are too good"]
    return [
        f"{described['split_description']}; {described['n_calibration']} windows to adapt, "
        f"{described['n_test']} to test; chance {described['chance']:.3f}",
        *(seen if described["trained_on_this_session"] else []),
        f"Model: {described['model']}, backbone from {described['weights']} weights. {described['model_data_note']}",
        f"Data: {Path(described['data']).name}. {described['data_note']}",
    ]


def print_table(figures: list[dict], described: dict) -> None:
    """Every figure of the test part; the best of each column is marked."""
    columns = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "macro_f1": "macro F1"}
    best = {key: max(one[key] for one in figures) for key in columns}
    table = Table("", "", *columns.values(), "windows", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for kind, words in KINDS.items():
        for place, one in enumerate(one for one in figures if one["kind"] == kind):
            cells = [f"[bold]{one[key]:.3f} *[/]" if one[key] == best[key] else f"{one[key]:.3f}  " for key in columns]
            table.add_row("" if place else words, one["name"], *cells, str(described["n_test"]))
    console = Console(highlight=False)
    console.print("Test part (* best of the column)")
    Console(highlight=False, width=110).print(table)  # a narrow terminal breaks the lines, not the names
    for line in notes(described):
        console.print(line.strip(), markup=False, soft_wrap=True)


def facts_of_session(
    model: EMGForSequenceClassification, windows: WindowSet, split: Split, figures: list[dict], described: dict
) -> Facts:
    """What the card of the adapted model says; `model` is the one before."""
    (after,) = [one for one in figures if one["kind"] == "after"]
    session = f"subject {described['subject']}, session {described['session']}"
    notes, seen = [model.config.data_note, windows.metadata["note"]], described["trained_on_this_session"]
    return Facts(
        figures=after | {"versions": described["versions"]},
        parts={"calibration": count_part(windows, split.train), "test": count_part(windows, split.test)},
        protocol=[
            f"A trained model was adapted in closed form to {split.description} (`tools.personalise`).",
            "The test part is all other windows of that session; nothing was measured on it.",
        ],
        notes=notes,
        licence=data_licence(notes, windows.table["recording"].unique()),
        warnings=[
            f"**Personalised** for {session}: of no use to anyone else.",
            *(["The model before was trained on this session: the figures are **too good**."] if seen else []),
        ],
        session=(described["subject"], described["session"]),
    )


def write_results(
    adapted: EMGForSequenceClassification, card: ModelCard, figures: list[dict], described: dict, folder: Path
) -> None:
    save_weights(adapted, folder)
    save_card(card, folder)
    draw(figures, described, folder / "personalise.png")
    write_json(folder / "personalise.json", described | {"figures": figures})


def draw(figures: list[dict], described: dict, path: Path) -> None:
    """Bars of balanced accuracy: before, after, and LDA with the same calibration part."""
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for kind, colour in zip(KINDS, (GREY, ORANGE, BLUE), strict=True):
        places = [place for place, one in enumerate(figures) if one["kind"] == kind]
        values = [figures[place]["balanced_accuracy"] for place in places]
        bars = axes.barh(places, values, 0.7, color=colour, label=KINDS[kind])
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=3, bbox={"facecolor": "white", "lw": 0, "pad": 0.4})
    axes.axvline(described["chance"], ls=":", color="black", label=f"chance ({described['chance']:.3f})")
    axes.set_yticks(range(len(figures)), [one["name"] for one in figures], fontsize=8)
    axes.set(xlim=(0, 1.08), xlabel="balanced accuracy, test part")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.supxlabel("\n".join(textwrap.fill(line.strip(), 115) for line in notes(described)), fontsize=7, color=GREY)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
