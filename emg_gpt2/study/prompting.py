"""How much a model has to read of a person it has never met, and how many people it has to learn from.

Every number of training people, fold and seed is one run of main.py. Each one's model judges the windows of unseen
people after contexts of several sizes and mixes, which are drawn from the first repetition of each gesture; the later
repetitions are judged.
"""

import glob
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from EMG_DATA_LOADER import split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file
from emg_gpt2.model.build import load_model
from emg_gpt2.results.figures import use_format
from emg_gpt2.settings import Settings, settings_of_main
from emg_gpt2.study.folds import folds_of
from emg_gpt2.study.lopsided import FEW, MUCH, REST
from emg_gpt2.study.options import PROMPTED, PromptSettings
from emg_gpt2.study.runs import Run, carry_out, check_identity, finished, identity, is_finished, locked, train_and_test
from emg_gpt2.study.showing_prompts import results_of_prompts, write_prompts
from emg_gpt2.training.answers import answer
from emg_gpt2.training.task import make_task
from emg_gpt2.training.tracker import require_tracker
from emg_gpt2.windows.feed import Batch, Feed
from emg_gpt2.windows.reading import WindowSet, load_windows
from emg_gpt2.windows.sentences import UNTOLD, Question, Session, sessions_of
from EMG_utils import balanced_accuracy

logger = logging.getLogger(__name__)

JUDGED = 256  # windows of a session, evenly spread
MIX_SECONDS = 10.0  # of the contexts that are lopsided
FILE = "prompts.csv"  # in a run's folder: its figures with every context


class Context(NamedTuple):
    """What is read before the windows that are judged.

    kind: `unlabelled` or `calibrated`; mix: of the gestures; amount: s of signal, or windows of each gesture
    """

    kind: str
    mix: str
    amount: float


@dataclass(frozen=True)
class PromptRun(Run):
    """One fold, number of training people and seed."""

    people: int
    seed: int

    @property
    def files(self) -> tuple[str, ...]:
        return *super().files, FILE


def study_prompts(given: PromptSettings, console: Console) -> dict:
    """Data → runs → contexts → the content of prompts.json. console: of the log. Raises EMGError."""
    settings = settings_of_main(given, PROMPTED, "prompt").model_copy(update={"SPLIT": "subject"})
    if not settings.CONTEXT:
        raise EMGError("CONTEXT = 0: the model reads no context; set --context to 32 or more")
    require_tracker(settings)
    use_format(given.FIGURE_FORMAT)
    windows = load_windows(settings)
    contexts = contexts_of(windows, settings, given)
    runs = list(plan(windows, settings, given))
    with locked(given.OUT):
        asked = {"SECONDS": given.SECONDS, "SHOTS": given.SHOTS}
        check_identity(given.OUT, identity(settings, windows, PROMPTED) | asked)
        failed = carry_out(runs, partial(finish, windows=windows, contexts=contexts, console=console), console)
        done = finished(runs, failed)
        figures = pd.concat([pd.read_csv(run.folder / FILE, dtype={"subject": str}) for run in done])
        found = results_of_prompts(figures, settings, windows) | {"failed": failed}
        write_prompts(found, figures, given.OUT)
    return found


def plan(windows: WindowSet, settings: Settings, given: PromptSettings) -> Iterator[PromptRun]:
    """The runs: in each fold the first people of one random order learn. Raises EMGError where they are too few."""
    everybody = sorted(windows.table["subject"].unique())
    folds, _ = folds_of(windows.table, settings, "none")
    for number, fold in enumerate(folds[: given.FOLDS or len(folds)]):
        split = split_windows(windows, settings.model_copy(update=fold.changes))
        held = set(windows.table["subject"].to_numpy()[split.test])
        others = np.random.default_rng(number).permutation([one for one in everybody if one not in held])
        if max(given.PEOPLE) > len(others):
            raise EMGError(f"PEOPLE = {max(given.PEOPLE)}: fold {number} leaves {len(others)} people to learn from")
        for people in given.PEOPLE:
            named = {"TRAIN_ON": patterns(others[:people]), "TEST_ON": patterns(sorted(held))}
            for seed in given.SEEDS:
                folder = given.OUT / "runs" / f"fold{number}-people{people}-seed{seed}"
                update = named | {"SEED": seed, "RUN_DIR": folder}
                yield PromptRun(folder, settings.model_copy(update=update), people, seed)


def patterns(people: list[str]) -> list[str]:
    """Patterns over subject/session/recording for all that these people recorded."""
    return [f"{glob.escape(one)}/*" for one in people]


def contexts_of(windows: WindowSet, settings: Settings, given: PromptSettings) -> list[Context]:
    """Nothing, and all contexts that the model can read."""
    stride = windows.metadata["stride"] / windows.metadata["sampling_rate"]
    most, classes = settings.CONTEXT * stride, len(windows.classes)
    found = [Context("unlabelled", "balanced", 0.0)]
    found += [Context("unlabelled", "balanced", seconds) for seconds in given.SECONDS if seconds <= most]
    found += [Context("unlabelled", mix, MIX_SECONDS) for mix in ("much rest", "few gestures") if most >= MIX_SECONDS]
    return found + [Context("calibrated", "balanced", n) for n in given.SHOTS if n * classes <= settings.CONTEXT]


# ---- one run ----------------------------------------------------------------------------------------------------


def finish(run: PromptRun, windows: WindowSet, contexts: list[Context], console: Console) -> bool:
    """Train and test, and judge with every context, unless that is done; returns whether anything was left to do."""
    split = split_windows(windows, run.settings)
    if is_finished(run, windows, split):
        return False
    if not (run.folder / "report.html").is_file():
        train_and_test(run, make_task(windows, split, run.settings), console)
    figures = judge(run, windows, split.test, contexts)
    replace_file(run.folder / FILE, lambda path: figures.to_csv(path, index=False))
    return True


@torch.no_grad()
def judge(run: PromptRun, windows: WindowSet, rows: np.ndarray, contexts: list[Context]) -> pd.DataFrame:
    """Balanced accuracy of each session after each of the contexts."""
    model = load_model(run.folder / "best_model").eval()
    feed, sessions, rng = Feed(windows, model.device), sessions_of(windows, rows), np.random.default_rng(run.seed)

    def logits_of(batch: Batch, told: torch.Tensor, remembered: int) -> torch.Tensor:
        return model(batch.emg, told=told, remembered=remembered).logits

    found = []
    for context in contexts:
        for session in sessions:
            asked = question(session, context, windows, rng)
            answers = answer(logits_of, feed, [asked])
            reached = balanced_accuracy(windows.targets[answers.rows], answers.probabilities.argmax(1))
            about = windows.table.iloc[asked.rows[0]][["subject", "session"]].to_dict()
            found.append(about | context._asdict() | {"balanced_accuracy": reached})
    return pd.DataFrame(found).assign(people=run.people, seed=run.seed)


def question(session: Session, context: Context, windows: WindowSet, rng: np.random.Generator) -> Question:
    """A context drawn from the first repetitions of a session's gestures, and JUDGED windows of the later ones."""
    several = {target: repetitions for target, repetitions in session.items() if len(repetitions) > 1}
    later = np.concatenate([np.concatenate(repetitions[1:]) for repetitions in several.values()])
    judged = later[np.linspace(0, len(later) - 1, min(JUDGED, len(later))).round().astype(int)]
    first = {target: repetitions[0] for target, repetitions in several.items()}
    if context.kind == "calibrated":
        read = np.concatenate([rng.permutation(rows)[: int(context.amount)] for rows in first.values()])
        told = windows.targets[read]
    else:
        stride = windows.metadata["stride"] / windows.metadata["sampling_rate"]
        read = draw_mix(first, context.mix, round(context.amount / stride), windows, rng)
        told = np.full(len(read), UNTOLD)
    rows = np.concatenate([read, judged]).astype(int)
    return Question(rows, np.concatenate([told, np.full(len(judged), UNTOLD)]).astype(int), len(read), len(read))


def draw_mix(
    first: dict[int, np.ndarray], mix: str, count: int, windows: WindowSet, rng: np.random.Generator
) -> np.ndarray:
    """`count` windows of the gestures' first repetitions in random order; some twice, where there are too few."""
    gestures = rng.permutation(list(first))
    if mix == "few gestures":
        gestures = gestures[:FEW]
    of_each = np.bincount(np.arange(count) % len(gestures), minlength=len(gestures))
    if mix == "much rest" and REST in windows.classes:
        rest = gestures == windows.classes.index(REST)
        of_each = np.where(rest, round(MUCH * count), round((1 - MUCH) * count / max(1, len(gestures) - 1)))
    drawn = [rng.choice(first[one], many, many > len(first[one])) for one, many in zip(gestures, of_each, strict=True)]
    return rng.permutation(np.concatenate(drawn))
