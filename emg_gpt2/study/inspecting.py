"""One picture per recording or windows file, and what is wrong with its channels."""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from scipy.signal import welch

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, replace_file
from emg_gpt2.base.log import track
from emg_gpt2.raw.filter import apply_filter
from emg_gpt2.raw.putemg import find_recordings, read_recording
from emg_gpt2.raw.quality import (
    Finding,
    Spectrum,
    find_all,
    find_noisy,
    look_at_raw,
    rms_per_label,
    spectrum,
)
from emg_gpt2.raw.recording import UNLABELLED, Recording
from emg_gpt2.raw.resample import resample
from emg_gpt2.results.figures import plt
from emg_gpt2.results.lanes import height, unit_words
from emg_gpt2.settings import Settings
from emg_gpt2.study.panels import (
    Report,
    draw_amounts,
    draw_electrodes,
    draw_map,
    draw_raw,
    draw_spectra,
    page,
)
from emg_gpt2.windows.cut import class_names, unit_of, why_numbers
from emg_gpt2.windows.format import bad_channels, open_file, read_samples, read_table

SHORTEST_S = 0.25  # shorter recordings have no useful spectrum
SPECTRUM = 1.9  # inches, of a spectrum with its axes
SAMPLE_WINDOWS = 20_000  # of a larger file: enough for every person and day, and limits time and memory


def inspect_files(args: argparse.Namespace, console: Console) -> int:
    """Draw every file and print its report; returns 0, or 3 where some could not be read or drawn.

    Raises EMGError where none could.
    """
    raw = [path for path in args.files if not _holds_windows(path)]
    paths = (find_recordings(raw) if raw else []) + [path for path in args.files if _holds_windows(path)]
    make_folder(args.out)
    drawn, say = {}, partial(console.print, soft_wrap=True, markup=False)
    for path in track(paths, "files"):
        say(path.stem)
        say(*(f"  {line}" for line in _report_lines(path, drawn, args)), sep="\n")
    if not drawn:
        raise EMGError("nothing could be drawn; the reason stands below the name of each file")
    for warning in dict.fromkeys(filter(None, drawn.values())):
        say(warning)
    return 0 if len(drawn) == len(paths) else 3


def _holds_windows(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _report_lines(path: Path, drawn: dict[Path, str], args: argparse.Namespace) -> list:
    """Draw a file, add its picture and warning to `drawn` and return its report; one line where it cannot be drawn."""
    out = args.out / f"{path.stem}.{args.settings.FIGURE_FORMAT}"
    try:
        if out in drawn:
            raise EMGError(f"{path}: {out} shows another file of that name; draw this one into another --out")
        report = _draw_file(path, out, args)
    except EMGError as error:
        return [f"not drawn: {error}"]
    drawn[out] = report.warning
    return [*report.facts, ", ".join(report.amounts.values()), *report.finding_lines(), out]


def _draw_file(path: Path, out: Path, args: argparse.Namespace) -> Report:
    inspect = inspect_windows if _holds_windows(path) else inspect_recording
    report, figure = inspect(path, args.settings, args.ring)
    try:
        replace_file(out, figure.savefig)
    except OSError as error:
        raise EMGError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from None
    finally:
        plt.close(figure)
    return report


def _filter_words(settings: dict, rate: float) -> str:
    """The filter of a recording of `rate` Hz, with what is left of its band there (raw/filter.py)."""
    low, high = settings["BAND_HZ"]
    band = f"{low:g} to {high:g} Hz" if high < rate / 2 else f"above {low:g} Hz (to Nyquist, {rate / 2:g} Hz)"
    return "no filter" if settings["FILTER"] == "none" else f"filter {settings['FILTER']}, {band}"


# ---- a recording ------------------------------------------------------------------------------------------------


def inspect_recording(path: Path, settings: Settings, ring: int) -> tuple[Report, plt.Figure]:
    """Return report and picture of a raw recording; raises EMGError where it cannot be read or is too short."""
    recording = read_recording(path)
    rate, labels = recording.sampling_rate, recording.labels
    if len(labels) < round(SHORTEST_S * rate):
        raise EMGError(f"{path}: {len(labels)} samples at {rate:g} Hz are too few to look at; leave it out")
    filtered = apply_filter(recording.emg, recording.time, settings.FILTER, settings.BAND_HZ)
    spectra = {"before the filter": spectrum(recording.emg, rate), "after the filter": spectrum(filtered, rate)}
    names, rms = label_names(recording, settings), rms_per_label(filtered, labels)
    findings = find_all(look_at_raw(recording), recording, *resample(filtered, rate, settings.SAMPLE_RATE))
    report = Report(
        name=path.stem,
        facts=[_recording_facts(recording, settings)],
        amounts={label: f"{name} {(labels == label).sum() / rate:.1f} s" for label, name in names.items()},
        findings=findings,
        sought="flat, clipped, noisy or unsteady",
        unit=unit_words(unit_of(recording)),
        band=settings.BAND_HZ,
        ring=ring,
        warning=why_numbers(_gestures(recording), recording.is_putemg, settings),
    )
    return report, _recording_page(report, recording, spectra, rms, list(names.values()))


def _recording_facts(recording: Recording, settings: Settings) -> str:
    rate, (samples, channels) = recording.sampling_rate, recording.emg.shape
    unit = "whole counts" if unit_of(recording) == "count" else "arbitrary units (no whole counts)"
    size = f"{samples / rate:.1f} s at {rate:.2f} Hz, {channels} channels in {unit}"
    return f"{size}; {_filter_words(dict(settings), round(rate, 2))}"


def _recording_page(
    report: Report, recording: Recording, spectra: dict[str, Spectrum], rms: np.ndarray, labels: list[str]
) -> plt.Figure:
    labelled, channels = height(len(labels), 0.3), height(len(recording.channels), 1.5)
    figure, (top, middle, bottom) = page(report, [0.8 + labelled + channels, SPECTRUM, 0.8 + height(len(labels), 0.4)])
    upper, lower = top.subplots(2, 1, sharex=True, height_ratios=(labelled, channels))
    draw_amounts(upper, recording, report)
    draw_raw(lower, recording, report)
    draw_spectra(middle.subplots(), spectra, report)
    draw_electrodes(bottom.subplots(), rms, labels, report, "RMS after the filter")
    return figure


def label_names(recording: Recording, settings: Settings) -> dict[int, str]:
    """Return the name of each label of a recording, in rising order."""
    names = class_names(_gestures(recording), recording.is_putemg, settings)
    return {UNLABELLED: "unlabelled"} | names if (recording.labels == UNLABELLED).any() else names


def _gestures(recording: Recording) -> list[int]:
    return [label for label in np.unique(recording.labels).tolist() if label != UNLABELLED]


# ---- a windows file ---------------------------------------------------------------------------------------------


def inspect_windows(path: Path, settings: Settings, ring: int) -> tuple[Report, plt.Figure]:
    """Return report and picture of a file of Preprocessing.py; raises EMGError where it cannot be read."""
    about, table, power, still, density = read_windows(path)
    counts = pd.crosstab(table["day"], table["TRAJ_GT"])  # (days, K)
    names = {label: about["class_names"][str(label)] for label in counts}
    report = Report(
        name=path.stem,
        facts=_windows_facts(about, table, len(power)),
        amounts={label: f"{names[label]} {count}" for label, count in counts.sum().items()},
        findings=sorted(find_in_days(power, still)),
        sought="flat or noisy",
        unit=unit_words(about["unit"]),
        band=about["settings"]["BAND_HZ"],
        ring=ring,
    )
    return report, _windows_page(report, counts, power, density, names)


def _windows_page(
    report: Report, counts: pd.DataFrame, power: pd.DataFrame, density: Spectrum, names: dict[int, str]
) -> plt.Figure:
    days, gestures = list(counts.index), list(names.values())
    per_day, per_gesture = 0.8 + height(len(days), 0.4), 0.8 + height(len(names), 0.4)
    figure, parts = page(report, [per_day + 0.4, per_day, SPECTRUM, per_gesture])
    windows, daily, spectra, gestural = (part.subplots() for part in parts)
    draw_map(windows, counts.to_numpy(), days, "windows")
    windows.set_xticks(range(len(names)), gestures, rotation=45, ha="right", rotation_mode="anchor")
    draw_electrodes(daily, _rms(power, "day", days), days, report, "RMS per day")
    draw_spectra(spectra, {"windows": density}, report)
    draw_electrodes(gestural, _rms(power, "TRAJ_GT", list(names)), gestures, report, "RMS per gesture")
    return figure


def read_windows(path: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame, pd.DataFrame, Spectrum]:
    """Return the file's metadata, the day, label and recording of every window, and `measure` of a random sample.

    One row group is in memory at a time; EMG_DATA_LOADER would load or map the whole file. Raises EMGError.
    """
    with open_file(path) as (file, about):
        table = read_table(file, about).to_pandas()
        rows = np.sort(np.random.default_rng(0).permutation(len(table))[:SAMPLE_WINDOWS])
        power, still, density = measure(file, about, rows)
    table["day"] = table["subject"] + " " + table["session"]
    keys = pd.MultiIndex.from_frame(table.loc[rows, ["day", "TRAJ_GT"]])
    return about, table, pd.DataFrame(power, keys), pd.DataFrame(still, keys), density


def measure(file: pq.ParquetFile, about: dict, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, Spectrum]:
    """Return variance (n, C) in unit² of the windows `rows` (n,), which rise; which channels are flat; spectrum."""
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
    """(groups, C); NaN where no window of the group was drawn."""
    return np.sqrt(power.groupby(level=level).mean().reindex(groups)).to_numpy()


def find_in_days(power: pd.DataFrame, still: pd.DataFrame) -> list[Finding]:
    """Find noisy and flat channels of each day, from (n, C) variances and flat channels by day and label."""
    findings = []
    for day, part in power.groupby(level="day"):
        rms = np.sqrt(part.groupby(level="TRAJ_GT").mean())
        findings += find_noisy(rms.to_numpy(), list(rms.index), f" on {day}")
    for day, share in still.groupby(level="day").mean().iterrows():
        flat = np.flatnonzero(share)
        findings += [Finding(int(i), "flat", f"in {share[i]:.1%} of the windows of {day}") for i in flat]
    return findings


def _windows_facts(about: dict, table: pd.DataFrame, drawn: int) -> list[str]:
    counted = f"{len(table)} windows of {table['recording'].nunique()} recordings, {len(about['channels'])} channels"
    rate = round(about["sampling_rate"], 2)
    cut = f"{about['window']} samples every {about['stride']} at {rate:.2f} Hz"
    facts = [f"{counted}, {cut}; {_filter_words(about['settings'], rate)}"]
    if drawn < len(table):
        facts.append(f"RMS, spectrum and findings are of {drawn} windows, drawn at random")
    facts += [f"bad channels of the recordings: {words}" for words in [bad_channels(about["sources"])] if words]
    return [*facts, about["note"]] if about["note"] else facts
