"""putEMG's raw files (Kaczmarek et al., Sensors 2019, 19, 3548): their names and columns → `Recording`."""

import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from emg_gpt2.base.errors import EMGError, named
from emg_gpt2.base.files import check_is_file
from emg_gpt2.raw.csv_file import read_csv
from emg_gpt2.raw.hdf5_process import read_hdf5
from emg_gpt2.raw.recording import LABEL_COLUMN, UNLABELLED, Recording, check_clock, check_emg, check_labels
from emg_gpt2.settings import NAME_FORM

RECORDING_NAME = re.compile(
    r"(?P<type>\w+)-(?P<subject>\d{2})-(?P<trajectory>\w+)-(?P<session>\d{4}-\d{2}-\d{2})-\d{2}-\d{2}-\d{2}-\d{3}"
)
GESTURES = {  # putEMG's labels and their names
    0: "idle",
    1: "fist",
    2: "flexion",
    3: "extension",
    6: "pinch index",
    7: "pinch middle",
    8: "pinch ring",
    9: "pinch small",
}
CHANNELS, RATE, RATE_TOLERANCE = 24, 5120, 0.01  # its clocks show 5124 Hz
VIDEO_ERROR_S = 0.1  # three frames
SUFFIXES = (".hdf5", ".csv", ".zip")
SUBJECT_COLUMN, PROMPT_COLUMN, VIDEO_COLUMN = "subject", "TRAJ_1", "VIDEO_STAMP"
CHANNEL = re.compile(r"EMG_[1-9]\d{0,3}")
NOT_PUTEMG = "only putEMG's own layout can be read"


def find_recordings(places: list[Path]) -> list[Path]:
    """Raw files among `places` and in the folders below them, by name; raises EMGError where there are none."""
    found = []
    for place in places:
        try:
            place.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "there is no such file or folder" if missing else f"it cannot be read ({error.strerror})"
            raise EMGError(f"{place}: {reason}; check the path") from None
        inside = [p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES] if place.is_dir() else [place]
        if not inside:
            raise EMGError(
                f"{place}: the folder holds no recording ({', '.join(SUFFIXES)}); name the folder of the downloads"
            )
        found += inside
    return sorted(set(found), key=lambda path: (path.stem, path.suffix, str(path)))


def read_recording(path: Path, labelled: bool = True) -> Recording:
    """Read one HDF5, CSV or zipped CSV file; unless it has to be `labelled`, clock and channels are enough.

    A file without labels gets −1 throughout.

    Raises EMGError, in one sentence with the file's name, for everything that is wrong with the file: no HDF5 or
    CSV, truncated, another layout, missing channels or labels, samples that are not finite, a clock that jumps or
    runs backwards, labels that are not whole numbers ≥ −1. Dead electrodes are for `check_electrodes`.
    """
    with named(path), _readers_errors():
        check_is_file(path)
        identity = parse_name(path.stem)
        read = read_hdf5 if path.suffix.lower() == ".hdf5" else read_csv
        channels, time, emg, others = read(path, partial(_choose_columns, labelled=labelled))
        labels = others.get(LABEL_COLUMN, np.full(len(time), UNLABELLED))
        check_clock(time)
        check_emg(emg, channels)
        check_labels(labels)
        _check_subject(others.get(SUBJECT_COLUMN, time[:0]), identity["subject"])
        return Recording(
            path.stem,
            **identity,
            channels=tuple(channels),
            time=time,
            emg=emg,
            labels=labels.astype("i1"),
            is_putemg=_is_putemg(channels, time, others),
        )


@contextmanager
def _readers_errors() -> Iterator[None]:
    """Turn whatever a broken file makes the readers raise into one EMGError."""
    try:
        yield
    except EMGError:
        raise
    except MemoryError:
        raise EMGError("the file claims more rows than memory holds; download it again") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise EMGError(f"the file is damaged ({error}); download it again") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise EMGError(f"the file cannot be read ({reason}); download it again") from None


def parse_name(stem: str) -> dict[str, str]:
    """Subject, session and trajectory of a recording; raises EMGError where the name does not tell them."""
    match = RECORDING_NAME.fullmatch(stem)
    if not match:
        raise EMGError(f"the name is not {NAME_FORM}; give the file such a name (Preprocessing.py --help explains it)")
    if match["type"] != "emg_gestures":
        raise EMGError(f"a recording of {match['type']} has no gesture labels; leave it out")
    return {key: match[key] for key in ("subject", "session", "trajectory")}


def _choose_columns(columns: list[str], labelled: bool) -> tuple[list[str], list[str]]:
    """The channels EMG_1 … EMG_C in order, and which of the other columns that tell something are there.

    Raises EMGError where channels, or a label or subject that is needed, are missing.
    """
    numbers = sorted(int(column[4:]) for column in columns if CHANNEL.fullmatch(column))
    strange = [column for column in columns if column.startswith("EMG_") and not CHANNEL.fullmatch(column)]
    if not numbers:
        raise EMGError(f"there are no columns EMG_1, EMG_2, …; {NOT_PUTEMG}")
    if strange:
        raise EMGError(f"the column {strange[0]!r} is no channel, whose name is EMG_ and a number; repair the file")
    if missing := sorted(set(range(1, numbers[-1] + 1)) - set(numbers)):
        names = ", ".join(f"EMG_{number}" for number in missing)
        raise EMGError(f"channels are missing ({names}); download the file again")
    if "TRAJ_2" in columns or "FORCE_1" in columns:
        raise EMGError("the columns are those of a putEMG-Force recording, which has no gesture labels; leave it out")
    for needed in (LABEL_COLUMN, SUBJECT_COLUMN):
        if labelled and needed not in columns:
            raise EMGError(f"the column {needed} is missing; {NOT_PUTEMG}")
    wanted = LABEL_COLUMN, SUBJECT_COLUMN, VIDEO_COLUMN if VIDEO_COLUMN in columns else PROMPT_COLUMN
    return [f"EMG_{number}" for number in numbers], [column for column in wanted if column in columns]


def _is_putemg(channels: list[str], time: np.ndarray, others: dict[str, np.ndarray]) -> bool:
    """Whether it is a recording of putEMG, or simulated in its image, and no other data in its layout.

    putEMG has a video whose clock runs as the recording's does but began at another moment. Where the column of that
    clock is missing, 24 channels at about 5120 Hz and a column for the prompt will do.
    """
    if VIDEO_COLUMN in others:
        first, last = others[VIDEO_COLUMN][[0, -1]]
        runs_alike = abs((last - first) - (time[-1] - time[0])) < VIDEO_ERROR_S
        return bool(runs_alike and first not in (0, time[0]))
    rate = (len(time) - 1) / (time[-1] - time[0])
    return PROMPT_COLUMN in others and len(channels) == CHANNELS and abs(rate / RATE - 1) < RATE_TOLERANCE


def _check_subject(subjects: np.ndarray, subject: str) -> None:
    """The rows name the subject that the file's name does."""
    wrong = subjects[subjects != int(subject)]
    if len(wrong):
        raise EMGError(
            f"the name says subject {subject} but the rows say {wrong[0]:g}; give the file its own name back"
        )
