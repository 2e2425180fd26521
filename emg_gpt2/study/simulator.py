"""Simulated raw recordings in putEMG's own file layout.

Real, taken from what is known of putEMG: the container (HDF5 as pandas writes it, or a zipped CSV), the
columns, the file names, the clock, the programme of prompts, the label rules and the usual amplitudes.
Inferred: the order of the holds in repeats_long and sequential, of the pinches, and the CSV's details.
Invented: every waveform. Muscles are noise sources in a cylindrical forearm, mixed into rings of electrodes.
A person is an anatomy, a session is a new placement of the electrodes, and every repetition has its own
force and its own mixture of muscles. At a difficulty above 1 gestures grow alike in their muscles and differ in
how they drive them, which no covariance shows. Scores on such data say nothing about real people.
"""

import argparse
import os
import time
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from importlib.util import find_spec
from io import TextIOWrapper
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.fft import irfft, next_fast_len, rfftfreq
from scipy.signal import butter, lfilter, sosfilt

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.log import start_log, track
from emg_gpt2.study.protocols import START

Array, Rng = np.ndarray, np.random.Generator

TYPES = ["emg_gestures", "emg_force", "mmg_gestures"]
TRAJECTORIES = ["familiarization", "repeats_long", "sequential", "repeats_short", "bias", "mvc"]

# The programme: seconds of every hold, in order, and what lies between the holds.
HOLDS = {"repeats_long": (3, 3, 1, 1, 3, 1, 3, 1), "repeats_short": (3, 3, 1, 1, 3, 1)}
SEQUENTIAL_BLOCKS = 6
PAUSE, IDLE = 5.0, 3.0  # s
GESTURES = (1, 2, 3, 6, 7, 8, 9)
EARLY, LATE = 0.25, 2.0  # s around a prompt in which TRAJ_GT accepts its gesture
FRAME_RATE = 30  # video frames per second

CLOCK_ERROR = 1.000797  # true over nominal rate: putEMG's 5120 Hz are about 5124.08 Hz
PACKET = 512  # rows
ADC_MIN, ADC_MAX = -2048, 2047  # counts
ENVELOPE_RATE = 200  # Hz, for everything that changes slowly

# Muscle: angle from the ulna (degrees), depth (cm), distance from the elbow ring (cm).
MUSCLES = np.array([
    (30, 0.9, 3), (45, 1.6, 6), (60, 1.5, 6), (80, 1.5, 6), (98, 1.7, 6), (75, 0.8, 3), (110, 0.9, 3),
    (135, 1.9, 7), (175, 0.9, 1), (212, 0.9, 2), (232, 1.0, 4), (252, 1.1, 6), (275, 1.0, 5), (318, 1.0, 4),
])  # fmt: skip
# Effort of every muscle in percent. Columns: flexor carpi ulnaris; finger flexors 5, 4, 3, 2; palmaris;
# flexor carpi radialis; thumb flexor; brachioradialis; radial extensors long, short; finger extensors 2, 3-5;
# extensor carpi ulnaris. The pinches share all but the one finger, which is what makes them hard.
EFFORT = {
    0: (4, 2, 2, 2, 2, 3, 3, 3, 3, 4, 6, 5, 6, 4),
    1: (25, 45, 55, 60, 55, 15, 20, 40, 10, 30, 40, 20, 25, 30),
    2: (55, 15, 20, 25, 15, 60, 60, 8, 5, 4, 4, 3, 4, 8),
    3: (8, 4, 5, 5, 4, 3, 5, 3, 15, 60, 75, 35, 45, 60),
    6: (7, 7, 10, 16, 38, 7, 12, 36, 6, 14, 18, 10, 20, 14),
    7: (8, 8, 16, 40, 15, 9, 11, 34, 5, 13, 19, 18, 15, 14),
    8: (11, 17, 40, 16, 9, 8, 9, 31, 5, 12, 17, 20, 13, 17),
    9: (18, 42, 17, 9, 8, 7, 8, 30, 5, 11, 15, 20, 18, 22),
}
CLASSES = tuple(EFFORT)
# Above difficulty 1 gestures use more and more the same muscles. What tells the pinches apart is then how they drive
# them: with motor units whose spectrum peaks twice as high, with a tremor, or both.
FAST, TREMBLING = (7, 9), (8, 9)
FAST_RATIO, TREMOR_HZ, DRIVE = 2.0, 6.0, 4.0  # times the spectrum's peak; Hz; strength of both, times `alike`
LIMB_RADIUS, LIMB_LENGTH = 4.0, 8.0  # cm, elbow ring to wrist ring
LINES = {30: 3.0, 49.99: 9.0, 60: 1.5, 90: 1.5, 150: 4.0}  # Hz: typical amplitude in counts


class Segment(NamedTuple):
    """One prompt, or one movement: from `start` to `stop` (s) with a putEMG label."""

    start: float
    stop: float
    label: int


class Setup(NamedTuple):
    """What stays the same during one recording, for C channels and M muscles."""

    mixing: Array  # (C, M) counts per unit of effort
    effort: Array  # (8, M), in the order of CLASSES
    centre: Array  # (M,) Hz, where the muscle's spectrum peaks
    noise: Array  # (C,) counts RMS of the electrode and amplifier
    line_gain: Array  # (C,)
    spread: float  # difficulty
    alike: float  # 0 … 1: how far the gestures share their muscles, and differ in how they drive them


def programme(trajectory: str, repetitions: int | None = None) -> list[Segment]:
    """Return the prompts of a trajectory; `repetitions` keeps the first N per gesture, with their timing."""
    if trajectory == "sequential":
        blocks = [
            [(gesture, 3 if (block + place) % 2 == 0 else 1) for place, gesture in enumerate(GESTURES)]
            for block in range(SEQUENTIAL_BLOCKS)
        ][:repetitions]
    else:
        blocks = [[(gesture, hold) for hold in HOLDS[trajectory][:repetitions]] for gesture in GESTURES]
    steps = [(-1, PAUSE)]
    for block in blocks:
        steps += [(0, IDLE)] + [step for hold in block for step in (hold, (0, IDLE))] + [(-1, PAUSE)]
    stops = np.cumsum([seconds for _, seconds in steps])
    return [Segment(stop - seconds, stop, label) for (label, seconds), stop in zip(steps, stops, strict=True)]


def prepare(args: argparse.Namespace, subject: int, session: int, trajectory: str) -> Setup:
    """Draw the anatomy from the subject, the placement from the session and small drifts from the recording.

    Each has its own generator, so that a recording does not depend on which others are written.
    """
    spread, channels, muscles = args.difficulty, args.channels, len(MUSCLES)
    alike = 1 - 1 / max(1, spread)
    typical = np.array(list(EFFORT.values())) / 100
    typical[1:] += alike * (typical[1:].mean(0) - typical[1:])
    body = np.random.default_rng([args.seed, subject])
    day = np.random.default_rng([args.seed, subject, session])
    now = np.random.default_rng([args.seed, subject, session, TRAJECTORIES.index(trajectory), 1])

    angle = np.deg2rad(MUSCLES[:, 0] + body.normal(0, 10, muscles))
    radius = LIMB_RADIUS - MUSCLES[:, 1] * body.lognormal(0, 0.15, muscles)
    along = MUSCLES[:, 2] + body.normal(0, 0.6, muscles)
    strength = 60 * body.lognormal(0, 0.2) * body.lognormal(0, 0.3, muscles)
    habit = body.lognormal(0, 0.3, (len(CLASSES), muscles))
    habit *= day.lognormal(0, 0.2 * spread, (len(CLASSES), muscles))

    turn = np.deg2rad(day.normal(0, 10 * spread) + now.normal(0, 1 * spread))
    ring = np.arange(channels)[:, None] // 8
    at_angle = turn + 2 * np.pi * (np.arange(channels)[:, None] % 8) / np.bincount(ring[:, 0])[ring]
    at_along = ring / max(ring[-1, 0], 2) * LIMB_LENGTH + day.normal(0, 0.5 * spread)
    across2 = LIMB_RADIUS**2 + radius**2 - 2 * LIMB_RADIUS * radius * np.cos(at_angle - angle)  # (C, M) cm²
    # A muscle is long, so distance along the limb counts for less than distance across it.
    distance2 = across2 + (0.4 * (at_along - along)) ** 2
    contact = day.lognormal(0, 0.1 * spread, (channels, 1)) * now.lognormal(0, 0.04 * spread, (channels, 1))
    return Setup(
        # 0.03 is the far field that a monopolar electrode picks up from everywhere
        mixing=(contact * strength * (1 / distance2 + 0.03)).astype(np.float32),
        effort=habit * typical,
        centre=body.uniform(60, 90, muscles).astype(np.float32),
        noise=day.uniform(3.5, 5, channels).astype(np.float32),
        line_gain=day.lognormal(0, 0.3, channels).astype(np.float32),
        spread=spread,
        alike=alike,
    )


def perform(prompts: list[Segment], rng: Rng, spread: float) -> list[Segment]:
    """Turn prompts into what the person does: late, sometimes early, rarely another gesture."""
    movements = []
    for start, stop, label in prompts:
        if label == -1:  # in a pause people move as they like
            begin = start + rng.uniform(1.0, 2.5)
            movements.append(Segment(begin, begin + rng.uniform(0.5, 1.5), int(rng.choice(GESTURES))))
        elif label > 0:
            delay = rng.normal(-0.2, 0.2) if rng.random() < 0.05 else rng.normal(0.41, 0.12)
            done = int(rng.choice(GESTURES)) if rng.random() < 0.01 * spread else label
            movements.append(Segment(start + delay, stop + rng.normal(0.42, 0.12), done))
    return movements


def slow_noise(rng: Rng, shape: tuple[int, int], seconds: float) -> Array:
    """Return (time, K) noise of unit variance at ENVELOPE_RATE that forgets itself after `seconds`."""
    keep = np.exp(-1 / (seconds * ENVELOPE_RATE))
    return lfilter([np.sqrt(1 - keep**2)], [1, -keep], rng.standard_normal(shape), axis=0)


def efforts(movements: list[Segment], setup: Setup, clock: Array, rng: Rng) -> Array:
    """Return the effort (time, M) of every muscle at the times `clock` (s, at ENVELOPE_RATE)."""
    shape, spread = (len(clock), len(MUSCLES)), setup.spread
    effort = setup.effort[0] * np.exp(0.6 * spread * slow_noise(rng, shape, 6.0))
    for start, stop, label in movements:
        force = rng.lognormal(0, 0.35 * spread)
        mixture = setup.effort[CLASSES.index(label)] * rng.lognormal(0, 0.55 * spread, len(MUSCLES))
        # Muscles act about 80 ms before the hand is seen to move.
        rise = np.clip((clock - start + 0.08) / rng.uniform(0.1, 0.3) + 0.5, 0, 1)
        fall = np.clip((stop - 0.08 - clock) / rng.uniform(0.15, 0.4) + 0.5, 0, 1)
        # Nobody relaxes at once: some of the effort lingers.
        rest = 0.12 * rng.lognormal(0, 0.6 * spread) * np.exp(-np.clip(clock - stop, 0, None) / 1.5)
        effort += (force * rise * (fall + (1 - fall) * rest))[:, None] * mixture
    return effort * np.exp(0.15 * spread * slow_noise(rng, shape, 0.3))


def driven(movements: list[Segment], gestures: tuple[int, ...], clock: Array) -> Array:
    """(time,) 1 while the hand does one of the gestures, else 0."""
    return np.isin(label_samples(movements, clock, 0), gestures)


def coloured_noise(rng: Rng, rows: int, rate: float, gain: Callable[[Array], Array]) -> Array:
    """Return (rows,) float32 Gaussian noise of unit RMS with the amplitude spectrum `gain(Hz)`."""
    size = next_fast_len(rows, real=True)
    spectrum = rng.standard_normal((size // 2 + 1, 2), dtype=np.float32).view(np.complex64)[:, 0]
    noise = irfft(spectrum * gain(rfftfreq(size, 1 / rate).astype(np.float32)), size)[:rows]
    return noise / noise.std()


def muscle_gain(hertz: Array, centre: np.float32) -> Array:
    """Return the amplitude spectrum of a muscle: a peak at `centre` (Hz) within about 20 to 450 Hz."""
    ratio2 = (hertz / centre) ** 2
    return ratio2 / (1 + ratio2) ** 2 / np.sqrt(1 + (hertz / 450) ** 6)


def interference(rng: Rng, clock: Array, rate: float) -> tuple[Array, Array]:
    """Return what all channels share, in counts: the power lines and the common-mode noise, (N,) each."""
    lines = np.zeros(len(clock), np.float32)
    for hertz, amplitude in LINES.items():
        phase = 2 * np.pi * hertz * clock + rng.uniform(0, 2 * np.pi)
        lines += amplitude * rng.lognormal(0, 0.25) * np.sin(phase)
    common = coloured_noise(rng, len(clock), rate, lambda hertz: 1 / (10 + hertz))
    return lines, rng.uniform(2, 4) * common


def artefacts(rng: Rng, movements: list[Segment], clock: Array, channels: int) -> Array:
    """Return swings of the cables in counts (time, C); a rare one drives the converter to its limit."""
    swings = np.zeros((len(clock), channels))
    for movement in movements:
        if rng.random() < 0.4:
            after = np.clip(clock - movement.start, 0, None)
            swing = np.exp(-after / 0.15) * np.sin(2 * np.pi * rng.uniform(2, 7) * after)
            amplitude = rng.lognormal(8.5, 0.4) if rng.random() < 0.02 else rng.lognormal(3.5, 0.7)
            near = rng.integers(channels)
            swings[:, near] += amplitude * swing
            swings[:, (near + 1) % channels] += 0.3 * min(amplitude, 300) * swing
    return swings


def front_end(signal: Array, rate: float, rng: Rng) -> Array:
    """Return the (N,) counts that the 3-900 Hz amplifier and the 12-bit converter make of one channel."""
    band = butter(2, [3, min(900, 0.45 * rate)], "bandpass", fs=rate, output="sos")
    counts = np.rint(sosfilt(band, signal) + rng.normal(0, 3))
    return np.clip(counts, ADC_MIN, ADC_MAX) + 0.0  # + 0.0 turns -0.0 into 0.0


def synthesise(setup: Setup, movements: list[Segment], clock: Array, rate: float, rng: Rng) -> Array:
    """Return the EMG (C, N) in counts at the times `clock` (s)."""
    rows, channels = len(clock), len(setup.noise)
    slow = np.arange(clock[0], clock[-1] + 1 / ENVELOPE_RATE, 1 / ENVELOPE_RATE)
    effort = efforts(movements, setup, slow, rng)
    (own,) = rng.spawn(1)  # so that an easy recording does not depend on what follows
    tremor = np.sin(2 * np.pi * TREMOR_HZ * slow + own.uniform(0, 2 * np.pi)) * driven(movements, TREMBLING, slow)
    effort *= np.exp(DRIVE * setup.alike * tremor)[:, None]
    fast = np.interp(clock, slow, min(1, DRIVE * setup.alike) * driven(movements, FAST, slow)).astype(np.float32)
    sources = np.empty((len(MUSCLES), rows), np.float32)
    for muscle, centre in enumerate(setup.centre):
        noise = coloured_noise(rng, rows, rate, partial(muscle_gain, centre=centre))
        if setup.alike:
            other = coloured_noise(own, rows, rate, partial(muscle_gain, centre=FAST_RATIO * centre))
            noise = np.sqrt(1 - fast) * noise + np.sqrt(fast) * other
        sources[muscle] = np.interp(clock, slow, effort[:, muscle]) * noise
    emg = setup.mixing @ sources
    lines, common = interference(rng, clock, rate)
    swings = artefacts(rng, movements, slow, channels)
    counts = np.empty((channels, rows))
    for channel in range(channels):
        own = setup.noise[channel] * rng.standard_normal(rows, dtype=np.float32)
        own += setup.line_gain[channel] * lines + common + np.interp(clock, slow, swings[:, channel])
        counts[channel] = front_end(emg[channel] + own, rate, rng)
    if rng.random() < 0.1:  # a loose contact
        first = rng.integers(rows)
        counts[rng.integers(channels), first : first + int(rng.uniform(0.5, 3) * rate)] = 0
    return counts


def label_samples(segments: list[Segment], clock: Array, default: int) -> Array:
    """Return (N,) labels: every segment's own inside it, later ones on top, `default` elsewhere."""
    labels = np.full(len(clock), float(default))
    for start, stop, label in segments:
        first, last = np.searchsorted(clock, [start, stop])
        labels[first:last] = label
    return labels


def video_labels(prompts: list[Segment], movements: list[Segment], stamp: Array, rng: Rng) -> tuple[Array, Array]:
    """Return TRAJ_GT_NO_FILTER (what the video shows, with flickers) and TRAJ_GT (after putEMG's rules)."""
    seen = label_samples(movements, stamp, 0)
    truth = np.where(label_samples(prompts, stamp, -1) == -1, -1.0, seen)
    for gesture in GESTURES:
        near = [Segment(p.start - EARLY, p.stop + LATE, 1) for p in prompts if p.label == gesture]
        truth[(seen == gesture) & (label_samples(near, stamp, 0) == 0)] = -1
    for start in rng.uniform(stamp[0], stamp[-1], rng.poisson(0.05 * (stamp[-1] - stamp[0]))):
        first, last = np.searchsorted(stamp, [start, start + rng.integers(1, 5) / FRAME_RATE])
        seen[first:last] = rng.choice(GESTURES)
    return seen, truth


def recording_time(subject: int, session: int, trajectory: str) -> datetime:
    """Return when a recording began; sessions are numbered from 1."""
    known = subject == 3  # putEMG's subject 03 came on 2018-05-11 and 2018-06-14
    first, apart = (datetime(2018, 5, 11), 34) if known else (datetime(2018, 4, 2 + subject % 28), 14)
    clock = datetime.strptime(START[trajectory], "%H-%M-%S-%f") - datetime(1900, 1, 1)
    return first + timedelta(days=apart * (session - 1)) + clock


def simulate(args: argparse.Namespace, subject: int, session: int, trajectory: str) -> pd.DataFrame:
    """Return one recording as putEMG's table: index in seconds, EMG in counts, labels as floats."""
    which = TRAJECTORIES.index(trajectory)
    rng = np.random.default_rng([args.seed, subject, session, which, 2])
    prompts = programme(trajectory, args.repetitions)
    movements = perform(prompts, rng, args.difficulty)
    rate = args.sampling_rate * CLOCK_ERROR * (1 + rng.normal(0, 2e-6))
    rows = int(prompts[-1].stop * rate) // PACKET * PACKET
    clock = rng.uniform(0.02, 0.15) + np.arange(rows) / rate
    video_zero = rng.uniform(0.5, 1.5)
    frame = np.floor((clock - video_zero) * FRAME_RATE) / FRAME_RATE + video_zero  # labels change with it
    emg = synthesise(prepare(args, subject, session, trajectory), movements, clock, rate, rng)

    names = [f"EMG_{n}" for n in range(1, args.channels + 1)]
    table = pd.DataFrame(emg.T, index=clock, columns=names, copy=False)
    table["TRAJ_1"] = label_samples(prompts, clock, -1)
    table["type"] = pd.Categorical.from_codes(np.zeros(rows, np.int8), TYPES)
    table["subject"] = float(subject)
    table["trajectory"] = pd.Categorical.from_codes(np.full(rows, which, np.int8), TRAJECTORIES)
    table["date_time"] = np.datetime64(recording_time(subject, session, trajectory), "ns")
    seen, truth = video_labels(prompts, movements, frame, rng)
    table["TRAJ_GT_NO_FILTER"], table["VIDEO_STAMP"], table["TRAJ_GT"] = seen, clock - video_zero, truth
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """Write STEM.hdf5 or STEM.zip under a temporary name and rename it, so that `path` is always complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()  # says in plain words when the folder cannot be written to
        if path.suffix == ".hdf5":
            # Level 5, as putEMG's files seem to have, takes longer than the simulation; nothing needs the search index.
            layout = {"key": "data", "format": "table", "complevel": 1, "complib": "zlib", "index": False}
            table.to_hdf(temporary, mode="w", **layout)
        else:
            with (
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
                archive.open(f"{path.stem}.csv", "w", force_zip64=True) as member,
                TextIOWrapper(member, newline="") as text,
            ):
                table.to_csv(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_all(args: argparse.Namespace, console: Console) -> None:
    """Simulate and write one recording after the other; raises EMGError where one cannot be written."""
    require_pytables(args.format)
    wanted = list(product(args.subjects, range(1, args.sessions + 1), args.trajectories))
    say = partial(console.print, soft_wrap=True, markup=False)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        start_log(console)
        for subject, session, trajectory in track(wanted, "recordings"):
            say(write_one(args, subject, session, trajectory))
    except (OSError, RuntimeError) as error:  # PyTables' own errors are RuntimeErrors, with a stack trace for a message
        reason = getattr(error, "strerror", None) or "cannot be written (is the disk full?)"
        raise EMGError(f"{args.out}: {reason}; name another folder, or free the place") from None
    say(f"{len(wanted)} simulated recordings in {args.out}: invented signals, not measurements of people.")


def write_one(args: argparse.Namespace, subject: int, session: int, trajectory: str) -> str:
    """Simulate and write a recording; returns a line about it."""
    began = time.perf_counter()
    when = recording_time(subject, session, trajectory).strftime("%Y-%m-%d-%H-%M-%S-%f")[:-3]
    stem = f"emg_gestures-{subject:02d}-{trajectory}-{when}"
    table = simulate(args, subject, session, trajectory)
    for suffix in {"hdf5": [".hdf5"], "csv": [".zip"], "both": [".hdf5", ".zip"]}[args.format]:
        write(table, args.out / f"{stem}{suffix}")
    return f"{stem}: {len(table)} rows, {time.perf_counter() - began:.1f} s"


def require_pytables(kind: str) -> None:
    """Raise EMGError where HDF5 files are to be written and the package that writes pandas tables is missing."""
    if kind != "csv" and find_spec("tables") is None:
        raise EMGError('HDF5 files are written by PyTables; pip install "emg-gpt2[simulate]", or take --format csv')
