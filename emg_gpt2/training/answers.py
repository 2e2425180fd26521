"""What a model with context answers: on a window by itself, after the windows before it, and after a calibration."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from EMG_DATA_LOADER import EVALUATION_BATCH, cut_rows
from emg_gpt2.base.log import track
from emg_gpt2.training.device import has_share, own_share
from emg_gpt2.windows.feed import Feed
from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import Question, questions

LogitsOf = Callable[..., torch.Tensor]  # batch (and with a context told (1, N), remembered) → logits (B, K)


class Answers(NamedTuple):
    """Probabilities (n, K) of the windows `rows` (n,), which are in the order of the file."""

    rows: np.ndarray
    probabilities: np.ndarray


def answers(logits_of: LogitsOf, feed: Feed, windows: WindowSet, rows: np.ndarray, context: int) -> dict[str, Answers]:
    """The answers on the windows `rows` in each of CONTEXTS; of a model without context those of `none`."""
    if not context:
        return {"none": Answers(rows, predict(logits_of, feed, rows))}
    return {name: answer(logits_of, feed, asked) for name, asked in questions(windows, rows, context).items()}


def usual_context(found: dict[str, Answers]) -> str:
    """The one of CONTEXTS whose figures stand for the model."""
    return "unlabelled" if "unlabelled" in found else "none"


@torch.no_grad()  # inference mode would lock the buffers that processes share
def predict(logits_of: LogitsOf, feed: Feed, rows: np.ndarray) -> np.ndarray:
    """(n, K) probabilities of the windows `rows`; logits_of: a batch's logits (B, K). Each process takes a share."""
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    parts, found = cut_rows(rows, EVALUATION_BATCH * processes), []
    for part, batch in track(zip(parts, feed(map(own_share, parts)), strict=True), "predicting", len(parts)):
        logits = logits_of(batch)
        counting = logits if has_share(part) else logits[:0]
        found.append(counting.softmax(1).float().cpu().numpy())
    found = gather_object(found)  # the parts of the first process, then those of the second
    return np.concatenate([one for first in range(len(parts)) for one in found[first :: len(parts)]])


@torch.no_grad()
def answer(logits_of: LogitsOf, feed: Feed, asked: list[Question]) -> Answers:
    rows, found = [], []
    read = feed(question.rows for question in asked)
    for question, batch in track(zip(asked, read, strict=True), "predicting", len(asked)):
        told = torch.from_numpy(question.told)[None].to(feed.device)
        logits = logits_of(batch, told, question.remembered)[question.first :]
        rows.append(question.rows[question.first :])
        found.append(logits.softmax(1).float().cpu().numpy())
    rows = np.concatenate(rows)
    order = rows.argsort()
    return Answers(rows[order], np.concatenate(found)[order])
