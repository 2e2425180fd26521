"""A finished run's test part judged again, with other mixes of gestures in its sessions."""

import logging
from argparse import Namespace

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from EMG_DATA_LOADER import Split
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.base.log import track
from emg_gpt2.model.build import load_model
from emg_gpt2.model.config import start_words
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.reading import TRANSDUCTIVE
from emg_gpt2.settings import Settings
from emg_gpt2.study.explaining import settings_of
from emg_gpt2.study.finished_run import load_split, read_metrics
from emg_gpt2.training.answers import Answers, answers, predict
from emg_gpt2.training.task import session_references
from emg_gpt2.windows.feed import Batch, Feed
from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import CONTEXTS
from EMG_utils import balanced_accuracy

logger = logging.getLogger(__name__)

REST, MUCH, FEW = 0, 0.7, 3  # label of rest; its share where there is much of it; number of gestures where they are few
DRAWS = 5  # of each mix, with the seeds 0 … 4
MIXES = {
    "as recorded": "all windows of the test part",
    "balanced": "as many windows of every gesture",
    "much rest": f"{MUCH:.0%} rest",
    "few gestures": f"{FEW} of the session's gestures",
}
WAYS = CONTEXTS | {"transductive": TRANSDUCTIVE}


def judge_lopsided(args: Namespace, console: Console) -> None:
    """Run → mixes → figures on `console` and in lopsided.json. args: run and data_location. Raises EMGError."""
    settings = settings_of(args.run, args.data_location)
    read_metrics(args.run)
    model = load_model(args.run / "best_model").eval()
    windows, split = load_split(settings, args.run)
    mixes = [name for name in MIXES if name != "much rest" or REST in windows.classes]
    wanted = [(name, draw) for name in mixes for draw in range(1 if name == "as recorded" else DRAWS)]
    rows = []
    for name, draw in track(wanted, "mixes"):
        drawn = draw_mix(windows, split.test, name, np.random.default_rng(draw))
        for way, found in judge(model, windows, drawn, settings).items():
            rows += [{"mix": name, "way": way, "draw": draw} | one for one in figures_of_sessions(windows, found)]
    results = facts(model, windows, split, mixes, args) | {"mixes": summary_of(pd.DataFrame(rows))}
    replace_file(args.run / "lopsided.json", lambda path: write_json(path, results))
    print_table(results, console)
    logger.info(f"{args.run / 'lopsided.json'}")


def draw_mix(windows: WindowSet, rows: np.ndarray, mix: str, rng: np.random.Generator) -> np.ndarray:
    """The rows of a mix, in their order: of every session as many as can be had."""
    drawn = []
    for part in windows.table.iloc[rows].groupby(["subject", "session"]).indices.values():
        drawn.append(_draw_session(rows[part], windows.targets[rows[part]], windows.classes, mix, rng))
    return np.sort(np.concatenate(drawn))


def _draw_session(rows: np.ndarray, targets: np.ndarray, classes: list[int], mix: str, rng) -> np.ndarray:
    order = rng.permutation(len(rows))
    rows, targets, present = rows[order], targets[order], np.unique(targets)
    if mix == "balanced":
        fewest = min((targets == target).sum() for target in present)
        return np.concatenate([rows[targets == target][:fewest] for target in present])
    if mix == "few gestures":
        return rows[np.isin(targets, rng.permutation(present)[:FEW])]
    if mix == "much rest":
        rest = targets == classes.index(REST)
        few = min(rest.sum() / MUCH, (~rest).sum() / (1 - MUCH))  # windows of the mix
        return np.concatenate([rows[rest][: round(MUCH * few)], rows[~rest][: round((1 - MUCH) * few)]])
    return rows


def judge(
    model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray, settings: Settings
) -> dict[str, Answers]:
    """The answers on the windows `rows` in each of the WAYS that the model has."""
    feed, nothing = Feed(windows, model.device), rows[:0]
    own = settings.model_copy(update={"SCALE": "session"})
    references = session_references(windows, Split(nothing, nothing, rows, "", ""), own).to(model.device)

    def inductive(batch: Batch, told: torch.Tensor | None = None, remembered: int | None = None) -> torch.Tensor:
        return model(batch.emg, told=told, remembered=remembered).logits

    def transductive(batch: Batch) -> torch.Tensor:
        return model(batch.emg, references.of(batch.rows)).logits

    found = answers(inductive, feed, windows, rows, model.config.context)
    return found | {"transductive": Answers(rows, predict(transductive, feed, rows))}


def figures_of_sessions(windows: WindowSet, found: Answers) -> list[dict]:
    """Balanced accuracy of each session over the gestures that are in it."""
    table = windows.table.iloc[found.rows][["subject", "session"]].reset_index(drop=True)
    target, predicted = windows.targets[found.rows], found.probabilities.argmax(1)
    return [
        {"subject": subject, "session": session, "balanced_accuracy": balanced_accuracy(target[part], predicted[part])}
        for (subject, session), part in table.groupby(["subject", "session"]).indices.items()
    ]


def summary_of(figures: pd.DataFrame) -> dict:
    """Mix → way → mean over sessions, people and draws, the deviation over draws, and each person's mean."""
    people = figures.groupby(["mix", "way", "draw", "subject"], sort=False)["balanced_accuracy"].mean()
    found = {}
    for (mix, way), part in people.groupby(["mix", "way"], sort=False):
        draws = part.groupby("draw").mean()
        one = {"balanced_accuracy": draws.mean(), "std_over_draws": draws.std() if len(draws) > 1 else None}
        found.setdefault(mix, {})[way] = one | {"per_subject": part.groupby("subject").mean().to_dict()}
    return found


def facts(
    model: EMGForSequenceClassification, windows: WindowSet, split: Split, mixes: list[str], args: Namespace
) -> dict:
    """What was judged how, in words and numbers."""
    return {
        "run": str(args.run),
        "what": {name: MIXES[name] for name in mixes},
        "ways": WAYS,
        "trained_at_scale": model.config.scale,
        "draws": DRAWS,
        "chance": 1 / len(windows.classes),
        "weights": model.config.weights,
        "split_description": split.description,
        "data_note": windows.metadata["note"],
    }


def print_table(results: dict, console: Console) -> None:
    """A row per mix, a column per way."""
    ways = list(next(iter(results["mixes"].values())))
    table = Table("mix", *ways, box=None)
    for mix, found in results["mixes"].items():
        cells = [found[way]["balanced_accuracy"] for way in ways]
        table.add_row(f"{mix}: {results['what'][mix]}", *(f"{cell:.3f}" for cell in cells))
    console.print("Balanced accuracy over the gestures present, test part, mean over sessions and people")
    console.print(table)
    for way in ways:
        console.print(f"{way}: {WAYS[way]}", markup=False, soft_wrap=True)
    about = f"chance {results['chance']:.3f} with every gesture; {start_words(results['weights'])}"
    console.print(f"{about}; {DRAWS} draws. {results['data_note']}".strip(), markup=False, soft_wrap=True)
