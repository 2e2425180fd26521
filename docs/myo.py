"""Lay out aljazfrancic/myo-readings-dataset (one zip per person) as recordings that Preprocessing.py reads.

    python docs/myo.py ZIPS FOLDER

The data: 25 people, 3 sessions each (one has 5), 8 wrist gestures, a Myo armband (8 electrodes, about 200 Hz); MIT
License, commit 2630b1dd. A line of GESTURE.txt has eight channels and the label, without a clock. The days in the names
of the recordings are stand-ins: they only put the sessions in order.
"""

import sys
import zipfile
from pathlib import Path

import pandas as pd

RATE = 200.0  # Hz
CHANNELS = [f"EMG_{number}" for number in range(1, 9)]


def main(zips: Path, folder: Path) -> None:
    """Write a CSV file per session and gesture."""
    folder.mkdir(parents=True, exist_ok=True)
    for person, path in enumerate(sorted(zips.glob("*.zip")), start=1):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".txt")):
                session, gesture = name.split("-")[-1].removesuffix(".txt").split("/")
                stem = f"emg_gestures-{person:02}-sequential-2018-01-{int(session) + 1:02}-10-0{gesture}-00-000"
                with archive.open(name) as stream:
                    table = read_lines(stream).assign(subject=person, TRAJ_1=-1, VIDEO_STAMP=-1)
                    table.to_csv(folder / f"{stem}.csv", index=False)


def read_lines(stream) -> pd.DataFrame:
    """The lines that hold nine numbers, with a clock in front; a few are broken."""
    table = pd.read_csv(stream, header=None, names=[*CHANNELS, "TRAJ_GT"], on_bad_lines="skip")
    table = table.apply(pd.to_numeric, errors="coerce").dropna().astype(int).reset_index(drop=True)
    table.insert(0, "time", table.index / RATE)
    return table


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
