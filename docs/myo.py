"""Lay out aljazfrancic/myo-readings-dataset (one zip per person) as recordings that Preprocessing.py reads.

    python docs/myo.py ZIPS FOLDER

The data: 25 people, 3 sessions each (one has 5), 8 wrist gestures, a Myo armband (8 electrodes, about 200 Hz); MIT
License, commit 2630b1dd. A line of GESTURE.txt has eight channels and the label, without a clock. A session becomes one
recording, its files one after the other. The days in the recordings' names are stand-ins: they only put the sessions in
order.
"""

import itertools
import sys
import zipfile
from pathlib import Path

import pandas as pd

RATE = 200.0  # Hz
CHANNELS = [f"EMG_{number}" for number in range(1, 9)]
JOINT = 200  # samples at the start of each file that get no label: the signal jumps there


def main(zips: Path, folder: Path) -> None:
    """Write a CSV file per session."""
    folder.mkdir(parents=True, exist_ok=True)
    for person, path in enumerate(sorted(zips.glob("*.zip")), start=1):
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
            for session, files in itertools.groupby(names, key=lambda name: int(name.split("/")[0].split("-")[-1])):
                table = pd.concat([read_lines(archive, name) for name in files], ignore_index=True)
                table.insert(0, "time", table.index / RATE)
                table = table.assign(subject=person, TRAJ_1=-1, VIDEO_STAMP=-1)
                stem = f"emg_gestures-{person:02}-sequential-2018-01-{session + 1:02}-10-00-00-000"
                table.to_csv(folder / f"{stem}.csv", index=False)


def read_lines(archive: zipfile.ZipFile, name: str) -> pd.DataFrame:
    """The lines that hold nine numbers; a few are broken."""
    with archive.open(name) as stream:
        table = pd.read_csv(stream, header=None, names=[*CHANNELS, "TRAJ_GT"], on_bad_lines="skip")
    table = table.apply(pd.to_numeric, errors="coerce").dropna().astype(int).reset_index(drop=True)
    table.loc[: JOINT - 1, "TRAJ_GT"] = -1
    return table


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
