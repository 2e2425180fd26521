"""Odd numbers, shapes and classes through Preprocessing.py, main.py and, nightly, tools.predict and tools.baselines.

Each case works (finite losses, probabilities that sum to 1, figures and report, no warning) or is refused in a
sentence whose words are known. Nothing else counts.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from EMG_DATA_LOADER import split_windows
from emg_gpt2.commands import simulate
from emg_gpt2.settings import Settings
from emg_gpt2.training.trainer import Trainer
from emg_gpt2.windows.reading import load_windows
from stress.row import Row
from stress.trial import Case, Recordings, ends

KEPT_LABELS = (-1, 0, 1, 2, 3)  # of the simulated ones: four classes are quicker than eight
EMG = [f"EMG_{number}" for number in range(1, 5)]
WINDOW = 125  # rows: 250 ms
DAY_1, DAY_2, TEST = "*-2018-05-*", "*-2018-06-*", "*repeats_short*"  # fold 0 holds out one recording of each day
SHORT = ("--stride-ms", "200", "--window-ms")


# ---- what is odd about recordings -----------------------------------------------------------------------------


def overwrite(
    recordings: Recordings, value: float | None = None, factor: float = 1, channels: int = 1, stems: str = "*",
    labels: tuple[int, ...] = (), rows: int = 10**9,
) -> Recordings:  # fmt: skip
    """The first `channels` become `value`, or are multiplied: in the first `rows` of `labels` (none: everywhere)."""
    for table in chosen(recordings, stems):
        where = np.flatnonzero(table["TRAJ_GT"].isin(labels) if labels else np.ones(len(table), bool))[:rows]
        for name in EMG[:channels]:
            values = table[name].to_numpy(copy=True)
            values[where] = values[where] * factor if value is None else value
            table[name] = values
    return recordings


def chosen(recordings: Recordings, stems: str) -> list[pd.DataFrame]:
    return [table for stem, table in recordings.items() if fnmatchcase(stem, stems)]


def relabel(recordings: Recordings, labels: dict[int, int], stems: str = "*", but_rows: int = 0) -> Recordings:
    """Old → new label, but for the first `but_rows` rows of each in each recording."""
    for table in chosen(recordings, stems):
        found = table["TRAJ_GT"].to_numpy(copy=True)
        for old, new in labels.items():
            found[np.flatnonzero(table["TRAJ_GT"] == old)[but_rows:]] = new
        table["TRAJ_GT"] = found
    return recordings


def a_single_window(recordings: Recordings, stems: str) -> Recordings:
    """Class 3 has one window, in the recording `stems`."""
    others = {stem: table for stem, table in recordings.items() if not fnmatchcase(stem, stems)}
    relabel(others, {3: -1})
    return relabel(recordings, {3: -1}, stems, but_rows=WINDOW + 3)


def only(recordings: Recordings, channels: int = 4, stems: str = "*") -> Recordings:
    kept = {stem: table for stem, table in recordings.items() if fnmatchcase(stem, stems)}
    return {stem: table.drop(columns=EMG[channels:]) for stem, table in kept.items()}


def twins(recordings: Recordings) -> Recordings:
    """Two channels are the same, so no covariance has full rank."""
    return {stem: table.assign(EMG_2=table["EMG_1"]) for stem, table in recordings.items()}


def one_repetition(recordings: Recordings) -> Recordings:
    """Of every gesture in every recording."""
    for table in recordings.values():
        found = table["TRAJ_GT"].to_numpy(copy=True)
        runs = np.cumsum(np.diff(found, prepend=found[0]) != 0)
        for label in (0, 1, 2, 3):
            found[(found == label) & (runs != runs[found == label][0])] = -1
        table["TRAJ_GT"] = found
    return recordings


# ---- what is odd about the pipeline ---------------------------------------------------------------------------


def spoil_training(epoch: int, step: int, what: str) -> None:
    """From that step on a `sample` of the batch, or a `gradient`, is no number."""
    really = Trainer._train_step

    def train_step(self, batch, rows):
        if (len(self.history) + 1, self.epoch.step + 1) == (epoch, step):
            if what == "sample":
                batch.emg[0, 0, 0] = np.nan
            else:
                self.bare_model.head.bias.register_hook(lambda gradient: gradient * np.inf)
        really(self, batch, rows)

    Trainer._train_step = train_step


def spoil_validation() -> None:
    """From the second epoch on, a probability is no number."""
    really = Trainer.predict

    def predict(self, model, rows):
        found = really(self, model, rows)
        if len(self.history) == 1 and model is self.model:
            found[0] = np.nan
        return found

    Trainer.predict = predict


def all_but_one(windows: Path) -> str:
    """A batch that leaves a single window of the training part to the next."""
    settings = Settings(DATA_LOCATION=windows)
    return str(len(split_windows(load_windows(settings), settings).train) - 1)


# ---- the cases ------------------------------------------------------------------------------------------------

KEPT = ("best_model/model.safetensors", "history.csv", "bad_batch.csv")
FREEZE = ("--freeze", "--num-layers", "0")

FAMILIES: dict[str, list[Case]] = {
    "loss or gradient that is no number": [
        Case(
            "a sample in epoch 2",
            before=partial(spoil_training, 2, 2, "sample"),
            refusal="the loss is nan in epoch 2, step 2",
            kept=KEPT,
            quick=True,
        ),
        Case(
            "a gradient in epoch 2",
            before=partial(spoil_training, 2, 1, "gradient"),
            refusal="in epoch 2, step 1",
            kept=KEPT,
        ),
        Case(
            "a sample in epoch 1",
            before=partial(spoil_training, 1, 3, "sample"),
            refusal="there is no model yet",
            kept=("bad_batch.csv",),
        ),
        Case(
            "the validation part in epoch 2",
            before=spoil_validation,
            refusal="the loss on the validation part is nan in epoch 2",
            kept=KEPT,
            quick=True,
        ),
        Case(
            "a sample in the only trial of a sweep",
            before=partial(spoil_training, 1, 1, "sample"),
            flags=("--sweep", "--sweep-lr", "1e-3", "--sweep-num-layers", "0"),
            refusal="all 1 trials of the sweep failed",
        ),
    ],
    "silent, constant and huge channels and windows": [
        Case(
            "channel constant in all recordings", partial(overwrite, value=3), refusal="EMG_1 never changes", quick=True
        ),
        Case("channel constant in the labelled spans", partial(overwrite, value=3, labels=(0, 1, 2, 3)), quick=True),
        Case(
            "channel constant in the labelled spans of a day",
            partial(overwrite, value=0, labels=(0, 1, 2, 3), stems=DAY_2),
        ),
        Case(
            "channel constant in the labelled spans of the test part",
            partial(overwrite, value=0, labels=(0, 1, 2, 3), stems=TEST),
        ),
        Case(
            "channel constant in the labelled spans of the training part",
            partial(overwrite, value=0, labels=(0, 1, 2, 3), stems="*sequential*"),
        ),
        Case("channel constant in one window", partial(overwrite, value=7, labels=(1,), rows=WINDOW)),
        Case(
            "all channels zero in one window of each recording",
            partial(overwrite, value=0, channels=4, labels=(1,), rows=WINDOW),
            quick=True,
        ),
        Case("all channels zero in one class", partial(overwrite, value=0, channels=4, labels=(0,))),
        Case(
            "all channels zero in all windows",
            partial(overwrite, value=0, channels=4, labels=(0, 1, 2, 3)),
            refusal="no channel changes",
            quick=True,
        ),
        Case(
            "all channels 5.5 in all windows",
            partial(overwrite, value=5.5, channels=4, labels=(0, 1, 2, 3)),
            refusal="no channel changes",
        ),
        Case(
            "all channels zero in the test part",
            partial(overwrite, value=0, channels=4, labels=(0, 1, 2, 3), stems=TEST),
        ),
        Case("channel times 1e6", partial(overwrite, factor=1e6)),
        Case("all channels times 1e5", partial(overwrite, factor=1e5, channels=4)),
        Case("a window times 1e6", partial(overwrite, factor=1e6, channels=4, labels=(1,), rows=WINDOW), quick=True),
        Case(
            "a window times 1e6 in the test part",
            partial(overwrite, factor=1e6, channels=4, labels=(1,), rows=WINDOW, stems=TEST),
        ),
        Case("channel times 1e9", partial(overwrite, factor=1e9), refusal="no muscle's", quick=True),
        Case("channel times 1e30", partial(overwrite, factor=1e30), refusal="no muscle's"),
        Case(
            "channel times 1e30, causal filter",
            partial(overwrite, factor=1e30),
            cut=("--filter", "causal"),
            refusal="no muscle's",
        ),
        Case("channel of subnormal values", partial(overwrite, factor=1e-40)),
        Case("all channels times 1e-15", partial(overwrite, factor=1e-15, channels=4)),
        Case("two channels the same", twins),
        Case("channel times 1e6, putEMG's filter", partial(overwrite, factor=1e6), cut=("--filter", "putemg")),
        Case(
            "all zero in one class, causal filter",
            partial(overwrite, value=0, channels=4, labels=(0,)),
            cut=("--filter", "causal"),
        ),
    ],
    "few windows of a class, few classes": [
        Case(
            "one window of a class, in the test part",
            partial(a_single_window, stems="*repeats_short*05-11*"),
            refusal="0 windows in the training part",
        ),
        Case(
            "one window of a class, in the training part",
            partial(a_single_window, stems="*sequential*05-11*"),
            refusal="in the training part",
            quick=True,
        ),
        Case(
            "a class in the test part alone",
            partial(relabel, labels={3: -1}, stems="*sequential*"),
            refusal="0 windows in the training part",
        ),
        Case("a class not in the test part", partial(relabel, labels={3: -1}, stems=TEST)),
        Case(
            "a class of one window in the test part",
            partial(relabel, labels={3: -1}, stems=TEST, but_rows=WINDOW + 3),
        ),
        Case("two classes", partial(relabel, labels={2: -1, 3: -1}), quick=True),
        Case("two classes, undersampled", partial(relabel, labels={2: -1, 3: -1}), flags=("--balance", "undersample")),
        Case("one class", partial(relabel, labels={1: -1, 2: -1, 3: -1}), refusal="single class", quick=True),
        Case(
            "no label",
            partial(relabel, labels={0: -1, 1: -1, 2: -1, 3: -1}),
            refusal="none of the 4 files gave a window",
            quick=True,
        ),
        Case("labels 0 and 127", partial(relabel, labels={1: 127, 2: -1, 3: -1})),
        Case("no weights against the many idle windows", flags=("--balance", "none")),
    ],
    "few channels": [
        *(
            Case(
                f"one channel, {kinds}",
                partial(only, channels=1),
                flags=("--tokens", kinds),
                quick=kinds == "covariance,power",
            )
            for kinds in ("covariance", "power", "bands", "raw", "covariance,power")
        ),
        Case("one channel, no linear path", partial(only, channels=1), flags=("--no-linear-path",)),
        Case("one channel, rings of one turned", partial(only, channels=1), flags=("--ring", "1", "--rotation", "1")),
        Case(
            "one channel, rings of eight turned",
            partial(only, channels=1),
            flags=("--rotation", "1"),
            refusal="RING = 8",
            quick=True,
        ),
        Case(
            "two channels, turned further than the ring",
            partial(only, channels=2),
            flags=("--ring", "2", "--rotation", "5"),
        ),
        Case("one channel, the scale of the training part", partial(only, channels=1), flags=("--scale", "training")),
    ],
    "short windows": [
        Case("shorter than a patch", cut=(*SHORT, "40"), refusal="at least two patches", quick=True),
        Case("of one patch", cut=(*SHORT, "50"), refusal="at least two patches"),
        Case("of one sample less than two patches", cut=(*SHORT, "98"), refusal="at least two patches"),
        Case("of two patches", cut=(*SHORT, "100"), quick=True),
        Case("of one sample", cut=(*SHORT, "2"), refusal="at least two patches"),
        Case(
            "of one sample, patches of one",
            cut=(*SHORT, "2"),
            flags=("--patch-ms", "2"),
            refusal="at least two patches",
        ),
        Case(
            "of two samples, patches of one",
            cut=(*SHORT, "4"),
            flags=("--patch-ms", "2", "--filter-ms", "4", "--tokens", "covariance,power,bands,raw"),
        ),
        Case("of less than a sample", cut=(*SHORT, "0.5"), refusal="one sample"),
        Case(
            "longer than every repetition",
            cut=("--window-ms", "9000"),
            refusal="no repetition is long enough",
            quick=True,
        ),
        Case("more patches than the backbone has positions", flags=("--patch-ms", "2"), refusal="raise PATCH_MS"),
        Case("filters longer than the window", flags=("--filter-ms", "251"), refusal="longer than a window"),
        Case("filters of a window", flags=("--filter-ms", "250")),
        Case("filters of less than a sample", flags=("--filter-ms", "0.01", "--tokens", "power")),
    ],
    "batches": [
        Case("of one window", flags=("--batch-size", "1", "--num-epochs", "1"), quick=True),
        Case(
            "the last one of one window",
            flags=(
                "--batch-size",
                all_but_one,
            ),
            quick=True,
        ),
        Case("larger than the training part", flags=("--batch-size", "100000")),
        Case("from a mapped file", flags=("--memory-gb", "0")),
    ],
    "small or empty parts": [
        Case("VALIDATION_SHARE 0", flags=("--validation-share", "0"), refusal="VALIDATION_SHARE = 0", quick=True),
        Case("TEST_SHARE 0", flags=("--test-share", "0"), refusal="TEST_SHARE = 0"),
        Case("TEST_SHARE 1", flags=("--test-share", "1"), refusal="TEST_SHARE = 1"),
        Case("nothing for the test part", flags=("--test-on", "04/*"), refusal="no recording matches"),
        Case("nothing for the training part", flags=("--test-on", "*"), refusal="training part", quick=True),
        Case(
            "one recording",
            partial(only, stems="*repeats_short*05-11*"),
            refusal="choose another SPLIT or add recordings",
            quick=True,
        ),
        Case(
            "one recording by repetition",
            partial(only, stems="*sequential*05-11*"),
            cut=("--stride-ms", "100"),
            flags=("--split", "repetition", "--validation-share", "0.3"),
        ),
        Case(
            "one repetition by repetition", one_repetition, flags=("--split", "repetition"), refusal="single repetition"
        ),
        Case("one repetition by recording", one_repetition, refusal="validation part"),
        Case("one person by person", flags=("--split", "subject"), refusal="single subject"),
        Case("random windows", flags=("--split", "random")),
        Case("SAMPLING_RATIO 1e-6", flags=("--sampling-ratio", "1e-6"), refusal="raise SAMPLING_RATIO", quick=True),
        Case("SAMPLING_RATIO 0.8", flags=("--sampling-ratio", "0.8")),
    ],
    "settings at their limits": [
        Case("without refit", flags=("--no-refit",)),
        Case(
            "no blocks, one epoch, patience 1",
            flags=("--blocks", "0", "--num-epochs", "1", "--patience", "1"),
            quick=True,
        ),
        Case("no blocks, frozen", flags=("--blocks", "0", *FREEZE)),
        *(
            Case(f"frozen, {kinds}", flags=(*FREEZE, "--tokens", kinds))
            for kinds in ("covariance", "power", "bands", "raw")
        ),
        Case("frozen, one channel, two patches", partial(only, channels=1), cut=(*SHORT, "100"), flags=FREEZE),
        Case("frozen and turned", flags=(*FREEZE, "--rotation", "1"), refusal="FREEZE with ROTATION"),
        Case("frozen and compiled", flags=(*FREEZE, "--compile"), refusal="FREEZE with COMPILE", quick=True),
        Case("compiled", flags=("--compile",)),
        Case("learning rate 1", flags=("--lr", "1", "--warmup", "0")),
        Case("learning rate 1e-30", flags=("--lr", "1e-30")),
        Case("dropout 0.99", flags=("--dropout", "0.99")),
        Case("dropout 0.999", flags=("--dropout", "0.999")),
        Case("noise 1e6", flags=("--noise", "1e6")),
        Case("weight decay 1e6", flags=("--weight-decay", "1e6"), refusal="lower LR"),
        Case("clip 1e-30", flags=("--clip", "1e-30")),
        Case("one filter", flags=("--filters", "1")),
        Case("raw tokens alone, no linear path", flags=("--tokens", "raw", "--no-linear-path")),
        Case("bfloat16", flags=("--precision", "bf16")),
    ],
}


def rows(nightly: bool, folder: Path, seed: int, say: Callable[[str], None]) -> Iterator[Row]:
    """One row per family of cases; with `nightly` all cases, and tools.predict and tools.baselines on what works."""
    recordings, backbone = write_recordings(folder, seed), write_backbone(folder)
    for number, (family, cases) in enumerate(FAMILIES.items()):
        tried = [case for case in cases if nightly or case.quick]
        say(f"{family}: {len(tried)} cases")
        yield row_of(family, tried, recordings, backbone, folder / f"family{number}", nightly)


def row_of(family: str, cases: list[Case], recordings: Path, backbone: Path, folder: Path, tools: bool) -> Row:
    row = Row("numbers", family)
    for _, end, seconds in ends(cases, recordings, backbone, folder, tools):
        row.add(end, seconds)
    shutil.rmtree(folder, ignore_errors=True)
    return row


def write_recordings(folder: Path, seed: int) -> Path:
    """Two days of two simulated recordings of four classes, four channels at 500 Hz: a pickle of the tables."""
    small = ["x", "--repetitions", "2", "--channels", "4", "--sampling-rate", "500", "--seed", str(seed)]
    args, found = simulate.parse(small), {}
    for session in (1, 2):
        for trajectory in ("sequential", "repeats_short"):
            when = simulate.recording_time(3, session, trajectory).strftime("%Y-%m-%d-%H-%M-%S-%f")[:-3]
            table = simulate.simulate(args, 3, session, trajectory)
            table["TRAJ_GT"] = table["TRAJ_GT"].where(table["TRAJ_GT"].isin(KEPT_LABELS), -1.0)
            found[f"emg_gestures-03-{trajectory}-{when}"] = table
    pd.to_pickle(found, folder / "recordings.pickle")
    return folder / "recordings.pickle"


def write_backbone(folder: Path) -> Path:
    """The shape of a GPT-2 of width 32."""
    place = folder / "gpt2"
    place.mkdir()
    shape = {"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 64}
    (place / "config.json").write_text(json.dumps(shape))
    return place
