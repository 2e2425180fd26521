"""Verdicts in a sentence: whether one classifier is better than another beyond chance, and where the errors are.

Windows of one repetition are alike, so their number does not make a figure more certain. The unit is the repetition,
or what is held out for validation: a recording, a day or a person.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

from emg_gpt2.results.reading import FinishedRun, read_run

logger = logging.getLogger(__name__)

UNITS = {  # what is held out, in words, and the columns that tell two apart
    "repetition": ["recording", "TRAJ_GT", "repetition"],
    "recording": ["subject", "session", "recording"],
    "day": ["subject", "session"],
    "person": ["subject"],
}
FEWEST_UNITS = 6  # the sign-flip test of fewer has no p below 0.05
LEVEL = 0.05  # of the test
RESAMPLES = 1999
FEWEST_ERRORS = 10  # windows, from which the share of a gesture is told
PLURALS = {"person": "people"}


class Comparison(NamedTuple):
    """Balanced accuracies of two classifiers on the same windows, and whether they differ beyond chance.

    words: `better`, `worse`, `no difference beyond chance` or `too few … to say (count)`, of the first from the second
    p: of a sign-flip test over `count` units, None where they are too few
    """

    first: float
    second: float
    words: str
    p: float | None
    unit: str
    count: int

    @property
    def sentence(self) -> str:
        """Both figures, the verdict and its test."""
        tested = "" if self.p is None else f"; p = {self.p:.2g}, sign-flip test over {self.count} {plural(self.unit)}"
        return f"balanced accuracy {self.first:.3f} beside {self.second:.3f}: {self.words}{tested}"


def plural(unit: str) -> str:
    """`repetitions`, `people`."""
    return PLURALS.get(unit, f"{unit}s")


def compare(table: pd.DataFrame, first: np.ndarray, second: np.ndarray, unit: str = "repetition") -> Comparison:
    """Compare the labels (n,) that two classifiers predict for the windows of `table`, in balanced accuracy.

    Under the hypothesis of no difference the two may change places in every unit, which changes the sign of what the
    unit adds to the difference (Fisher's randomisation test; Good, Permutation tests, 2000, section 3.2).
    """
    weights = 1 / table.groupby("TRAJ_GT")["TRAJ_GT"].transform("size") / table["TRAJ_GT"].nunique()
    hits = [weights * (table["TRAJ_GT"] == labels) for labels in (first, second)]
    added = (hits[0] - hits[1]).groupby([table[column] for column in UNITS[unit]]).sum().to_numpy()
    reached, difference = [float(one.sum()) for one in hits], added.sum()
    if len(added) < FEWEST_UNITS:
        return Comparison(*reached, f"too few {plural(unit)} to say ({len(added)})", None, unit, len(added))
    p = sign_flip_p(added)
    words = "no difference beyond chance" if p >= LEVEL else "better" if difference > 0 else "worse"
    return Comparison(*reached, words, p, unit, len(added))


def sign_flip_p(values: np.ndarray) -> float:
    """Two-sided p of a sum of values with random signs; exact for few values."""
    values = values[np.abs(values) > 1e-12]  # a sign of nothing changes nothing
    if len(values) < 2:  # with both signs a single one is as far from zero
        return 1.0
    rng, total = np.random.default_rng(0), lambda one, axis: one.sum(axis)
    options = {"permutation_type": "samples", "n_resamples": RESAMPLES, "batch": 1000, "rng": rng}
    return float(permutation_test((values,), total, vectorized=True, **options).pvalue)


# ---- of a run ---------------------------------------------------------------------------------------------------


def verdicts_of(run: FinishedRun) -> list[str]:
    """What the backbone adds to the linear path and to the best baseline, and where the errors are, on validation.

    Empty for a run without validation.parquet, which older ones do not have.
    """
    if run.validation is None:
        return []
    unit = held_out_unit(run)
    linear = over_linear_path(run.validation, unit, run.settings.get("BLOCKS"))
    return [linear, over_baselines(run, unit), where_errors_are(run.validation, run.metrics)]


def log_verdicts(folder: Path) -> None:
    """Log what `verdicts_of` says of a finished run, a line each. Raises EMGError."""
    for one in verdicts_of(read_run(folder)):
        logger.info(f"on the validation part: {one}")


def held_out_unit(run: FinishedRun) -> str:
    """The largest unit that training and validation part do not share; the repetition where they share all."""
    parts = dict(list(run.split.groupby("part"))) if run.split is not None else {}
    for unit in reversed(UNITS):
        keys = [
            set(map(tuple, parts[part][UNITS[unit]].to_numpy())) for part in ("train", "validation") if part in parts
        ]
        if len(keys) == 2 and not set.intersection(*keys):
            return unit
    return "repetition"


def over_linear_path(validation: pd.DataFrame, unit: str, blocks: int | None) -> str:
    """What the model reaches beside its linear path alone, in a sentence; blocks: of the backbone."""
    if "linear_path" not in validation:
        return "the model has no linear path to compare it with"
    rest = "tokens and head without a backbone add" if blocks == 0 else "the backbone adds"
    found = compare(validation, validation["predicted"], validation["linear_path"], unit)
    return f"{rest} {found.first - found.second:+.3f} to the linear path ({found.sentence})"


def over_baselines(run: FinishedRun, unit: str) -> str:
    """What the model reaches beside the baseline that is best on the validation part, in a sentence."""
    best = (run.baselines or {}).get("validation")
    if not best:
        return f"no baseline was run beside it (python -m emg_gpt2 baselines --add-to {run.folder})"
    found = compare(run.validation, run.validation["predicted"], np.array(best["predicted"]), unit)
    level = f", {best['level']}" if "level" in best else ""
    name = f"{best['classifier']} on {best['features']}{level}, the best of {best['tried']} baselines"
    return f"the model is {found.first - found.second:+.3f} from {name} ({found.sentence})"


def where_errors_are(table: pd.DataFrame, metrics: dict) -> str:
    """Whether one gesture dominates the errors, in a sentence.

    It does where its windows, or those that are predicted as it, are more than half of all errors, or more than a
    quarter and twice its share of the windows.
    """
    errors, names = table[table["TRAJ_GT"] != table["predicted"]], metrics["classes"]
    if len(errors) < FEWEST_ERRORS:
        return f"{len(errors)} of {len(table)} windows are wrong: too few to say where the errors are"
    shares = table["TRAJ_GT"].value_counts(normalize=True)
    for column, other, words in (("TRAJ_GT", "predicted", "of"), ("predicted", "TRAJ_GT", "predicted as")):
        found = errors[column].value_counts(normalize=True)
        code, share, expected = found.index[0], found.iloc[0], shares.get(found.index[0], 0)
        if share > max(0.5, expected) or share > max(0.25, 2 * expected):
            mostly = errors.loc[errors[column] == code, other].value_counts()
            pair = f"{'predicted as' if column == 'TRAJ_GT' else 'of'} {names[str(mostly.index[0])]}"
            return (
                f"{100 * share:.0f} % of the {len(errors)} errors are windows {words} {names[str(code)]}, which has "
                f"{100 * expected:.0f} % of the windows; {mostly.iloc[0]} of these {mostly.sum()} are {pair}"
            )
    return f"no gesture dominates the {len(errors)} errors"
