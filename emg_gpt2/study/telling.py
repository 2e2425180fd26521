"""A calibration for a model with context: told in a prompt, or learnt in gradient steps, for comparison."""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from EMG_DATA_LOADER import cut_rows, read_emg
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.study.adapting import mean_loss
from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import AT_ONCE, UNTOLD, Question, first_repetitions, questions

STEPS, BATCH, LR = 100, 64, 1e-4  # of the fine-tuning


@dataclass(frozen=True)
class Tuned:
    """A copy of a model after gradient steps on a calibration.

    loss, loss_before: cross entropy (nat), mean over the calibration repetitions, of the copy and of the prompted
        model, each on repetitions that it was not given; None where there is one of each gesture
    """

    model: EMGForSequenceClassification
    steps: int
    loss: float | None
    loss_before: float | None

    @property
    def is_better(self) -> bool:
        """Whether its loss is lower; False where that cannot be judged."""
        return self.loss is not None and self.loss < self.loss_before


def tune(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray, repetitions: np.ndarray
) -> Tuned:
    """Fine-tune a model on the windows `calibration`, each by itself; repetitions (n,): each one's place."""
    targets, places, losses = windows.targets[calibration], np.unique(repetitions), (None, None)
    if len(places) > 1:
        held = np.zeros((2, len(calibration), len(model.config.class_codes)))
        for place in places:
            given, left = calibration[repetitions != place], calibration[repetitions == place]
            held[0, repetitions == place] = alone(fine_tuned(model, windows, given), windows, left)
            held[1, repetitions == place] = prompted(model, windows, given, left)
        losses = (mean_loss(logits, targets, repetitions) for logits in held)
    return Tuned(fine_tuned(model, windows, calibration), STEPS, *losses)


def fine_tuned(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray
) -> EMGForSequenceClassification:
    """A copy after STEPS steps on single windows, in which every gesture comes as often; the linear path stays."""
    tuned, rng = copy.deepcopy(model), np.random.default_rng(0)
    tuned.requires_grad_(True)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=LR)
    emg, targets = read_emg(windows, calibration), windows.targets[calibration]
    share = 1 / np.bincount(targets)[targets] / len(np.unique(targets))
    for _ in range(STEPS):
        drawn = torch.from_numpy(rng.choice(len(targets), BATCH, p=share))
        optimizer.zero_grad()
        tuned(emg=emg[drawn], labels=torch.from_numpy(targets[drawn.numpy()]).long()).loss.backward()
        optimizer.step()
    return tuned


# ---- logits -----------------------------------------------------------------------------------------------------


def alone(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """Logits (n, K) of the windows `rows`, in rising order, each by itself."""
    return answered(model, windows, questions_after(windows, rows[:0], rows))


def after_others(model: EMGForSequenceClassification, windows: WindowSet, rows: np.ndarray) -> np.ndarray:
    """Logits (n, K) of the windows `rows`, in rising order, each from those of them that came before it."""
    return answered(model, windows, questions(windows, rows, model.config.context)["unlabelled"])


def prompted(
    model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Logits (n, K) of the windows `rows`, in rising order, each after the calibration with its gestures."""
    return answered(model, windows, questions_after(windows, windows_to_tell(model, windows, calibration), rows))


def windows_to_tell(model: EMGForSequenceClassification, windows: WindowSet, calibration: np.ndarray) -> np.ndarray:
    """Those of the windows `calibration` that fit into the context: as many of each gesture, evenly spread."""
    targets = windows.targets[calibration]
    session = {int(target): [calibration[targets == target]] for target in np.unique(targets)}
    return first_repetitions(session, model.config.context, fewest=1)[0]


def questions_after(windows: WindowSet, told: np.ndarray, rows: np.ndarray) -> list[Question]:
    """The windows `rows`, each as if it came next after the windows `told` and their gestures."""
    count, gestures = len(told), windows.targets[told]
    return [
        Question(np.concatenate([told, some]), np.append(gestures, np.full(len(some), UNTOLD)), count, count)
        for some in cut_rows(rows, AT_ONCE)
    ]


@torch.no_grad()
def answered(model: EMGForSequenceClassification, windows: WindowSet, asked: list[Question]) -> np.ndarray:
    """Logits (n, K) of all windows that are judged, in the order of their rows."""
    rows, found = [], []
    for question in asked:
        told = torch.from_numpy(question.told)[None].long()
        logits = model(emg=read_emg(windows, question.rows), told=told, remembered=question.remembered).logits
        rows.append(question.rows[question.first :])
        found.append(logits[question.first :].numpy())
    return np.concatenate(found)[np.concatenate(rows).argsort()]
