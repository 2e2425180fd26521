"""Decisions of a trained model on raw recordings: a table, a picture and, where there are labels, figures.

    python -m tools.predict RECORDING… --model RUN/best_model [--out predictions] [--smooth mean] [--reject-below 0.6]

Every recording goes through the filter, rate, scale and window that the model was trained with, and every HOP_MS a
window is classified, at rest, in a gesture or between two. What windows are measured against is `--reference`:

  session    all recordings given of that person and day, no labels: what training measured them against (the default
             where the model was trained so). It looks ahead.
  running    the session so far, as a stream has it; the recordings of a day follow each other in the order of time.
  model      what is stored in the model: the training part, or a session that tools.personalise adapted it to.
  FILE       another recording or a folder of them, as a rule of the same person and day, with every gesture in it.

With `--filter causal` and `--reference running` the decisions are those of tools.stream on the same samples.

For every recording the folder gets a table (start and end of the window in the recording's clock in s, gesture,
confidence, p_LABEL for every class; `label` is the recording's own where all samples of the window share one) and a
picture. Figures are about windows that lie inside one repetition less its trimmed edges, like the model's
training windows, with smoothing and rejection and without, in metrics.json:

  accuracy         share of decisions that are right; one that was rejected is not
  active error     of the decisions for a gesture (not for rest, which is label 0, nor rejected), those that are wrong
  instability      of pairs of decisions that follow each other in a repetition, those that differ
  delay            from the start of a gesture's label to the end of the first window that is decided right (median);
                   repetitions without one are `missed`
Exit status: 0 done, 1 nothing was predicted, 3 some recordings were skipped (named), 130 interrupted.
"""

import argparse
import logging
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from emg_gpt2.base.command_line import Parser, between, progress, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file, write_json
from emg_gpt2.live.decisions import (
    REJECTED,
    Classifier,
    FixedReference,
    RunningReference,
    Smoother,
    every_window,
    load_for_decisions,
)
from emg_gpt2.live.judging import Truth, figures_of, pooled, truth_of
from emg_gpt2.live.signals import Signal, read_signal, when
from emg_gpt2.live.timeline import Band, draw_timeline
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference, measure_reference
from emg_gpt2.raw.putemg import find_recordings
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.results.run import trained_recordings
from EMG_utils import versions
from main import ConsoleHandler

GROUP = "use"

logger = logging.getLogger("predict")

MEASURED_AT_MOST = 4000  # windows of a session make its reference
HOP_MS = 50  # from one decision to the next
FIGURES = {  # key: heading, and how a value is written
    "accuracy": ("accuracy", "{:.3f}"),
    "balanced_accuracy": ("balanced", "{:.3f}"),
    "active_error": ("active error", "{:.3f}"),
    "instability": ("instability", "{:.3f}"),
    "rejected": ("rejected", "{:.3f}"),
    "delay_ms": ("delay, ms", "{:.0f}"),
    "missed": ("missed", "{}"),
}


@dataclass(frozen=True)
class Decided:
    """What became of a recording: a row per window, and the truth where it has labels."""

    name: str
    table: pd.DataFrame
    labels: np.ndarray  # (n,) decided, REJECTED among them
    plain: np.ndarray  # (n,) the same without smoothing and rejection
    truth: Truth | None


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; returns the exit status."""
    return with_status(
        "predict",
        lambda: predict(parse(argv), Console(stderr=True, highlight=False)),
        "the tables named so far are complete",
        full_memory="name fewer recordings of a day at once",
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Decisions of a trained model on raw recordings: tables, pictures and, with labels, figures."
    parser = Parser(prog="python -m tools.predict", description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("recordings", nargs="+", type=Path, metavar="RECORDING", help="raw .hdf5, .csv or .zip, or folders of them")
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="folder of the results (%(default)s)")
    add("--format", choices=("csv", "parquet"), default="csv", help="of the tables (%(default)s)")
    words = "what the model was trained with, or the causal one, as tools.stream has it (%(default)s)"
    add("--filter", choices=("model", "causal"), default="model", help=words)
    add_decision_flags(parser)
    return parser.parse_args(argv)


def add_decision_flags(parser: argparse.ArgumentParser) -> None:
    """Those of every tool that decides."""
    add = parser.add_argument_group("decisions").add_argument
    add("--model", required=True, metavar="MODEL", help="folder of a trained model, such as RUN/best_model")
    hop = f"from one window to the next, at most a window's length (ms; {HOP_MS}, or the window where it is shorter)"
    add("--hop-ms", type=between(float, 1, 10_000), metavar="X", help=hop)
    reference = "what windows are measured against: session, running, model, or a recording of the same day"
    add("--reference", metavar="REF", help=f"{reference} (session or model, as the model was trained)")
    smooth = "the probabilities of the last windows averaged, their votes counted, or none (%(default)s)"
    add("--smooth", choices=("none", "mean", "vote"), default="mean", help=smooth)
    span = "how much time smoothing looks back (ms; %(default)s)"
    add("--span-ms", type=between(float, 1, 60_000), default=250, metavar="X", help=span)
    reject = "no decision where the confidence is lower, 0 … 1 (%(default)s: none)"
    add("--reject-below", type=between(float, 0, 1), default=0.0, metavar="X", help=reject)


def predict(args: argparse.Namespace, console: Console) -> int:
    """Model and recordings → tables, pictures, figures; returns the exit status. Raises EMGError."""
    start_log(console)
    paths = sorted(find_recordings(args.recordings), key=when)
    model = load_for_decisions(args.model)
    make_folder(args.out)
    hop = hop_of(args, model)
    known, done, skipped = known_reference(model, args), [], []
    with progress(console) as bar:
        task = bar.add_task("recordings", total=len(paths))
        for _, day in groupby(paths, key=lambda path: when(path)[:2]):
            signals, problems = read_day(list(day), model, args.filter)
            bar.advance(task, len(problems))
            skipped += problems
            measure = known or reference_of_day(signals, model, hop, args.reference)
            for signal in signals:
                done.append(decide(signal, model, hop, measure, args))
                write_decisions(signal, done[-1], model, args)
                bar.advance(task)
    if not done:
        raise EMGError(f"nothing could be predicted: {skipped[0]}")
    report(done, model, args)
    return 3 if skipped else 0


def hop_of(args: argparse.Namespace, model: EMGForSequenceClassification) -> int:
    """Samples, and args.hop_ms where it was not given; raises EMGError where they are none, or more than a window."""
    rate, window = model.config.sampling_rate, model.config.window
    args.hop_ms = min(HOP_MS, 1000 * window / rate) if args.hop_ms is None else args.hop_ms
    hop = round(args.hop_ms * rate / 1000)
    if not 1 <= hop <= window:
        longest = 1000 * window / rate
        raise EMGError(f"--hop-ms {args.hop_ms:g}: should be from {1000 / rate:.2g} to {longest:.0f}, a window")
    return hop


def read_day(paths: list[Path], model: EMGForSequenceClassification, kind: str) -> tuple[list[Signal], list[str]]:
    """Those that can be read, and what is wrong with the others."""
    signals, problems = [], []
    for path in paths:
        try:
            if path.stem in [signal.name for signal in signals]:
                raise EMGError(f"{path}: the same recording was read from another file already; leave one out")
            signals.append(read_signal(path, model, kind))
        except EMGError as error:
            problems.append(str(error))
            logger.warning(f"skipped: {error}")
    return signals, problems


# ---- what windows are measured against ------------------------------------------------------------------------


def known_reference(model: EMGForSequenceClassification, args: argparse.Namespace) -> FixedReference | None:
    """The one that is the same for all recordings, if there is one. Raises EMGError."""
    kind = args.reference or default_reference(model)
    if kind == "model":
        return FixedReference(model.reference)
    if kind in ("session", "running"):
        return None
    paths = find_recordings([Path(kind)])
    return FixedReference(measured_on([read_signal(path, model, args.filter) for path in paths], model))


def default_reference(model: EMGForSequenceClassification) -> str:
    """What training measured windows against."""
    return "session" if model.config.scale == "session" else "model"


def reference_of_day(
    signals: list[Signal], model: EMGForSequenceClassification, hop: int, kind: str | None
) -> FixedReference | RunningReference | None:
    """The one of a person and day; None without a signal."""
    if not signals:
        return None
    return RunningReference(model, hop) if kind == "running" else FixedReference(measured_on(signals, model))


def measured_on(signals: list[Signal], model: EMGForSequenceClassification) -> Reference:
    """Of windows of all of them, without labels: as far apart as in training, or further."""
    stride = round(model.config.preprocessing["STRIDE_MS"] * model.config.sampling_rate / 1000)
    step = max(stride, sum(len(signal.samples) for signal in signals) // MEASURED_AT_MOST)
    windows = np.concatenate([every_window(signal.samples, model.config.window, step) for signal in signals])
    return measure_reference(torch.from_numpy(windows).to(model.device))


# ---- decisions ------------------------------------------------------------------------------------------------


def decide(
    signal: Signal,
    model: EMGForSequenceClassification,
    hop: int,
    measure: FixedReference | RunningReference,
    args: argparse.Namespace,
) -> Decided:
    """Probabilities and decisions of every window, and the truth where the recording has labels."""
    config = model.config
    first, values = Classifier(model, hop, measure)(signal.samples)
    classes, confidence = smoother(args)(values)
    names, codes = np.array([*config.class_names, "rejected"]), np.array([*config.class_codes, REJECTED])
    start = signal.start + first / signal.rate
    table = pd.DataFrame({"start": start, "end": start + config.window / signal.rate})
    table = table.assign(gesture=names[classes], confidence=confidence)  # −1 is the last one
    table[[f"p_{code}" for code in config.class_codes]] = values
    truth = None
    if (signal.labels != UNLABELLED).any():
        trims = config.preprocessing["TRIM_START_MS"], config.preprocessing["TRIM_END_MS"]
        truth = truth_of(signal.labels, first, config.window, signal.rate, trims, config.class_codes)
        table["label"] = truth.windows["label"]
    return Decided(signal.name, table, codes[classes], codes[values.argmax(1)], truth)


def smoother(args: argparse.Namespace) -> Smoother:
    return Smoother(args.smooth, max(1, round(args.span_ms / args.hop_ms)), args.reject_below)


# ---- results --------------------------------------------------------------------------------------------------


def write_decisions(
    signal: Signal, decided: Decided, model: EMGForSequenceClassification, args: argparse.Namespace
) -> None:
    """Table and picture of a recording, each one whole."""
    table, picture = (args.out / f"{signal.name}.{suffix}" for suffix in (args.format, "png"))
    replace_file(table, lambda path: write_table(decided.table, path))
    replace_file(picture, lambda path: draw(signal, decided, model, args, path))
    logger.info(f"{table}: {len(decided.table)} windows")


def write_table(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False, float_format="%.7g", lineterminator="\n")
    else:
        table.to_parquet(path, index=False)


def draw(
    signal: Signal, decided: Decided, model: EMGForSequenceClassification, args: argparse.Namespace, path: Path
) -> None:
    table = decided.table
    names = dict(zip(model.config.class_codes, model.config.class_names, strict=True))
    until, ends = signal.start + len(signal.samples) / signal.rate, table["end"].to_numpy()
    bands = {"decided": Band(ends, decided.labels, until)}
    if (decided.plain != decided.labels).any():
        bands = {"not smoothed": Band(ends, decided.plain, until)} | bands
    if decided.truth:
        time = signal.start + np.arange(len(signal.labels)) / signal.rate
        bands = {"label": Band(time, signal.labels, until)} | bands
    strange = {int(label): f"gesture {label}" for label in np.unique(signal.labels) if label not in names}
    none = "no label, or rejected" if args.reject_below else "no label"
    note = f"{ways(args, model)}. Model: {args.model}, {model.config.weights} weights. {model.config.data_note}"
    draw_timeline(signal, bands, table["confidence"].to_numpy(), strange | names | {UNLABELLED: none}, note, path)


def ways(args: argparse.Namespace, model: EMGForSequenceClassification) -> str:
    """How decisions were made, in words."""
    kind = model.config.preprocessing["FILTER"] if args.filter == "model" else "causal"
    smoothed = "not smoothed" if args.smooth == "none" else f"smoothed ({args.smooth} of {args.span_ms:g} ms)"
    rejected = f", rejected below {args.reject_below:g}" if args.reject_below else ""
    reference = args.reference or default_reference(model)
    return f"filter {kind}, reference {reference}, a window every {args.hop_ms:g} ms, {smoothed}{rejected}"


def report(done: list[Decided], model: EMGForSequenceClassification, args: argparse.Namespace) -> None:
    """Print the figures of the labelled recordings, each one and all together, and write metrics.json."""
    labelled = [one for one in done if one.truth is not None and (one.truth.windows["label"] != UNLABELLED).any()]
    described = {"model": str(args.model), "weights": model.config.weights, "data_note": model.config.data_note}
    seen = sorted(trained_recordings(Path(args.model)) & {one.name for one in done})
    described |= {"ways": ways(args, model), "trained_on": seen, "recordings": {}, "versions": versions()}
    if labelled:
        described["recordings"] = {one.name: with_and_without([one]) for one in labelled}
        described["all"] = with_and_without(labelled)
        print_figures(described)
    replace_file(args.out / "metrics.json", lambda path: write_json(path, described))
    print(described["ways"])
    if seen:
        print(f"the model was trained on {len(seen)} of these recordings (split.csv): their figures are too good")
    print(f"{args.out}: tables, pictures, metrics.json")


def with_and_without(done: list[Decided]) -> dict:
    """Figures with smoothing and rejection and without."""
    truth = pooled([one.truth for one in done])
    decisions = {"with": [one.labels for one in done], "without": [one.plain for one in done]}
    return {name: figures_of(truth, np.concatenate(labels)) for name, labels in decisions.items()}


def print_figures(described: dict) -> None:
    table = Table("", "smoothing and rejection", *(heading for heading, _ in FIGURES.values()), box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, figures in [*described["recordings"].items(), ("all", described["all"])]:
        for place, (kind, one) in enumerate(figures.items()):
            cells = ("–" if one[key] is None else written.format(one[key]) for key, (_, written) in FIGURES.items())
            table.add_row("" if place else name, kind, *cells)
    Console(highlight=False, width=160).print(table)  # a narrow terminal breaks the lines, not the names


# ---- what the user sees ---------------------------------------------------------------------------------------


def start_log(console: Console) -> None:
    """What happens, on the error output."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[ConsoleHandler(console)], force=True)
    logger.setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
