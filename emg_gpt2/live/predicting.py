"""Decisions on raw recordings: a table and a picture for each, and figures where there are labels."""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file, write_json
from emg_gpt2.base.log import track
from emg_gpt2.base.versions import versions
from emg_gpt2.live.decisions import REJECTED, Classifier
from emg_gpt2.live.judging import Truth, figures_of, pooled, truth_of
from emg_gpt2.live.references import FixedReference, RunningReference
from emg_gpt2.live.setup import Setup, reference_of_signals
from emg_gpt2.live.signals import Signal, read_signal, when
from emg_gpt2.live.timeline import Decisions, draw_timeline
from emg_gpt2.model.config import EMGConfig, start_words
from emg_gpt2.raw.putemg import find_recordings
from emg_gpt2.raw.recording import UNLABELLED
from emg_gpt2.results.figures import use_format
from emg_gpt2.results.reading import TRANSDUCTIVE
from emg_gpt2.results.run import trained_recordings

logger = logging.getLogger(__name__)

FIGURES = {  # key in metrics.json: heading of the column, and format of the value
    "accuracy": ("accuracy", "{:.3f}"),
    "balanced_accuracy": ("balanced", "{:.3f}"),
    "active_error": ("active error", "{:.3f}"),
    "instability": ("instability", "{:.3f}"),
    "rejected": ("rejected", "{:.3f}"),
    "delay_ms": ("delay, ms", "{:.0f}"),
    "missed": ("missed", "{}"),
}

GUESSING = 1.5  # times the accuracy of guessing, below which decisions are called little better


@dataclass(frozen=True)
class Decided:
    """The decisions on one recording: a row per window, and the truth where it has labels."""

    name: str
    table: pd.DataFrame
    labels: np.ndarray  # (n,) decided, or REJECTED
    plain: np.ndarray  # (n,) the same without smoothing and rejection
    truth: Truth | None

    @property
    def has_truth(self) -> bool:
        """Whether a window lies inside a repetition, so that figures can be given."""
        return self.truth is not None and bool((self.truth.windows["label"] != UNLABELLED).any())


def predict(args: argparse.Namespace, console: Console) -> int:
    """Write tables, pictures and figures; print the figures to `console`. Returns the exit status; raises EMGError."""
    paths, setup = find_recordings(args.recordings), Setup(args)
    make_folder(args.out)
    use_format(args.settings.FIGURE_FORMAT)
    done, skipped = [], []
    for found in track(decided_recordings(paths, setup), "recordings", len(paths)):
        if isinstance(found, EMGError):
            skipped.append(found)
            logger.warning(f"skipped: {found}")
        else:
            done.append(found[1])
            write_decisions(*found, setup, args)
    if not done:
        raise EMGError(f"nothing could be predicted: {skipped[0]}")
    report(done, setup, args.out, console)
    return 3 if skipped else 0


def decided_recordings(paths: list[Path], setup: Setup) -> Iterator[tuple[Signal, Decided] | EMGError]:
    """Yield each recording and the decisions on it, day after day in the order of time, or why it cannot be read."""
    for _, day in groupby(sorted(paths, key=when), key=lambda path: when(path)[:2]):
        signals = []
        for path in day:
            try:
                signals.append(read_new_signal(path, signals, setup))
            except EMGError as error:
                yield error
        measure = reference_of_day(signals, setup)
        for signal in signals:
            yield signal, decide(signal, measure, setup)
        if signals and isinstance(measure, RunningReference):
            measure.warn_of_doubts(name_of(signals))


def name_of(signals: list[Signal]) -> str:
    """The recordings of a day, in short."""
    more = f" and {len(signals) - 1} more of that day" if len(signals) > 1 else ""
    return f"{signals[0].name}{more}"


def read_new_signal(path: Path, signals: list[Signal], setup: Setup) -> Signal:
    """Read a recording; raises EMGError, also where it is among the `signals` of the day already."""
    if path.stem in [signal.name for signal in signals]:
        raise EMGError(f"{path}: the same recording was read from another file already; leave one out")
    return read_signal(path, setup.model, setup.args.filter)


def reference_of_day(signals: list[Signal], setup: Setup) -> FixedReference | RunningReference | None:
    """What the windows of a person and day are measured against; None where no recording could be read."""
    if not signals:
        return None
    if setup.reference != "session":
        return setup.new_measure()
    return FixedReference(reference_of_signals(name_of(signals), signals, setup.model))


def decide(signal: Signal, measure: FixedReference | RunningReference, setup: Setup) -> Decided:
    """Classify every window of a recording."""
    config = setup.model.config
    first, values = Classifier(setup.model, setup.hop, measure, setup.calibration)(signal.samples)
    classes, confidence = setup.new_smoother()(values)
    names, codes = np.array([*config.class_names, "rejected"]), np.array([*config.class_codes, REJECTED])
    start = signal.start + first / signal.rate
    table = pd.DataFrame({"start": start, "end": start + config.window / signal.rate})
    table = table.assign(gesture=names[classes], confidence=confidence)  # REJECTED, −1, is the last name
    table[[f"p_{code}" for code in config.class_codes]] = values
    truth = None
    if (signal.labels != UNLABELLED).any():
        trims = config.preprocessing["TRIM_START_MS"], config.preprocessing["TRIM_END_MS"]
        truth = truth_of(signal.labels, first, config.window, signal.rate, trims, config.class_codes)
        table["label"] = truth.windows["label"]
    return Decided(signal.name, table, codes[classes], codes[values.argmax(1)], truth)


# ---- files ------------------------------------------------------------------------------------------------------


def write_decisions(signal: Signal, decided: Decided, setup: Setup, args: argparse.Namespace) -> None:
    """Write the table and the picture of a recording; each replaces an old one whole."""
    table = args.out / f"{signal.name}.{args.format}"
    replace_file(table, lambda path: write_table(decided.table, path))
    draw_decisions(signal, decided, setup, table)
    logger.info(f"{table}: {len(decided.table)} windows")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write CSV or Parquet, by the suffix of `path`."""
    if path.suffix == ".csv":
        table.to_csv(path, index=False, float_format="%.7g", lineterminator="\n")
    else:
        table.to_parquet(path, index=False)


def draw_decisions(signal: Signal, decided: Decided, setup: Setup, path: Path) -> None:
    """Draw labels, decisions without and with smoothing, confidence and signal of a recording."""
    config = setup.model.config
    names = {int(label): f"gesture {label}" for label in np.unique(signal.labels)}
    names |= dict(zip(config.class_codes, config.class_names, strict=True)) | {REJECTED: "rejected"}
    truth = decided.truth and decided.truth.windows["label"].to_numpy()
    end, confidence = (decided.table[name].to_numpy() for name in ("end", "confidence"))
    decisions = Decisions(end, decided.labels, decided.plain, confidence, truth)
    trained = config.data_note.rstrip(".") or "data without a note on their origin"
    caption = f"Model trained on: {trained}; recording: {signal.name}.\n"
    caption += f"A decision stands from the end of its window to the next; {setup}. "
    caption += "Judged: windows inside one repetition, less its trimmed edges. " if decided.truth else ""
    caption += f"Transductive: {TRANSDUCTIVE}. " if setup.is_transductive([signal.name]) else ""
    caption += f"Model: {setup.args.model}, {start_words(config.weights)}."
    draw_timeline(signal, decisions, names, config.unit, caption, path)


# ---- figures ----------------------------------------------------------------------------------------------------


def report(done: list[Decided], setup: Setup, out: Path, console: Console) -> None:
    """Print the figures of each labelled recording, and of all together where they are several; write metrics.json."""
    labelled, config = [one for one in done if one.has_truth], setup.model.config
    metrics = {"model": str(setup.args.model), "weights": config.weights, "data_note": config.data_note}
    seen = sorted(trained_recordings(Path(setup.args.model)) & {one.name for one in done})
    transductive = setup.is_transductive(one.name for one in done)
    metrics |= {"ways": str(setup), "transductive": transductive, "trained_on": seen}
    metrics |= {"recordings": {}, "versions": versions()}
    if labelled:
        metrics["recordings"] = {one.name: with_and_without([one]) for one in labelled}
        metrics["all"] = with_and_without(labelled)
        together = {"all": metrics["all"]} if len(labelled) > 1 else {}
        print_figures(metrics["recordings"] | together, bool(setup.args.reject_below), console)
        warn_of_guessing(metrics["all"]["without"], config)
    replace_file(out / "metrics.json", lambda path: write_json(path, metrics))
    print(setup)
    if transductive:
        print(f"transductive: {TRANSDUCTIVE}")
    if seen:
        print(f"the model was trained on {len(seen)} of these recordings (split.csv): their figures are too good")
    print(f"{out}: tables, pictures, metrics.json")


def warn_of_guessing(figures: dict, config: EMGConfig) -> None:
    """Warn where decisions are hardly better than guessing: the labels or the signal are not those of training."""
    chance, found = 1 / len(figures["per_class"]), figures["balanced_accuracy"]
    if len(figures["per_class"]) > 1 and found < GUESSING * chance:
        known = ", ".join(f"{code} {name}" for code, name in zip(config.class_codes, config.class_names, strict=True))
        logger.warning(
            f"a balanced accuracy of {found:.3f} is hardly better than guessing ({chance:.3f}): the model's labels "
            f"({known}) may mean other gestures than those of these recordings, or the electrodes lie elsewhere"
        )


def with_and_without(done: list[Decided]) -> dict:
    """Return the figures with smoothing and rejection, and without."""
    truth = pooled([one.truth for one in done])
    decisions = {"with": [one.labels for one in done], "without": [one.plain for one in done]}
    return {name: figures_of(truth, np.concatenate(labels)) for name, labels in decisions.items()}


def print_figures(figures: dict[str, dict], rejecting: bool, console: Console) -> None:
    """Print a table with two rows per recording: with smoothing and, where it is on, rejection, and without."""
    shown = {key: looks for key, looks in FIGURES.items() if rejecting or key != "rejected"}
    kinds = "smoothing and rejection" if rejecting else "smoothing"
    table = Table("", kinds, *(heading for heading, _ in shown.values()), box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, both in figures.items():
        for place, (kind, one) in enumerate(both.items()):
            cells = ("–" if one[key] is None else form.format(one[key]) for key, (_, form) in shown.items())
            table.add_row("" if place else name, kind, *cells)
    console.print(table)
