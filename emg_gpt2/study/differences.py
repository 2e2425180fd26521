"""From the runs of an ablation to a table, a picture and a sentence that says only what the numbers support.

Arms are compared in pairs: the same person, the same seed, the same share of the training part.
"""

import itertools

import numpy as np
import pandas as pd
from scipy.stats import t

from emg_gpt2.study.people import (
    FEWEST_PEOPLE,
    METRICS,
    counted,
    interval,
    over_people,
    read_json,
)

SHUFFLED_TEST = "shuffled_at_test.json"  # in a run's folder: its figures on shuffled test windows
IN_ORDER, AT_TEST, ALWAYS = "in order", "shuffled at test", "shuffled in training and test"
SHUFFLED = (AT_TEST, ALWAYS)
CONTROL = "no-backbone"  # takes a mean over tokens: it loses by cut patches, but hardly by their order
FEWEST_SEEDS = 3  # of fewer, nothing is said on chance
TWINS = {  # the same shape, adapted in the same way, without what the language model learnt
    f"pretrained-{adapt}": (f"random-{adapt}", f"shuffled-{adapt}") for adapt in ("frozen", "norms", "lora", "full")
}
SIMPLER = ("small", "one-block", "no-backbone", "linear")  # what a language model has to beat
METRIC = "balanced_accuracy"


# ---- figures --------------------------------------------------------------------------------------------------


def read_figures(runs: list) -> pd.DataFrame:
    """One row per run, order of patches and person, from the runs' metrics.json and SHUFFLED_TEST."""
    rows = []
    for run in runs:
        metrics, tried = read_json(run.folder / "metrics.json"), run.folder / SHUFFLED_TEST
        about = {"arm": run.arm.name, "share": run.share, "seed": run.seed}
        about |= {"lr": run.settings.LR if run.arm.is_trained else None}
        about |= {name: metrics[name] for name in ("weights", "parameters", "trainable_parameters", "epochs")}
        orders = {ALWAYS if run.shuffled else IN_ORDER: metrics}
        orders |= {AT_TEST: read_json(tried)} if tried.exists() else {}
        for order, found in orders.items():
            people = found["per_subject"].items()
            rows += [about | {"order": order, "subject": subject} | figures for subject, figures in people]
    return pd.DataFrame(rows)


def pick(figures: pd.DataFrame, arm: str, share: float, order: str = IN_ORDER) -> pd.DataFrame:
    """The figures of one arm, share and order, indexed by subject and seed."""
    chosen = (figures["arm"] == arm) & (figures["share"] == share) & (figures["order"] == order)
    return figures[chosen].set_index(["subject", "seed"])[["windows", *METRICS]].sort_index()


def paired_differences(figures: pd.DataFrame, share: float) -> list[dict]:
    """Every paired difference at this share that the sentence may use, with its verdict.

    Of an arm from another one: its lead. Of an arm from itself: what it gains when patches are shuffled. Of a shuffled
    arm from another one: how much more it gains than that one.
    """
    present = list(dict.fromkeys(figures["arm"]))
    backbones = [arm for arm in present if arm not in SIMPLER]
    kept = {arm: pick(figures, arm, share) for arm in present}
    twins = [(arm, twin) for arm, each in TWINS.items() for twin in each]
    pairs = [*twins, *itertools.product(backbones, SIMPLER), ("no-backbone", "linear")]
    found = [(one, IN_ORDER, other, kept[one] - kept[other]) for one, other in pairs if {one, other} <= kept.keys()]
    gains = {order: {arm: pick(figures, arm, share, order) - kept[arm] for arm in present} for order in SHUFFLED}
    found += [(arm, order, arm, gain) for order, each in gains.items() for arm, gain in each.items()]
    if CONTROL in present:
        found += [(arm, ALWAYS, CONTROL, gains[ALWAYS][arm] - gains[ALWAYS][CONTROL]) for arm in backbones]
    named = [
        ({"of": one, "order": order, "from": other, "share": share}, pairs.dropna())
        for one, order, other, pairs in found
    ]
    return [names | over_pairs(difference) for names, difference in named if len(difference)]


def over_pairs(difference: pd.DataFrame) -> dict:
    """Balanced accuracy: mean and interval over people, deviation over seeds, numbers of both, and the verdict."""
    values = difference[METRIC]
    sizes = {"people": values.index.unique("subject").size, "seeds": values.index.unique("seed").size}
    return over_people(difference)[METRIC] | sizes | {"verdict": verdict(values)}


def verdict(differences: pd.Series) -> str:
    """`ahead`, `behind` or `open`, from one difference per subject and seed.

    The 95 % bootstrap interval over people must exclude zero, and the mean of every seed must agree. With fewer than
    three people it is Student's interval over the means of the seeds, which holds for these people alone. With fewer
    than three seeds everything stays open: a single training may differ by chance.
    """
    seeds = differences.unstack("seed").dropna().mean()
    if len(seeds) < FEWEST_SEEDS:
        return "open"
    margin = t.ppf(0.975, len(seeds) - 1) * seeds.sem()
    people = interval(differences.groupby("subject").mean().to_numpy())
    low, high = people or (seeds.mean() - margin, seeds.mean() + margin)
    if low > 0 and seeds.min() > 0:
        return "ahead"
    return "behind" if high < 0 and seeds.max() < 0 else "open"


def results_of_ablation(figures: pd.DataFrame, arms: tuple, facts: dict) -> tuple[dict, pd.DataFrame]:
    """The content of ablation.json, and the rows of ablation.csv: one per run and order of the patches in its test."""
    found = facts | {
        "people": sorted(figures["subject"].unique()),
        "weights": sorted(figures["weights"].unique()),
        "arms": [results_of_arm(arm, figures, facts) for arm in arms],
        "differences": [row for share in facts["shares"] for row in paired_differences(figures, share)],
    }
    keys = [name for name in figures if name not in {"subject", "windows", *METRICS}]
    table = figures.groupby(keys, sort=False, dropna=False)[list(METRICS)].mean().reset_index()
    said = statements(found)
    return found | {"statements": said, "sentence": " ".join(said)}, table


def results_of_arm(arm, figures: pd.DataFrame, facts: dict) -> dict:
    """Its figures per share and order, or why there are none."""
    rows, about = figures[figures["arm"] == arm.name], {"name": arm.name, "title": arm.title}
    if rows.empty:
        reasons = [why for name, why in facts["failed"].items() if arm.name in name]
        return about | {"why_not": facts["missing"].get(arm.name) or f"failed: {reasons[0]}"}
    results = [
        {"share": share, "order": order} | over_people(pick(figures, arm.name, share, order))[METRIC]
        for (share, order), _ in rows.groupby(["share", "order"])
    ]
    seeds = pick(figures, arm.name, facts["shares"][-1])[METRIC].groupby("seed").mean()
    first = rows.iloc[0]
    return about | {
        "weights": first["weights"],
        "parameters": int(first["parameters"]),
        "trainable_parameters": int(first["trainable_parameters"]),
        "lr": facts["rates"][arm.name],
        "lr_at_the_edge": arm.name in facts["at_the_edge"],
        "results": results,
        "per_seed": {str(seed): value for seed, value in seeds.items()},
    }


# ---- the sentence ---------------------------------------------------------------------------------------------

VERBS = {"ahead": "ahead of", "behind": "behind", "open": "not to be told from"}


def statements(found: dict) -> list[str]:
    """What the paired differences support about weights, architecture and time order, and for whom."""
    if len(found["seeds"]) < FEWEST_SEEDS:
        nothing = "With fewer than three seeds no difference can be told from chance: nothing is said."
        return [nothing, *on_missing_weights(found)]
    first = f"{for_whom(found)} {on_weights(found)}"
    return [first, *on_random_backbones(found), *on_smaller_shares(found), *on_order(found)]


def for_whom(found: dict) -> str:
    """The numbers of people and seeds, and what the brackets after a difference hold."""
    people, seeds = len(found["people"]), counted(len(found["seeds"]), "seed")
    shown = "balanced accuracy, in pairs, every comparison by itself"
    if people >= FEWEST_PEOPLE:
        return f"Over {people} people and {seeds} ({shown}; 95 % intervals over people):"
    these = "one person" if people == 1 else f"these {people} people"
    return f"For {these} and {seeds} ({shown}; ± over seeds), and for nobody else:"


def on_missing_weights(found: dict) -> list[str]:
    pretrained = [arm for arm in found["arms"] if arm["name"] in TWINS]
    if any("why_not" not in arm for arm in pretrained):
        return []
    if not pretrained:
        failed = "were not tried"
    else:
        failed = "gave no result" if "failed" in map(reason, pretrained) else "were not available here"
    return [f"Pretrained weights {failed}: these numbers say nothing on them."]


def reason(arm: dict) -> str:
    """Why an arm has no figures, without the details: `weights not available here`."""
    return arm["why_not"].partition(" (")[0].partition(":")[0]


def on_weights(found: dict) -> str:
    """The language model helps where it is ahead of the same shape with random weights and of every simpler arm.

    It does not help where it is behind one of them.
    """
    missing = on_missing_weights(found)
    if missing:
        return missing[0]
    rows = {arm: rivals for arm in TWINS if (rivals := rivals_of(arm, found))}
    verdicts = [{row["verdict"] for row in rivals} for rivals in rows.values()]
    needed = set(SIMPLER) - found["missing"].keys()
    whole = all({*TWINS[arm], *needed} <= {row["from"] for row in rivals} for arm, rivals in rows.items())
    answer = "whether the language model helps cannot be told"
    if any(one == {"ahead"} for one in verdicts) and whole:
        answer = "the language model helps"
    elif all("behind" in one for one in verdicts):
        answer = "the language model does not help"
    return " ".join([f"{answer}.", *(sentence(arm, rivals, found) for arm, rivals in rows.items())])


def rivals_of(arm: str, found: dict, share: float | None = None) -> list[dict]:
    """The arm's differences from others at a share of the training part; None: the largest."""
    share = share or found["shares"][-1]
    pairs = [row for row in found["differences"] if row["share"] == share and row["order"] == IN_ORDER]
    return [row for row in pairs if row["of"] == arm != row["from"]]


def on_smaller_shares(found: dict) -> list[str]:
    """What language weights are worth where the arms learnt from fewer windows."""
    said = []
    for share in found["shares"][:-1]:
        rows = {arm: rivals_of(arm, found, share) for arm in TWINS}
        twins = {arm: [row for row in each if row["from"] in TWINS[arm]] for arm, each in rows.items()}
        told = " ".join(sentence(arm, each, found) for arm, each in twins.items() if each)
        said += [f"With {100 * share:g} % of the training windows: {told}"] if told else []
    return said


def on_random_backbones(found: dict) -> list[str]:
    """Blocks with random weights beside simpler arms, and no backbone beside the linear path."""
    names = ("random-full", "no-backbone")
    return [sentence(arm, rows, found) for arm in names if (rows := rivals_of(arm, found))]


def sentence(arm: str, rows: list[dict], found: dict) -> str:
    """`Random, fully trained is ahead of no backbone (+0.012 ± 0.004) and behind one block (−0.010 ± 0.002).`"""
    titles = {one["name"]: one["title"] for one in found["arms"]}
    groups = {}
    for row in rows:
        groups.setdefault(row["verdict"], []).append(f"{titles[row['from']]} ({amount(row)})")
    parts = [f"{verb} {join(groups[key])}" for key, verb in VERBS.items() if key in groups]
    title = titles[arm]
    return f"{title[0].upper()}{title[1:]} is {', '.join(parts)}."


def on_order(found: dict) -> list[str]:
    """An arm uses the order of patches where shuffling costs it something, and more than the arm without a backbone."""
    whole = [row for row in found["differences"] if row["share"] == found["shares"][-1]]
    rows = {(row["of"], row["from"]): row for row in whole if row["order"] == ALWAYS}
    titles = {arm["name"]: arm["title"] for arm in found["arms"]}
    arms = [arm for arm, other in rows if other == CONTROL != arm]
    if not arms:
        return []
    used = [arm for arm in arms if {rows[arm, arm]["verdict"], rows[arm, CONTROL]["verdict"]} == {"behind"}]
    unused = [arm for arm in arms if arm not in used]
    told = {"the order of the patches is used by": used, "no use of their order can be told for": unused}
    clauses = [
        f"{words} {join([f'{titles[arm]} ({amount(rows[arm, arm])})' for arm in group])}"
        for words, group in told.items()
        if group
    ]
    control = f"{titles[CONTROL]} changes by {amount(rows[CONTROL, CONTROL])}, from the cuts alone"
    return [f"With shuffled patches in training and test, {'; '.join([*clauses, control])}."]


def amount(row: dict) -> str:
    """`+0.012 ± 0.004`: the deviation over seeds; or `+0.012, 0.004 to 0.020`: the interval over people."""
    mean = signed(row["mean"])
    if row["low"] is not None:
        return f"{mean}, {signed(row['low'])} to {signed(row['high'])}"
    return mean if np.isnan(row["std_over_seeds"]) else f"{mean} ± {row['std_over_seeds']:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def join(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
