"""Draw one picture per recording or windows file, and name its flat, clipped and noisy channels.

    python -m tools.inspect Data-HDF5 windows.parquet

A recording: all channels, the labels, the spectrum before and after the filter, and the RMS of every electrode and
gesture. A windows file of Preprocessing.py: what windows show of that, and every day beside the others.
Exit status: 0 all are drawn, 1 none could be, 3 some could not be, 130 interrupted.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from scipy.signal import welch

from emg_gpt2.base.command_line import Parser, between, progress, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file
from emg_gpt2.raw.filter import apply_filter
from emg_gpt2.raw.power_line import LINE_FREQUENCIES
from emg_gpt2.raw.putemg import find_recordings, read_recording
from emg_gpt2.raw.recording import UNLABELLED, Recording
from emg_gpt2.results.figures import plt
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.study.panels import (
    Finding,
    Report,
    Spectrum,
    draw_channels,
    draw_electrodes,
    draw_labels,
    draw_map,
    draw_spectra,
    height,
    page,
)
from emg_gpt2.windows.cut import class_names, unit_of
from emg_gpt2.windows.format import open_file, read_samples, read_table

GROUP = "data"

FLAT_S = 0.25  # as long as a window; electrodes on skin (flexemg, armband) stand still for 10 ms at the most
CONVERTER_LIMITS = (-2048, 2047, 2048)  # counts, of putEMG's 12 bits
CLIPPED_RUN = 3  # samples; a peak that is not cut off seldom rests on its highest value for as long
CLIPPED_SHARE = 1e-3  # of a putEMG recording: as long as a window; flexemg and armband stay below 2e-4
NOISY_FACTOR = 4.0  # sound electrodes at rest reach 2.5 times the median in armband, 2.3 in simulated recordings
NOISY_DEVIATIONS = 3.5  # the usual cut of the modified z-score (Iglewicz and Hoaglin, 1993)
LINE_HZ = 2.5  # to either side: the main lobe of a piece's Hann window, and half a bin
LINE_SHARE = 0.5  # of the power; most channels have 0.1 to 0.3 there, since EMG lies near those frequencies too

PIECE_S = 1.0  # length of the pieces whose spectra are averaged
SHORTEST_S = 0.25  # recordings below it give no spectrum that is worth the name
SAMPLE_WINDOWS = 20_000  # of a larger file: enough for every person and day, and bounded in time and memory


def main(argv: list[str] | None = None) -> int:
    """Draw what the command line names; returns the exit status."""
    kept = "the pictures named so far are complete"
    return with_status("inspect", lambda: inspect_files(parse(argv), Console(highlight=False)), kept)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it, or with the settings."""
    about = "Draw one picture per recording or windows file, and name its flat, clipped and noisy channels."
    parser = Parser(prog="python -m tools.inspect", description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    files = "raw recordings (.hdf5, .csv, .zip), folders of them, and windows files (.parquet)"
    add("files", nargs="+", type=Path, metavar="FILE", help=files)
    add("--out", type=Path, default=Path("pictures"), metavar="DIR", help="folder of the pictures (%(default)s)")
    add("--ring", type=between(int, 1, 256), default=8, metavar="N", help="electrodes of one ring (%(default)s)")
    for flag in ("--filter", "--band-hz", "--class-names"):
        add(flag, metavar="X", help=f"for recordings ({flag[2:].upper().replace('-', '_')} of ENV.py)")
    args = parser.parse_args(argv)
    given = {"filter": args.filter, "band-hz": args.band_hz, "class-names": args.class_names}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    args.settings = read_settings(Settings, flags)
    return args


def inspect_files(args: argparse.Namespace, console: Console) -> int:
    """Draw every file and print a block on it; returns 0, or 3 where some could not be read or drawn.

    Raises EMGError where none could.
    """
    raw = [path for path in args.files if not _holds_windows(path)]
    paths = (find_recordings(raw) if raw else []) + [path for path in args.files if _holds_windows(path)]
    _make_folder(args.out)
    drawn, say = set(), partial(console.print, soft_wrap=True, markup=False)
    with progress(console) as bar:
        for path in bar.track(paths, description="files"):
            say(path.stem)
            say(*(f"  {line}" for line in _lines_on(path, drawn, args)), sep="\n")
    if not drawn:
        raise EMGError("nothing could be drawn; the reason stands below the name of each file")
    return 0 if len(drawn) == len(paths) else 3


def _lines_on(path: Path, drawn: set[Path], args: argparse.Namespace) -> list:
    """Draw a file, add its picture to `drawn`, and describe it; one line where it cannot be drawn."""
    picture = args.out / f"{path.stem}.png"
    try:
        if picture in drawn:
            raise EMGError(f"{path}: {picture} shows another file of that name; draw this one into another --out")
        report = _inspect_file(path, picture, args)
    except EMGError as error:
        return [f"not drawn: {error}"]
    drawn.add(picture)
    return [*report.facts, report.amounts, *report.finding_lines(), picture]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EMGError(f"{folder}: the folder cannot be made ({error.strerror}); choose another --out") from None


def _holds_windows(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _inspect_file(path: Path, picture: Path, args: argparse.Namespace) -> Report:
    inspect = inspect_windows if _holds_windows(path) else inspect_recording
    report, figure = inspect(path, args.settings, args.ring)
    try:
        replace_file(picture, lambda path: figure.savefig(path, dpi=150))
    except OSError as error:
        raise EMGError(f"{picture}: cannot be written ({error.strerror or error}); choose another --out") from None
    finally:
        plt.close(figure)
    return report


# ---- a recording ----------------------------------------------------------------------------------------------


def inspect_recording(path: Path, settings: Settings, ring: int) -> tuple[Report, plt.Figure]:
    """Report and picture of one raw recording; raises EMGError where it cannot be read."""
    recording = read_recording(path)
    rate = recording.sampling_rate
    if len(recording.time) < round(SHORTEST_S * rate):
        raise EMGError(f"{path}: {len(recording.time)} samples at {rate:g} Hz are too few to look at; leave it out")
    filtered = apply_filter(recording.emg, recording.time, settings.FILTER, settings.BAND_HZ)
    before, after = spectrum(recording.emg, rate), spectrum(filtered, rate)
    names, rms = label_names(recording.labels, settings), rms_per_label(filtered, recording.labels)
    amounts = [f"{name} {(recording.labels == label).sum() / rate:.1f} s" for label, name in names.items()]
    unit = "counts" if unit_of(recording) == "count" else "a.u."
    findings = [*find_flat(recording), *find_clipped(recording.emg), *find_noisy(rms, names), *find_lines(after)]
    facts = [_facts(recording, settings, unit)]
    report = Report(path.stem, facts, ", ".join(amounts), sorted(findings), "flat, clipped or noisy")

    figure, (top, bottom) = page(report, [1.5 + height(rms.shape[1], 2.5), 1.4 + height(len(names), 2)])
    band, signals = top.subplots(2, 1, sharex=True, height_ratios=(0.3, 0.6 + height(rms.shape[1], 2.5)))
    draw_labels(band, recording, amounts)
    draw_channels(signals, recording, report.findings, unit)
    left, right = bottom.subplots(1, 2, width_ratios=(2, 3))
    spectra = {"before the filter": before, "after the filter": after}
    draw_spectra(left, spectra, settings.BAND_HZ, report.findings, unit)
    draw_electrodes(right, rms, list(names.values()), report.findings, ring, f"RMS after the filter ({unit})")
    return report, figure


def _facts(recording: Recording, settings: Settings, unit: str) -> str:
    samples, channels = recording.emg.shape
    size = f"{samples / recording.sampling_rate:.1f} s at {recording.sampling_rate:.2f} Hz, {channels} channels"
    unit = "whole counts" if unit == "counts" else "arbitrary units (no whole counts)"
    return f"{size} in {unit}; {_filter_words(settings.FILTER, settings.BAND_HZ)}"


def _filter_words(kind: str, band: tuple[float, float]) -> str:
    return "no filter" if kind == "none" else f"filter {kind}, {band[0]:g} to {band[1]:g} Hz"


def label_names(labels: np.ndarray, settings: Settings) -> dict[int, str]:
    """Name of each label among (N,) in rising order, as in CLASS_NAMES where it has all of them, else by number."""
    present = np.unique(labels).tolist()
    names = class_names([label for label in present if label != UNLABELLED], settings)
    return {UNLABELLED: "unlabelled"} | names if UNLABELLED in present else names


def rms_per_label(emg: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K, C) RMS about the channel's mean of (N, C) samples, for the K values of (N,) labels in rising order."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    squares = [np.bincount(index, np.square(x - x.mean(dtype=np.float64))) for x in emg.T]  # C × (K,)
    return np.sqrt(np.stack(squares, axis=1) / counts[:, None])


def spectrum(emg: np.ndarray, rate: float) -> Spectrum:
    """Welch's estimate for (N, C) samples, one channel at a time: all at once would be copied several times."""
    length = min(round(PIECE_S * rate), len(emg))
    estimates = [welch(x, rate, nperseg=length) for x in emg.T]
    return Spectrum(estimates[0][0], np.stack([power for _, power in estimates], axis=1))


# ---- what is wrong with a channel -----------------------------------------------------------------------------


def find_flat(recording: Recording) -> list[Finding]:
    """Channels that stand still for FLAT_S or longer."""
    rate, findings = recording.sampling_rate, []
    for channel, x in enumerate(recording.emg.T):
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(x)) + 1, [len(x)]])
        runs = np.diff(bounds)  # lengths of the runs of one value
        still = runs[runs >= round(FLAT_S * rate)]
        if len(still):
            start = recording.time[bounds[runs.argmax()]]
            words = f"{still.max() / rate:.2f} s without a change from {start:.2f} s"
            more = f", {still.sum() / rate:.2f} s in {len(still)} such stretches" if len(still) > 1 else ""
            findings.append(Finding(channel, "flat", words + more))
    return findings


def find_clipped(emg: np.ndarray) -> list[Finding]:
    """Channels of (N, C) samples that rest on their own extreme values, or often reach the converter's limits."""
    findings = []
    for channel, x in enumerate(emg.T):
        low, high = x.min(), x.max()
        if low == high:
            continue  # flat
        extreme = np.flatnonzero((x == low) | (x == high))
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(extreme) > 1) + 1, [len(extreme)]])
        run = np.repeat(np.diff(bounds), np.diff(bounds))  # length of the run that each extreme sample is in
        share = ((run >= CLIPPED_RUN) | np.isin(x[extreme], CONVERTER_LIMITS)).sum() / len(x)
        if share >= CLIPPED_SHARE:
            findings.append(Finding(channel, "clipped", f"{share:.2%} of the samples rest at {low:g} or {high:g}"))
    return findings


def find_noisy(rms: np.ndarray, names: dict[int, str], where: str = "") -> list[Finding]:
    """Channels of (K, C) RMS that stand out at rest; `names` are those of the K labels.

    Rest is label 0, or the quietest label where there is no 0.
    """
    rest = list(names).index(0) if 0 in names else np.median(rms, axis=1).argmin()
    level = np.log(np.maximum(rms[rest], np.finfo(np.float32).tiny))
    above = level - np.median(level)
    deviation = 1.4826 * np.median(np.abs(above))  # the standard deviation, were they normally distributed
    loud = np.flatnonzero(above > max(np.log(NOISY_FACTOR), NOISY_DEVIATIONS * deviation))
    words = f"times the median channel's RMS during {list(names.values())[rest]}{where}"
    return [Finding(int(channel), "noisy", f"{np.exp(above[channel]):.1f} {words}") for channel in loud]


def find_lines(after: Spectrum) -> list[Finding]:
    """Channels whose power after the filter is mostly that of the power line."""
    lines = np.array([line for line in LINE_FREQUENCIES if line < after.frequencies[-1]])
    near = np.abs(after.frequencies[:, None] - lines) <= LINE_HZ  # (F, lines)
    share = after.power[near.any(axis=1)].sum(axis=0) / np.maximum(after.power.sum(axis=0), np.finfo(np.float32).tiny)
    strongest = lines[(near.T @ after.power).argmax(axis=0)]  # (C,)
    words = "{:.0%} of the power after the filter lies near line frequencies, most near {:g} Hz"
    loud = np.flatnonzero(share > LINE_SHARE)
    return [Finding(int(channel), "noisy", words.format(share[channel], strongest[channel])) for channel in loud]


# ---- a windows file -------------------------------------------------------------------------------------------


def inspect_windows(path: Path, settings: Settings, ring: int) -> tuple[Report, plt.Figure]:
    """Report and picture of one file of Preprocessing.py; raises EMGError where it cannot be read."""
    about, table, power, still, density = read_windows(path)
    band, unit = about["settings"]["BAND_HZ"], "counts" if about["unit"] == "count" else "a.u."
    counts = pd.crosstab(table["day"], table["TRAJ_GT"])  # (days, K)
    names = {label: about["class_names"][str(label)] for label in counts}
    days, gestures = list(counts.index), list(names.values())
    amounts = ", ".join(f"{names[label]} {count}" for label, count in counts.sum().items())
    findings = sorted(find_in_days(power, still, names))
    report = Report(path.stem, _windows_facts(about, table, len(power)), amounts, findings, "flat or noisy")

    figure, (top, bottom) = page(report, [1.6 + height(len(days), 0.4), 1.4 + height(len(names), 2)])
    left, right = top.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    draw_map(left, counts.to_numpy(), days, "windows")
    left.set_xticks(range(len(names)), gestures, rotation=45, ha="right", rotation_mode="anchor")
    draw_electrodes(right, _rms(power, "day", days), days, findings, ring, f"RMS per day ({unit})")
    left, right = bottom.subplots(1, 2, width_ratios=(2, 3))
    draw_spectra(left, {"windows": density}, band, findings, unit)
    draw_electrodes(right, _rms(power, "TRAJ_GT", list(names)), gestures, findings, ring, f"RMS per gesture ({unit})")
    return report, figure


def read_windows(path: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame, pd.DataFrame, Spectrum]:
    """The file's metadata, the day, label and recording of every window, and what `measure` finds in a sample.

    One row group is in memory at a time, where EMG_DATA_LOADER would hold or map the file. Raises EMGError.
    """
    with open_file(path) as (file, about):
        table = read_table(file, about).to_pandas()
        rows = np.sort(np.random.default_rng(0).permutation(len(table))[:SAMPLE_WINDOWS])
        power, still, density = measure(file, about, rows)
    table["day"] = table["subject"] + " " + table["session"]
    keys = pd.MultiIndex.from_frame(table.loc[rows, ["day", "TRAJ_GT"]])
    return about, table, pd.DataFrame(power, keys), pd.DataFrame(still, keys), density


def measure(file: pq.ParquetFile, about: dict, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, Spectrum]:
    """Variance (n, C) in unit² of the n windows `rows` (rising), whether a channel stands still in them, spectrum."""
    rate = about["sampling_rate"]
    power, still, total, first = [], [], 0.0, 0
    for group in range(file.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        drawn = rows[slice(*np.searchsorted(rows, (first, end)))] - first
        first = end
        if len(drawn):  # else the group need not be read
            emg = read_samples(file, group, about)[drawn] * np.float32(about["scale"])  # (n, T, C)
            power.append(emg.var(axis=1))
            still.append(np.ptp(emg, axis=1) == 0)
            frequencies, density = welch(emg, rate, nperseg=about["window"], axis=1)  # (n, F, C)
            total += density.sum(axis=0)
    return np.concatenate(power), np.concatenate(still), Spectrum(frequencies, total / len(rows))


def _rms(power: pd.DataFrame, level: str, groups: list) -> np.ndarray:
    """(groups, C); NaN where no window was drawn."""
    return np.sqrt(power.groupby(level=level).mean().reindex(groups)).to_numpy()


def find_in_days(power: pd.DataFrame, still: pd.DataFrame, names: dict[int, str]) -> list[Finding]:
    """What stands out on a day, in (n, C) variances and (n, C) marks of standing still, by day and label."""
    findings = []
    for day, part in power.groupby(level="day"):
        rms = np.sqrt(part.groupby(level="TRAJ_GT").mean())
        findings += find_noisy(rms.to_numpy(), {label: names[label] for label in rms.index}, f" on {day}")
    for day, share in still.groupby(level="day").mean().iterrows():
        flat = np.flatnonzero(share)
        findings += [Finding(int(i), "flat", f"in {share[i]:.1%} of the windows of {day}") for i in flat]
    return findings


def _windows_facts(about: dict, table: pd.DataFrame, drawn: int) -> list[str]:
    counted = f"{len(table)} windows of {table['recording'].nunique()} recordings, {len(about['channels'])} channels"
    cut = f"{about['window']} samples every {about['stride']} at {about['sampling_rate']:.2f} Hz"
    facts = [f"{counted}, {cut}; {_filter_words(about['settings']['FILTER'], about['settings']['BAND_HZ'])}"]
    if drawn < len(table):
        facts.append(f"RMS, spectrum and findings are of {drawn} windows, drawn at random")
    return [*facts, about["note"]] if about["note"] else facts


if __name__ == "__main__":
    sys.exit(main())
