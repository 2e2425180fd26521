"""Closed-form paths for training: sessions meet a path that was fitted without them, as those of the test part will.

Beside a path that knows its sessions the backbone would learn next to nothing (cross-fitting).
"""

import numpy as np

from EMG_DATA_LOADER import Split
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.session_path import SessionPath
from emg_gpt2.training.new_model import fit_session_path
from emg_gpt2.training.task import Task
from emg_gpt2.windows.reading import WindowSet
from emg_gpt2.windows.sentences import Session, sessions_of

GROUPS = 4  # of sessions, each with a path of its own


def session_groups(windows: WindowSet, split: Split) -> list[np.ndarray]:
    """Rows of the training part, cut into groups of people; of sessions, where the test part has no other people."""
    table, rng = windows.table, np.random.default_rng(0)
    people = table["subject"].to_numpy()
    known = set(people[split.test]) <= set(people[split.train])
    units = table.iloc[split.train].groupby(["subject", "session"] if known else ["subject"]).ngroup().to_numpy()
    names = rng.permutation(np.unique(units))
    return [split.train[np.isin(units, some)] for some in np.array_split(names, min(GROUPS, len(names)))]


def crossed(
    model: EMGForSequenceClassification, task: Task, seed: int
) -> tuple[list[list[Session]], list[SessionPath]]:
    """The sessions of each group, and the path that was fitted to the others.

    One group and no path where the model has none, or a gesture would be missing in the others.
    """
    groups = session_groups(task.windows, task.split)
    others = [np.setdiff1d(task.split.train, rows) for rows in groups]
    complete = all(len(np.unique(task.windows.targets[rows])) == task.classes for rows in others)
    if model.linear is None or not complete:
        return [sessions_of(task.windows, task.split.train)], []
    paths = []
    for rows in others:
        path = SessionPath(model.config)
        fit_session_path(path, model, task, rows, seed)
        paths.append(path.requires_grad_(False))
    return [sessions_of(task.windows, rows) for rows in groups], paths
