"""The cases of the programme `numbers`: what is odd about recordings, settings or pipeline, and how that should end."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from EMG_DATA_LOADER import split_windows
from emg_gpt2.settings import Settings
from emg_gpt2.training import answers
from emg_gpt2.training.trainer import Trainer
from emg_gpt2.windows.reading import load_windows

Recordings = dict[str, pd.DataFrame]  # the file's stem → putEMG's table
Change = Callable[[Recordings], Recordings]

EMG = [f"EMG_{number}" for number in range(1, 5)]
ALL = (0, 1, 2, 3)  # labels
WINDOW = 125  # rows: 250 ms
DAY_2, TEST = "*-2018-06-*", "*repeats_short*"  # fold 0 holds out one recording of each day


@dataclass(frozen=True)
class Case:
    """Something odd: what is done to the recordings, the settings, and how it should end.

    change: takes the recordings and returns the odd ones; cut: flags of Preprocessing.py; flags: of main.py, or how
    they follow from the windows file; refusal: words of the sentence that should refuse it, by whichever script, none
    where it should work; before: what is done to the pipeline itself; kept: files that a refused training leaves in the
    run's folder; quick: tried without --nightly too.
    """

    name: str
    change: Change | None = None
    cut: str = ""
    flags: str | Callable[[Path], str] = ""
    refusal: str = ""
    before: Callable[[], None] | None = None
    kept: tuple[str, ...] = ()
    quick: bool = False


# ---- what is odd about recordings -----------------------------------------------------------------------------


def overwrite(
    recordings: Recordings,
    value: float | None = None,
    factor: float = 1,
    channels: int = 1,
    stems: str = "*",
    labels: tuple[int, ...] = (),
    rows: int = 10**9,
) -> Recordings:
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


def change_labels(recordings: Recordings, labels: dict[int, int], stems: str = "*", but_rows: int = 0) -> Recordings:
    """Old → new label, but for the first `but_rows` rows of each in each recording."""
    for table in chosen(recordings, stems):
        found = table["TRAJ_GT"].to_numpy(copy=True)
        for old, new in labels.items():
            found[np.flatnonzero(table["TRAJ_GT"] == old)[but_rows:]] = new
        table["TRAJ_GT"] = found
    return recordings


def single_window(recordings: Recordings, stems: str) -> Recordings:
    """Class 3 has one window, in the recording `stems`."""
    change_labels({stem: table for stem, table in recordings.items() if not fnmatchcase(stem, stems)}, {3: -1})
    return change_labels(recordings, {3: -1}, stems, but_rows=WINDOW + 3)


def only(recordings: Recordings, channels: int = 4, stems: str = "*") -> Recordings:
    kept = {stem: table for stem, table in recordings.items() if fnmatchcase(stem, stems)}
    return {stem: table.drop(columns=EMG[channels:]) for stem, table in kept.items()}


def same_channels(recordings: Recordings) -> Recordings:
    """Two channels are the same, so no covariance has full rank."""
    return {stem: table.assign(EMG_2=table["EMG_1"]) for stem, table in recordings.items()}


def one_repetition(recordings: Recordings) -> Recordings:
    """Of every gesture in every recording."""
    for table in recordings.values():
        found = table["TRAJ_GT"].to_numpy(copy=True)
        runs = np.cumsum(np.diff(found, prepend=found[0]) != 0)
        for label in ALL:
            found[(found == label) & (runs != runs[found == label][0])] = -1
        table["TRAJ_GT"] = found
    return recordings


def constant(value: float = 0, channels: int = 1, labels: tuple[int, ...] = ALL, **where) -> Change:
    return partial(overwrite, value=value, channels=channels, labels=labels, **where)


def silent(**where) -> Change:
    """All channels are zero."""
    return constant(0, len(EMG), **where)


def scaled(factor: float, **where) -> Change:
    return partial(overwrite, factor=factor, **where)


def without(*labels: int, **where) -> Change:
    return partial(change_labels, labels=dict.fromkeys(labels, -1), **where)


ONE_CHANNEL, TWO_CHANNELS = partial(only, channels=1), partial(only, channels=2)


# ---- what is odd about the pipeline ---------------------------------------------------------------------------


def spoil_training(epoch: int, step: int, what: str) -> None:
    """In that step a `sample` of the batch, or a `gradient`, is no number."""
    really = Trainer.batches

    def batches(self, bar):
        for batch in really(self, bar):
            if (self.epoch, self.sums.step + 1) == (epoch, step):
                if what == "sample":
                    batch.own.emg[0, 0, 0] = np.nan
                else:
                    self.model.head.bias.register_hook(lambda gradient: gradient * np.inf)
            yield batch

    Trainer.batches = batches


def bad(what: str, epoch: int, step: int) -> Callable[[], None]:
    return partial(spoil_training, epoch, step, what)


def spoil_validation() -> None:
    """In the second epoch a probability of the validation part is no number."""
    really = answers.predict

    def predict(logits_of, feed, rows):
        found = really(logits_of, feed, rows)
        trainer = getattr(logits_of, "__self__", None)
        if isinstance(trainer, Trainer) and trainer.epoch == 2:
            found[0] = np.nan
        return found

    answers.predict = predict


def all_but_one(windows: Path) -> str:
    """A batch that leaves a single window of the training part to the next."""
    settings = Settings(DATA_LOCATION=windows)
    return f"--batch-size {len(split_windows(load_windows(settings), settings).train) - 1}"


# ---- the cases ------------------------------------------------------------------------------------------------

KEPT = ("best_model/model.safetensors", "history.csv", "bad_batch.csv")
FREEZE = "--freeze --num-layers 0"
FEW_PATCHES, IMPLAUSIBLE, FLAT = "at least two patches", "no amplifier gives", "no channel changes"
NOT_LEARNT = "0 windows in the training part"

FAMILIES: dict[str, list[Case]] = {
    "loss or gradient that is no number": [
        Case(
            "a sample in epoch 2",
            before=bad("sample", 2, 2),
            refusal="the loss is nan in epoch 2, step 2",
            kept=KEPT,
            quick=True,
        ),
        Case("a gradient in epoch 2", before=bad("gradient", 2, 1), refusal="in epoch 2, step 1", kept=KEPT),
        Case("a sample in epoch 1", before=bad("sample", 1, 3), refusal="there is no model yet", kept=KEPT[2:]),
        Case(
            "the validation part in epoch 2",
            before=spoil_validation,
            refusal="the loss on the validation part is nan in epoch 2",
            kept=KEPT,
            quick=True,
        ),
        Case(
            "a sample in the only trial of a sweep",
            flags="--sweep --sweep-lr 1e-3 --sweep-num-layers 0",
            before=bad("sample", 1, 1),
            refusal="all 1 trials of the sweep failed",
        ),
    ],
    "silent, constant and huge channels and windows": [
        Case("channel constant in all recordings", constant(3, labels=()), refusal="EMG_1 never changes", quick=True),
        Case("channel constant in the labelled spans", constant(3), quick=True),
        Case("channel constant in the labelled spans of a day", constant(stems=DAY_2)),
        Case("channel constant in the labelled spans of the test part", constant(stems=TEST)),
        Case("channel constant in the labelled spans of the training part", constant(stems="*sequential*")),
        Case("channel constant in one window", constant(7, labels=(1,), rows=WINDOW)),
        Case("all channels zero in one window of each recording", silent(labels=(1,), rows=WINDOW), quick=True),
        Case("all channels zero in one class", silent(labels=(0,))),
        Case("all channels zero in all windows", silent(), refusal=FLAT, quick=True),
        Case("all channels 5.5 in all windows", constant(5.5, channels=4), refusal=FLAT),
        Case("all channels zero in the test part", silent(stems=TEST)),
        Case("channel times 1e6", scaled(1e6)),
        Case("all channels times 1e5", scaled(1e5, channels=4)),
        Case("a window times 1e6", scaled(1e6, channels=4, labels=(1,), rows=WINDOW), quick=True),
        Case("a window times 1e6 in the test part", scaled(1e6, channels=4, labels=(1,), rows=WINDOW, stems=TEST)),
        Case("channel times 1e9", scaled(1e9), refusal=IMPLAUSIBLE, quick=True),
        Case("channel times 1e30", scaled(1e30), refusal=IMPLAUSIBLE),
        Case("channel times 1e30, causal filter", scaled(1e30), "--filter causal", refusal=IMPLAUSIBLE),
        Case("channel of subnormal values", scaled(1e-40)),
        Case("all channels times 1e-15", scaled(1e-15, channels=4)),
        Case("two channels the same", same_channels),
        Case("channel times 1e6, putEMG's filter", scaled(1e6), "--filter putemg"),
        Case("all zero in one class, causal filter", silent(labels=(0,)), "--filter causal"),
    ],
    "few windows of a class, few classes": [
        Case(
            "one window of a class, in the test part",
            partial(single_window, stems="*repeats_short*05-11*"),
            refusal=NOT_LEARNT,
        ),
        Case(
            "one window of a class, in the training part",
            partial(single_window, stems="*sequential*05-11*"),
            refusal="in the training part",
            quick=True,
        ),
        Case("a class in the test part alone", without(3, stems="*sequential*"), refusal=NOT_LEARNT),
        Case("a class not in the test part", without(3, stems=TEST)),
        Case("a class of one window in the test part", without(3, stems=TEST, but_rows=WINDOW + 3)),
        Case("two classes", without(2, 3), quick=True),
        Case("two classes, undersampled", without(2, 3), flags="--balance undersample"),
        Case("one class", without(1, 2, 3), refusal="single class", quick=True),
        Case("no label", without(*ALL), refusal="none of the 4 files gave a window", quick=True),
        Case("labels 0 and 127", partial(change_labels, labels={1: 127, 2: -1, 3: -1})),
        Case("no weights against the many idle windows", flags="--balance none"),
    ],
    "few channels": [
        Case("one channel, covariance", ONE_CHANNEL, flags="--tokens covariance"),
        Case("one channel, power", ONE_CHANNEL, flags="--tokens power"),
        Case("one channel, bands", ONE_CHANNEL, flags="--tokens bands"),
        Case("one channel, raw", ONE_CHANNEL, flags="--tokens raw"),
        Case("one channel, covariance,power", ONE_CHANNEL, flags="--tokens covariance,power", quick=True),
        Case("one channel, no linear path", ONE_CHANNEL, flags="--no-linear-path"),
        Case("one channel, rings of one turned", ONE_CHANNEL, flags="--ring 1 --rotation 1"),
        Case("one channel, rings of 8 turned", ONE_CHANNEL, flags="--rotation 1", refusal="RING = 8", quick=True),
        Case("two channels, turned further than the ring", TWO_CHANNELS, flags="--ring 2 --rotation 5"),
        Case("one channel, the scale of the training part", ONE_CHANNEL, flags="--scale training"),
    ],
    "short windows": [
        Case("shorter than a patch", cut="--stride-ms 200 --window-ms 40", refusal=FEW_PATCHES, quick=True),
        Case("of one patch", cut="--stride-ms 200 --window-ms 50", refusal=FEW_PATCHES),
        Case("of one sample less than two patches", cut="--stride-ms 200 --window-ms 98", refusal=FEW_PATCHES),
        Case("of two patches", cut="--stride-ms 200 --window-ms 100", quick=True),
        Case("of one sample", cut="--stride-ms 200 --window-ms 2", refusal=FEW_PATCHES),
        Case(
            "of one sample, patches of one",
            cut="--stride-ms 200 --window-ms 2",
            flags="--patch-ms 2",
            refusal=FEW_PATCHES,
        ),
        Case(
            "of two samples, patches of one",
            cut="--stride-ms 200 --window-ms 4",
            flags="--patch-ms 2 --filter-ms 4 --tokens covariance,power,bands,raw",
        ),
        Case("of less than a sample", cut="--stride-ms 200 --window-ms 0.5", refusal="one sample"),
        Case("longer than every repetition", cut="--window-ms 9000", refusal="no repetition is long", quick=True),
        Case("more patches than the backbone has positions", flags="--patch-ms 2", refusal="raise PATCH_MS"),
        Case("filters longer than the window", flags="--filter-ms 251", refusal="longer than a window"),
        Case("filters of a window", flags="--filter-ms 250"),
        Case("filters of less than a sample", flags="--filter-ms 0.01 --tokens power"),
    ],
    "batches": [
        Case("of one window", flags="--batch-size 1 --num-epochs 1", quick=True),
        Case("the last one of one window", flags=all_but_one, quick=True),
        Case("larger than the training part", flags="--batch-size 100000"),
        Case("from a mapped file", flags="--memory-gb 0"),
    ],
    "small or empty parts": [
        Case("VALIDATION_SHARE 0", flags="--validation-share 0", refusal="VALIDATION_SHARE = 0", quick=True),
        Case("TEST_SHARE 0", flags="--test-share 0", refusal="TEST_SHARE = 0"),
        Case("TEST_SHARE 1", flags="--test-share 1", refusal="TEST_SHARE = 1"),
        Case("nothing for the test part", flags="--test-on 04/*", refusal="no recording matches"),
        Case("nothing for the training part", flags="--test-on *", refusal="training part", quick=True),
        Case(
            "one recording",
            partial(only, stems="*repeats_short*05-11*"),
            refusal="choose another SPLIT or add recordings",
            quick=True,
        ),
        Case(
            "one recording by repetition",
            partial(only, stems="*sequential*05-11*"),
            cut="--stride-ms 100",
            flags="--split repetition --validation-share 0.3",
        ),
        Case("one repetition by repetition", one_repetition, flags="--split repetition", refusal="single repetition"),
        Case("one repetition by recording", one_repetition, refusal="validation part"),
        Case("one person by person", flags="--split subject", refusal="single subject"),
        Case("random windows", flags="--split random"),
        Case("SAMPLING_RATIO 1e-6", flags="--sampling-ratio 1e-6", refusal="raise SAMPLING_RATIO", quick=True),
        Case("SAMPLING_RATIO 0.8", flags="--sampling-ratio 0.8"),
    ],
    "settings at their limits": [
        Case("without refit", flags="--no-refit"),
        Case("no blocks, one epoch, patience 1", flags="--blocks 0 --num-epochs 1 --patience 1", quick=True),
        Case("no blocks, frozen", flags=f"--blocks 0 {FREEZE}"),
        Case("frozen, covariance", flags=f"{FREEZE} --tokens covariance"),
        Case("frozen, power", flags=f"{FREEZE} --tokens power"),
        Case("frozen, bands", flags=f"{FREEZE} --tokens bands"),
        Case("frozen, raw", flags=f"{FREEZE} --tokens raw"),
        Case("frozen, one channel, two patches", ONE_CHANNEL, "--stride-ms 200 --window-ms 100", FREEZE),
        Case("frozen and turned", flags=f"{FREEZE} --rotation 1", refusal="FREEZE with ROTATION"),
        Case("frozen and compiled", flags=f"{FREEZE} --compile", refusal="FREEZE with COMPILE", quick=True),
        Case("compiled", flags="--compile"),
        Case("learning rate 1", flags="--lr 1 --warmup 0"),
        Case("learning rate 1e-30", flags="--lr 1e-30"),
        Case("dropout 0.99", flags="--dropout 0.99"),
        Case("dropout 0.999", flags="--dropout 0.999"),
        Case("noise 1e6", flags="--noise 1e6"),
        Case("weight decay 1e6", flags="--weight-decay 1e6", refusal="lower LR"),
        Case("clip 1e-30", flags="--clip 1e-30"),
        Case("one filter", flags="--filters 1"),
        Case("raw tokens alone, no linear path", flags="--tokens raw --no-linear-path"),
        Case("bfloat16", flags="--precision bf16"),
    ],
}
