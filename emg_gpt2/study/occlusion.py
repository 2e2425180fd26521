"""What a trained model loses when a part of a window comes from another window.

A part is an electrode, a ring of electrodes, a frequency band or a moment. It is replaced by that part of a donor, a
window of another repetition of the same person and day, and the model names the gesture again. There are two kinds of
donors:

    any    a window of any gesture of the day, each equally likely: the part says nothing about the gesture any more
    same   a window of the same gesture: the part says as much as before

    importance(part, gesture) = mean over the gesture's windows of p(same) − p(any),

p being the probability that the model gives to the true gesture. This is permutation importance (Breiman, Machine
Learning 2001, 45; model reliance of Fisher, Rudin and Dominici, JMLR 2019, 20(177)) within a person's day, less the
effect of the replacement itself, which both terms contain. So a part that carries nothing has importance 0, however
unusual the replaced window is for the model; and what other parts say too is not counted. Where electrodes are
redundant, each one's importance is small, and that of their ring shows what they say together. A negative importance is
possible: the model does better when that part misleads it. Probabilities are compared, not their logarithms, of which
one confident error would outweigh a hundred windows.

What is replaced of an electrode is its level, the root mean square of the window: its samples are multiplied. Replacing
the samples, by the donor's, noise or zeros, breaks the synchrony of its neighbours, which the model reads too (log
covariances): on the sample a donor of the same gesture then cost 0.06 to 0.19 of probability, as much as any donor, and
the normalised log covariances, whose RMS is 1.09 for untouched windows, rose to 1.2 to 1.4 (zeros: to 1.6). With levels
a donor of the same gesture costs −0.01 to 0.04 (rings: 0.05 to 0.12), and the RMS is 1.10 (1.14). So the importance of
an electrode does not contain what its synchrony with others says. Bands and moments are replaced in all channels at
once, so their synchrony is the donor's: RMS 1.10, and −0.07 to −0.03, since two windows of a gesture are more typical
of it than one. The samples before the first patch belong to the first moment.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from EMG_DATA_LOADER import cut_rows, read_emg
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.log import track
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.study.people import FEWEST_PEOPLE
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import WindowSet

BAND_EDGES_HZ = (0, 60, 120, 250)  # and Nyquist
MOMENTS = 10  # at the most; several patches make one where there are more
WINDOWS = 480  # to explain, about, evenly from every day and gesture
QUICK_WINDOWS, QUICK_DRAWS = 96, 1  # with --quick: a tenth of the work, and wider intervals
FEWEST_WINDOWS = 3  # of a day's gesture, however many days there are
DRAWS = 2  # donors of a window
BATCH = 64  # windows; larger ones are slower, their patches leave the cache
RESAMPLES = 2000
DAY = ["subject", "session"]
REPETITION = [*DAY, "recording", "TRAJ_GT", "repetition"]

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Part(NamedTuple):
    """A part of a window: `kind` is electrode, ring, band or moment; `change` takes windows and donors (n, T, C)."""

    kind: str
    name: str
    change: Change


# ---- parts of a window ----------------------------------------------------------------------------------------


def parts_of(config: EMGConfig) -> list[Part]:
    """Every electrode, ring (where the channels are a whole number of rings, more than one), band and moment."""
    return [*_electrodes(config), *_rings(config), *_bands(config), *_moments(config)]


def _electrodes(config: EMGConfig) -> list[Part]:
    return [Part("electrode", name, replace_level([place])) for place, name in enumerate(config.channels)]


def _rings(config: EMGConfig) -> list[Part]:
    count, rest = divmod(len(config.channels), config.ring)
    members = np.arange(count * config.ring).reshape(count, config.ring)
    return (
        []
        if rest or count < 2
        else [Part("ring", f"ring {number}", replace_level(list(one))) for number, one in enumerate(members, 1)]
    )


def _bands(config: EMGConfig) -> list[Part]:
    """Bands of the whole window's spectrum; one that holds none of its frequencies is left out."""
    frequencies = np.fft.rfftfreq(config.window, 1 / config.sampling_rate)
    edges = [edge for edge in BAND_EDGES_HZ if edge < config.sampling_rate / 2] + [config.sampling_rate / 2]
    band = np.searchsorted(edges[1:-1], frequencies, side="right")  # of each frequency
    names = [f"{low:.0f}–{high:.0f} Hz" for low, high in pairwise(edges)]
    return [Part("band", names[one], replace_band(np.flatnonzero(band == one))) for one in np.unique(band)]


def _moments(config: EMGConfig) -> list[Part]:
    patches, milliseconds = config.window // config.patch, 1000 / config.sampling_rate
    edges = np.linspace(0, patches, min(patches, MOMENTS) + 1).round().astype(int) * config.patch
    edges = np.append(0, edges[1:] + config.window % config.patch)
    names = [f"{low * milliseconds:.0f}–{high * milliseconds:.0f} ms" for low, high in pairwise(edges)]
    return [
        Part("moment", name, replace_moment(slice(*ends))) for name, ends in zip(names, pairwise(edges), strict=True)
    ]


def replace_level(channels: list[int]) -> Change:
    """Give these channels the donor's RMS about their means; a silent channel stays as it is."""

    def change(emg: torch.Tensor, donors: torch.Tensor) -> torch.Tensor:
        own, other = (signal[..., channels].std(1, correction=0, keepdim=True) for signal in (emg, donors))
        changed = emg.clone()
        changed[..., channels] *= torch.where(own > 0, other / own, 1.0)
        return changed

    return change


def replace_band(bins: np.ndarray) -> Change:
    """Give all channels the donor's Fourier coefficients at these bins of the window."""

    def change(emg: torch.Tensor, donors: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(emg, dim=1)
        spectrum[:, bins] = torch.fft.rfft(donors, dim=1)[:, bins]
        return torch.fft.irfft(spectrum, n=emg.shape[1], dim=1)

    return change


def replace_moment(samples: slice) -> Change:
    """Give all channels the donor's samples of this slice."""

    def change(emg: torch.Tensor, donors: torch.Tensor) -> torch.Tensor:
        changed = emg.clone()
        changed[:, samples] = donors[:, samples]
        return changed

    return change


# ---- windows and donors ---------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """Rows of n windows and of their donors: rows (n,), same and any (draws, n)."""

    rows: np.ndarray
    same: np.ndarray
    any: np.ndarray


def choose_windows(windows: WindowSet, rows: np.ndarray, seed: int, quick: bool = False) -> Chosen:
    """Windows to explain and their donors, out of `rows`. Raises EMGError where no window has a donor."""
    about, draws = (QUICK_WINDOWS, QUICK_DRAWS) if quick else (WINDOWS, DRAWS)
    rng = np.random.default_rng(seed)
    table = windows.table.iloc[rows].assign(row=rows)
    table = table.assign(number=table.groupby(REPETITION).ngroup())
    repetitions = table.groupby([*DAY, "TRAJ_GT"])["number"].transform("nunique")
    table = table[repetitions > 1]
    if table.empty:
        raise EMGError("no gesture has two repetitions on a day of this part, so none can take the other's place")
    pools = {day: _pools(one) for day, one in table.groupby(DAY)}
    chosen = _sample_evenly(table, about, rng)
    donors = [[_sample_donors(chosen, pools, rng, same) for _ in range(draws)] for same in (True, False)]
    return Chosen(np.array(chosen["row"]), *map(np.stack, donors))


def _pools(day: pd.DataFrame) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Label → rows of a day's windows and the numbers of their repetitions."""
    return {label: (one["row"].to_numpy(), one["number"].to_numpy()) for label, one in day.groupby("TRAJ_GT")}


def _sample_evenly(table: pd.DataFrame, about: int, rng: np.random.Generator) -> pd.DataFrame:
    """The same number from every day and gesture, `about` so many in all, or all that there are."""
    groups = table.groupby([*DAY, "TRAJ_GT"])
    each = max(FEWEST_WINDOWS, about // groups.ngroups)
    sampled = [one.iloc[rng.permutation(len(one))[:each]] for _, one in groups]
    return pd.concat(sampled).sort_values("row")


def _sample_donors(chosen: pd.DataFrame, pools: dict, rng: np.random.Generator, same: bool) -> np.ndarray:
    """(n,) rows of a donor for each window, from another repetition of its day."""
    donors = []
    for row in chosen.itertuples():
        pool = pools[row.subject, row.session]
        rows, numbers = pool[row.TRAJ_GT if same else rng.choice(list(pool))]
        donors.append(rng.choice(rows[numbers != row.number]))
    return np.array(donors)


# ---- effects --------------------------------------------------------------------------------------------------


class Effects(NamedTuple):
    """Of n windows: the true gesture's probability and whether the model names it (0 or 1), mean over the draws.

    untouched (2, n): of the whole window; same and any (parts, 2, n): with a part of a donor.
    """

    untouched: np.ndarray
    same: np.ndarray
    any: np.ndarray


@torch.inference_mode()
def measure_effects(
    model: EMGForSequenceClassification,
    task: Task,
    chosen: Chosen,
    parts: list[Part],
    advance: Callable[[], None],
) -> Effects:
    """Replace every part of every chosen window; `advance` is called after each part of each batch."""
    windows, batches = task.windows, []
    for places in cut_rows(np.arange(len(chosen.rows)), BATCH):
        rows = chosen.rows[places]
        emg, named = read_emg(windows, rows), (model, task.references.of(torch.from_numpy(rows)), windows.targets[rows])
        donors = [[read_emg(windows, draw[places]) for draw in draws] for draws in (chosen.same, chosen.any)]
        replaced = []
        for part in parts:
            replaced.append([np.mean([_score(part.change(emg, one), *named) for one in draws], 0) for draws in donors])
            advance()
        batches.append(Effects(_score(emg, *named), *np.stack(replaced, 1)))
    return Effects(*(np.concatenate(one, -1) for one in zip(*batches, strict=True)))


def _score(emg: torch.Tensor, model: EMGForSequenceClassification, reference, targets: np.ndarray) -> np.ndarray:
    """(2, n): the true gesture's probability, and whether it is the highest."""
    probabilities = model(emg=emg, reference=reference).logits.softmax(1).numpy()
    return np.stack([probabilities[np.arange(len(targets)), targets], probabilities.argmax(1) == targets])


@torch.inference_mode()
def filter_use(model: EMGForSequenceClassification, task: Task, chosen: Chosen, effects: Effects) -> np.ndarray:
    """(F,) what the true gesture's probability loses, mean over the gestures, without one learned filter.

    Its log powers, of all channels and patches, are then fixed at their mean over the training part. The size of the
    weights that read a filter would say less: after few epochs they are still near their random start.
    """
    tokens, targets = model.tokenisers["power"], task.windows.targets[chosen.rows]
    gamma, count, use = tokens.norm.weight, len(tokens.filters), []
    learned = gamma.clone()
    for number in track(range(count), "learned filters"):
        gamma[number::count] = 0.0  # (C·F,), filter after filter for each channel
        loss = effects.untouched[0] - _untouched(model, task, chosen)[0]
        use.append(np.mean([loss[targets == index].mean() for index in np.unique(targets)]))
        gamma.copy_(learned)
    return np.array(use)


def _untouched(model: EMGForSequenceClassification, task: Task, chosen: Chosen) -> np.ndarray:
    """(2, n) as `Effects.untouched`."""
    windows, references, parts = task.windows, task.references, cut_rows(chosen.rows, BATCH)
    scores = [
        _score(read_emg(windows, rows), model, references.of(torch.from_numpy(rows)), windows.targets[rows])
        for rows in parts
    ]
    return np.concatenate(scores, -1)


# ---- figures --------------------------------------------------------------------------------------------------


class Importance(NamedTuple):
    """Of every gesture and part: importance, its 95 % interval, and drop of the recall, each (K + 1, parts).

    The last row is the mean over the gestures: there the drop is that of balanced accuracy. NaN where a gesture has no
    window, or the interval would be over a single repetition. replacement (parts,): what the replacement alone costs,
    untouched − same.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    recall_drop: np.ndarray
    replacement: np.ndarray


def importance_of(windows: WindowSet, chosen: Chosen, effects: Effects) -> tuple[Importance, str]:
    """The figures, and what the interval is over: `people`, or `repetitions` where there are too few people."""
    table, targets = windows.table.iloc[chosen.rows], windows.targets[chosen.rows]
    people = table["subject"].nunique() >= FEWEST_PEOPLE
    units = table.groupby(["subject"] if people else REPETITION).ngroup().to_numpy()
    gain = effects.same - effects.any  # (parts, 2, n)
    classes = [targets == index for index in range(len(windows.classes))]
    value, recall = (_over_gestures([_mean(gain[:, which, of]) for of in classes]) for which in (0, 1))
    resampled = _over_gestures([resample(gain[:, 0, of], units[of]) for of in classes])  # (K + 1, resamples, parts)
    low, high = np.quantile(resampled, (0.025, 0.975), axis=1)
    replacement = _over_gestures([_mean((effects.untouched - effects.same)[:, 0, of]) for of in classes])[-1]
    return Importance(value, low, high, recall, replacement), "people" if people else "repetitions"


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(-1) if values.shape[-1] else np.full(len(values), np.nan)


def _over_gestures(each: list[np.ndarray]) -> np.ndarray:
    """One row per gesture, and the mean over them as the last."""
    return np.stack([*each, np.nanmean(each, axis=0)])


def resample(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Bootstrap means (RESAMPLES, parts) of (parts, n) values over the units, such as people, of the n windows.

    The seed is the same for every gesture, so that the same people are drawn for all. NaN for fewer than two units.
    """
    codes = np.unique(units, return_inverse=True)[1]
    count = codes.max(initial=-1) + 1
    if count < 2:
        return np.full((RESAMPLES, len(values)), np.nan)
    sums, sizes = np.zeros((count, len(values))), np.bincount(codes)
    np.add.at(sums, codes, values.T)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # (RESAMPLES, units)
    return drawn @ sums / (drawn @ sizes)[:, None]
