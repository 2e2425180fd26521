"""What tests/test_properties.py draws: recordings, settings to cut them with, and windows to split."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import raw_table, write_raw
from hypothesis import strategies as st
from rich.console import Console

from emg_gpt2.raw.putemg import find_recordings
from emg_gpt2.settings import PreprocessingSettings, Settings
from emg_gpt2.windows.reading import WindowSet
from Preprocessing import Result, preprocess

TRAJECTORIES = ("repeats_long", "repeats_short", "sequential")
START = 5.0  # s, on every recording's clock
SPLITS = ("trajectory", "repetition", "session", "subject", "random")


# ---- recordings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Take:
    """One recording: who, when, and (label, samples) of one stretch after the other."""

    subject: int
    day: int
    trajectory: str
    stretches: tuple[tuple[int, int], ...]
    suffix: str

    @property
    def labels(self) -> np.ndarray:
        return np.repeat(*np.array(self.stretches).T)


@dataclass(frozen=True)
class Plan:
    """Recordings, and lengths in samples of the windows' rate; each is written in ms a `part` of a sample longer."""

    takes: tuple[Take, ...]
    rate: float  # Hz
    target: float  # Hz, SAMPLE_RATE
    channels: int
    window: int
    stride: int
    trims: tuple[int, int]
    part: float
    legal: tuple[int, ...]

    def settings(self, folder: Path, **others) -> PreprocessingSettings:
        ms = 1000 / min(self.rate, self.target)
        lengths = dict(zip(("WINDOW_MS", "STRIDE_MS"), (self.window, self.stride), strict=True))
        lengths |= dict(zip(("TRIM_START_MS", "TRIM_END_MS"), self.trims, strict=True))
        lengths = {name: max(0.0, (samples + self.part) * ms) for name, samples in lengths.items()}
        others = {"FILTER": "none", "SAMPLE_RATE": self.target, "LEGAL_VALUES": list(self.legal)} | lengths | others
        return PreprocessingSettings(RAW=[folder / "raw"], DATA_LOCATION=folder / "windows.parquet", **others)

    def name(self, number: int) -> str:
        take = self.takes[number]
        return f"emg_gestures-{take.subject:02}-{take.trajectory}-2018-05-{take.day:02}-11-{number:02}-52-120"

    def emg(self, number: int) -> np.ndarray:
        """(N, C): the first channel counts all samples of the file, the second tells the label."""
        labels, rows = self.takes[number].labels, np.arange(len(self.takes[number].labels))
        emg = (rows[:, None] * (np.arange(self.channels) + 3)) % 97
        emg[:, 0] = 100_000 * number + rows
        emg[:, 1:2] = (100 * labels + rows % 7)[:, None]
        return emg

    def write(self, folder: Path, number: int, suffix: str | None = None) -> Path:
        take = self.takes[number]
        table = raw_table(self.emg(number), take.labels, self.rate, START).assign(subject=float(take.subject))
        folder.mkdir(parents=True, exist_ok=True)
        return write_raw(table, folder / (self.name(number) + (suffix or take.suffix)))


labels = st.sampled_from([-1, 0, 1, 2]) | st.integers(-1, 127)
lengths = st.integers(1, 8) | st.integers(1, 400) | st.integers(1, 400) | st.integers(1000, 2500)
takes = st.builds(
    Take,
    subject=st.integers(1, 3),
    day=st.integers(1, 2),
    trajectory=st.sampled_from(TRAJECTORIES),
    stretches=st.lists(st.tuples(labels, lengths), min_size=1, max_size=8).map(tuple),
    suffix=st.sampled_from([".csv", ".csv", ".csv", ".hdf5", ".zip"]),
)
rates = st.sampled_from([200.0, 1000.0, 2048.0, 5120.0, 5124.07, 6000.0]) | st.integers(200, 6000).map(float)


@st.composite
def plans(draw, resampled: bool = False, takes=takes) -> Plan:
    """`resampled`: SAMPLE_RATE lies below the recordings' rate, else at or above it."""
    rate = draw(rates)
    nice = [target for target in (100.0, 500.0, 1000.0, 2000.0) if target < rate]
    below = st.sampled_from(nice) | st.integers(100, max(100, int(rate) - 1)).map(float)
    at_or_above = st.sampled_from([rate, 2 * rate, 1e6])
    return Plan(
        takes=tuple(draw(st.lists(takes, min_size=1, max_size=3))),
        rate=rate,
        target=draw(below if resampled else at_or_above),
        channels=draw(st.integers(1, 3) | st.just(40)),
        window=draw(st.integers(1, 40) | st.integers(1, 150)),
        stride=draw(st.integers(1, 120)),
        trims=(draw(st.integers(0, 40)), draw(st.integers(0, 40))),
        part=draw(st.floats(-0.3, 0.3)),
        legal=tuple(draw(st.just(()) | st.lists(st.integers(0, 3) | st.integers(0, 127), min_size=1, unique=True))),
    )


def with_a_window(plan: Plan) -> Plan:
    """The same with a stretch that is long enough for a window, unless it is resampled to a few samples."""
    first = plan.takes[0]
    longer = replace(first, stretches=((1, 400), *first.stretches))
    return replace(plan, takes=(longer, *plan.takes[1:]), legal=tuple({*plan.legal, 1}) if plan.legal else ())


@contextmanager
def folder_of(plan: Plan) -> Iterator[Path]:
    """A folder with all recordings of the plan in raw/."""
    with tempfile.TemporaryDirectory(prefix="drawn-") as folder:
        for number in range(len(plan.takes)):
            plan.write(Path(folder) / "raw", number)
        yield Path(folder)


def cut_with(settings: PreprocessingSettings, paths: list[Path] | None = None) -> list[Result]:
    """Preprocessing.py in this process; raises EMGError."""
    found = find_recordings(paths or settings.RAW)
    return preprocess(found, settings, Console(file=io.StringIO(), highlight=False))


# ---- windows to split -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Windows whose samples have no values, made from few numbers; `first` (n,) is where each begins, in samples."""

    people: int
    days: int
    recordings: int
    labels: int
    runs: int  # at the most, in a recording
    windows: int  # at the most, in a run
    window: int  # samples
    stride: int  # samples
    rate: float  # Hz
    drift: float  # how much slower than `rate` the clock of every second recording is; a window file allows 1e-3
    clock: float  # s, where every recording begins
    uneven: bool  # fewer days, recordings and runs for some
    seed: int

    def rows(self) -> Iterator[tuple]:
        rng = np.random.default_rng(self.seed)
        some = (lambda most: int(rng.integers(1, most + 1))) if self.uneven else (lambda most: most)
        for person in range(self.people):
            for day in range(some(self.days)):
                for number in range(some(self.recordings)):
                    yield from self.recording(person + 1, day + 1, number, some, rng)

    def recording(self, person: int, day: int, number: int, some, rng) -> Iterator[tuple]:
        date, trajectory = f"2018-05-{day:02}", TRAJECTORIES[number % 3]
        name = f"emg_gestures-{person:02}-{trajectory}-{date}-11-{number:02}-52-120"
        first, seen = int(rng.integers(0, 50)), {}
        for run in range(some(self.runs)):
            label = int(rng.integers(self.labels)) if self.uneven else run % self.labels
            for _ in range(some(self.windows)):
                yield label, f"{person:02}", date, trajectory, name, seen.get(label, 0), first
                first += self.stride
            seen[label] = seen.get(label, 0) + 1
            first += max(0, self.window - self.stride) + int(rng.integers(0, 3))

    @property
    def made(self) -> tuple[WindowSet, np.ndarray]:
        names = ["TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition", "first"]
        table = pd.DataFrame(list(self.rows()), columns=names)
        first = table.pop("first").to_numpy()
        clocks = {
            name: self.rate * (1 - self.drift * (place % 2)) for place, name in enumerate(table["recording"].unique())
        }
        table["start"] = self.clock + first / table["recording"].map(clocks)
        class_names = {str(label): f"gesture {label}" for label in range(self.labels)}
        metadata = {"window": self.window, "stride": self.stride, "sampling_rate": self.rate, "scale": 0.25}
        metadata |= {"channels": ["a"], "class_names": class_names, "unit": "count", "note": ""}
        metadata["sources"] = [{"name": f"{name}.hdf5", "sampling_rate": rate} for name, rate in clocks.items()]
        metadata["settings"] = {"SAMPLE_RATE": 1e6}  # nothing was resampled
        return WindowSet(np.zeros((len(table), 1, 1), np.int16), table, metadata), first


window_sets = st.builds(
    Drawn,
    people=st.integers(1, 4),
    days=st.integers(1, 3),
    recordings=st.integers(2, 4) | st.integers(1, 4),
    labels=st.integers(2, 4) | st.integers(1, 3),
    runs=st.integers(6, 20) | st.integers(1, 12),
    windows=st.integers(4, 10) | st.integers(1, 10),
    window=st.integers(1, 12) | st.just(5000),
    stride=st.integers(1, 15) | st.integers(4990, 5010),
    drift=st.sampled_from([0.0, 9e-4, -9e-4]),
    rate=st.sampled_from([200.0, 1000.0, 1024.3, 6000.0]),
    clock=st.sampled_from([0.0, 5.3, 1.5e9]),
    uneven=st.booleans(),
    seed=st.integers(0, 1000),
)

shares = st.just(0.3) | st.floats(0.1, 0.5) | st.floats(0.001, 0.999)
split_settings = st.builds(
    Settings,
    SPLIT=st.sampled_from(SPLITS),
    FOLD=st.just(0) | st.integers(0, 2),
    TEST_SHARE=shares,
    VALIDATION_SHARE=shares,
    SAMPLING_RATIO=st.just(1.0) | st.just(1.0) | st.floats(0.001, 1),
    BALANCE=st.sampled_from(["weights", "undersample", "none"]),
    SEED=st.integers(0, 2**31 - 1),
)


@st.composite
def patterns(draw, windows: WindowSet) -> list[str]:
    """Patterns over subject/session/recording: a recording, a day or a person of the file, or nothing."""
    chosen = draw(st.lists(st.sampled_from(sorted(windows.identity.unique())), max_size=4))
    kept = [draw(st.integers(1, 3)) for _ in chosen]
    return ["/".join(name.split("/")[:parts] + ["*"] * (parts < 3)) for name, parts in zip(chosen, kept, strict=True)]


# ---- signals --------------------------------------------------------------------------------------------------


@st.composite
def pieces(draw, samples: int) -> list[slice]:
    """Any cut of so many samples into pieces of one sample or more."""
    cuts = sorted(draw(st.sets(st.integers(1, samples - 1), max_size=12))) if samples > 1 else []
    return [slice(first, last) for first, last in zip([0, *cuts], [*cuts, samples], strict=True)]


def noise(samples: int, channels: int, seed: int) -> np.ndarray:
    """(N, C) float32 counts."""
    return np.rint(np.random.default_rng(seed).normal(100, 200, (samples, channels))).astype(np.float32)
