"""The validation loop (SWEEP): trials of settings, kept in a study that processes and machines can share.

The study is a journal, a file that optuna only ever appends to: unlike SQLite it is safe in a shared folder.
"""

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import optuna
import pandas as pd
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import make_folder, remove_lock, replace_file
from emg_gpt2.base.log import time_to_go
from emg_gpt2.results.figures import draw_sweep
from emg_gpt2.settings import Role, Settings
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import Task
from EMG_utils import fit

logger = logging.getLogger(__name__)

WIDE: dict[str, BaseDistribution] = {  # what SWEEP_SPACE = wide tries; any setting of model and training may be added
    "LR": FloatDistribution(1e-4, 1e-2, log=True),
    "WEIGHT_DECAY": FloatDistribution(1e-3, 0.5, log=True),
    "DROPOUT": FloatDistribution(0.0, 0.4),
    "BATCH_SIZE": CategoricalDistribution([32, 64, 128, 256]),
    "NOISE": FloatDistribution(0.0, 1.0),
    "BLOCKS": CategoricalDistribution([0, 1, 2, 4, 6]),
    "NUM_LAYERS": CategoricalDistribution([0, -1, -9]),
    "TOKENS": CategoricalDistribution(["covariance,power", "covariance,bands", "power", "covariance"]),
    "PATCH_MS": CategoricalDistribution([25.0, 50.0]),
    "FILTERS": CategoricalDistribution([8, 16, 32]),
}
UNPRUNED = 5  # trials that run to the end before any is compared with their median
FEWEST = 8  # complete trials, and more than settings; importances from fewer are chance


def search(task: Task, settings: Settings, run: Path) -> Settings:
    """Try settings for NUM_EPOCHS_FOR_VALIDATION epochs each, as SWEEP_SPACE says; returns the best as settings.

    The validation part alone decides. sweep.csv and sweep.png in `run` show every trial of the study, those of other
    processes too. Raises EMGError where the study belongs to something else, or every trial fails.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = SharedStudy(settings, identity(task, settings, run), run)
    began, first = time.monotonic(), None
    for trial in study.trials():
        first = trial.number if first is None else first
        left = time_to_go(time.monotonic() - began, trial.number - first, max(1, study.total - trial.number))
        logger.info(f"trial {trial.number + 1}: {listed(trial.params)}{left}")
        write_table(study, run)
        tried = with_params(settings, trial.params)
        study.run(trial, partial(train, trial, task, tried))
        write_table(study, run)
    table, best = write_table(study, run), study.best()
    study.close()
    origin = f"{settings.DATA_LOCATION.name}. {task.windows.metadata['note']}".strip()
    note = f"{settings.MODEL_NAME}, {best.user_attrs['weights']} weights. {task.split.description}. Data: {origin}"
    draw_sweep(table, *study.importances(), study.logarithmic(), note, run)
    logger.info(f"best trial: {best.number + 1}, {listed(best.params)}; balanced accuracy {best.value:.3f}")
    return with_params(settings, best.params)


def with_params(settings: Settings, params: dict) -> Settings:
    return Settings(**settings.model_dump() | params)


def train(trial: optuna.Trial, task: Task, settings: Settings) -> float:
    """Best balanced accuracy on the validation part; raises TrialPruned where the first epochs lag behind."""
    model, epochs = new_model(task, settings), settings.NUM_EPOCHS_FOR_VALIDATION
    trial.set_user_attr("weights", model.config.weights)

    def report(row: dict) -> None:
        trial.report(row["validation_balanced_accuracy"], row["epoch"])
        if row["epoch"] < epochs and trial.should_prune():
            raise optuna.TrialPruned

    history = fit(model, task, settings, epochs=epochs, after_epoch=report)
    return max(row["validation_balanced_accuracy"] for row in history)


# ---- what is tried, and on what -------------------------------------------------------------------------------


def space(settings: Settings) -> dict[str, BaseDistribution]:
    if settings.SWEEP_SPACE == "wide":
        return WIDE
    values = {"NUM_LAYERS": settings.SWEEP_NUM_LAYERS, "LR": settings.SWEEP_LR}
    return {name: CategoricalDistribution(list(dict.fromkeys(choices))) for name, choices in values.items()}


def first_points(settings: Settings) -> list[dict]:
    """The whole grid in its order; of the wide space, the settings as they are, where they lie in it."""
    distributions = space(settings)
    if settings.SWEEP_SPACE == "grid":
        choices = [distribution.choices for distribution in distributions.values()]
        return [dict(zip(distributions, point, strict=True)) for point in itertools.product(*choices)]
    values = {name: written(settings, name) for name in distributions}
    return [{name: value for name, value in values.items() if holds(distributions[name], value)}]


def written(settings: Settings, name: str):
    """A setting's value; a list as on the command line, because no list can be one of optuna's choices."""
    value = getattr(settings, name)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def holds(distribution: BaseDistribution, value) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution.low <= value <= distribution.high


def identity(task: Task, settings: Settings, run: Path) -> dict:
    """What trials need to have in common to be compared: data, split.csv, space and the settings outside it."""
    distributions = space(settings)
    compared = settings.with_role(Role.DATA, Role.SPLIT, Role.MODEL, Role.TRAINING) - {"NUM_EPOCHS"}
    compared |= {"NUM_EPOCHS_FOR_VALIDATION"}
    return settings.model_dump(mode="json", include=compared - set(distributions)) | {
        "data": checksum(json.dumps(task.windows.metadata, sort_keys=True)),
        "split": checksum((run / "split.csv").read_text(encoding="utf-8")),
        "search space": {name: distribution_to_json(distribution) for name, distribution in distributions.items()},
    }


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- the study ------------------------------------------------------------------------------------------------


class SharedStudy:
    """An optuna study in a journal file, from which several processes take trials in turn.

    A process holds a file lock for as long as it runs a trial, and the system frees it when the process dies: so an
    interrupted trial is known at once, on whichever machine, and tried again.
    """

    def __init__(self, settings: Settings, identity: dict, run: Path):
        self.path = settings.SWEEP_STUDY or run / "sweep.journal"
        self.space, self.seed = space(settings), settings.SEED
        first = first_points(settings)
        self.total = len(first) if settings.SWEEP_SPACE == "grid" else settings.SWEEP_TRIALS
        self.locks = self.path.with_name(f".{self.path.name}.locks")
        make_folder(self.locks)
        self.alone = FileLock(self.locks / "next")  # held while a trial is chosen
        pruner = NopPruner() if settings.SWEEP_SPACE == "grid" else MedianPruner(UNPRUNED)
        with self.alone:
            self.study = self._open(pruner)
            self._claim(identity, first)

    def run(self, trial: optuna.Trial, train: Callable[[], float]) -> None:
        """Let `train` find the value of the trial; errors end the trial alone."""
        try:
            self.study.tell(trial, train())
        except optuna.TrialPruned:
            logger.info(f"trial {trial.number + 1} is stopped: it lies below the median of the trials before")
            self.study.tell(trial, state=TrialState.PRUNED)
        except (EMGError, MemoryError) as error:
            reason = str(error).partition("\n")[0] or "the memory is full"
            logger.warning(f"trial {trial.number + 1} failed: {reason}")
            trial.set_user_attr("error", reason)
            self.study.tell(trial, state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            raise EMGError(
                f"{self.path}: another process took this one for dead, because its file locks are not seen there; "
                "put the study into a folder that shares locks"
            ) from None

    def _open(self, pruner: optuna.pruners.BasePruner) -> optuna.Study:
        lock = FileLock(self.locks / "journal")
        refused = EMGError(
            f"{self.path}: this is no study of a sweep, or a damaged one; name a new file in SWEEP_STUDY"
        )
        with lock:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content.rfind(b"\n") + 1
            if content and not (content.startswith(b'{"op_code"') and whole):
                raise refused
            if whole < len(content):  # a full disk or a kill has left half a line, and optuna would append to it
                os.truncate(self.path, whole)
        try:
            storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=lock))
            named = {"study_name": "sweep", "storage": storage, "pruner": pruner}
            return optuna.load_study(**named) if content else optuna.create_study(**named, direction="maximize")
        except (ValueError, KeyError, TypeError):
            raise refused from None

    def _claim(self, identity: dict, first: list[dict]) -> None:
        """Write into a new study what it belongs to, and its first points; refuse one that belongs to other things."""
        found = self.study.user_attrs.get("identity")
        if found is None:
            for point in first:  # a process that died here has left some of them
                self.study.enqueue_trial(point, skip_if_exists=True)
            self.study.set_user_attr("identity", identity)
        elif found != identity:
            differing = sorted(name for name in found.keys() & identity.keys() if found[name] != identity[name])
            differing = differing or sorted(found.keys() ^ identity.keys())  # another version of the program
            raise EMGError(
                f"{self.path}: the study was started with another {', '.join(differing)}; name a new SWEEP_STUDY"
            )

    def trials(self) -> Iterator[optuna.Trial]:
        """Trials for this process to run, until the study has all; at the end it waits for those that others run."""
        told = False
        while True:
            taken = self._next()
            if taken:
                yield taken[0]
                remove_lock(taken[1])
            elif running := self._numbers(TrialState.RUNNING):
                if not told:
                    logger.info(f"waiting for other processes to end trial {', '.join(str(n + 1) for n in running)}")
                told = True
                time.sleep(1)
            else:
                return

    def _next(self) -> tuple[optuna.Trial, FileLock] | None:
        """The next trial and the lock on it: a waiting one, else a new one while the study lacks trials."""
        with self.alone:
            self._fail_interrupted()
            self._queue_interrupted()
            counted = [trial for trial in self.study.get_trials(deepcopy=False) if state(trial) != "interrupted"]
            if len(counted) >= self.total and not self._numbers(TrialState.WAITING):
                return None
            # the same seed whichever process asks, and after any interruption
            self.study.sampler = TPESampler(seed=self.seed + len(counted))
            trial = self.study.ask(self.space)
            lock = self._lock(trial.number)
            lock.acquire()
            return trial, lock

    def _fail_interrupted(self) -> None:
        for number in self._numbers(TrialState.RUNNING):
            lock = self._lock(number)
            with suppress(Timeout):  # a living process holds it
                lock.acquire(blocking=False)
                self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
                remove_lock(lock)

    def _queue_interrupted(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        queued = {trial.user_attrs.get("repeats") for trial in trials}
        for trial in trials:
            if state(trial) == "interrupted" and trial.number not in queued:
                logger.info(f"trial {trial.number + 1} was interrupted; it is tried again")
                point = trial.system_attrs.get("fixed_params", {}) | trial.params
                self.study.enqueue_trial(point, user_attrs={"repeats": trial.number})

    def _numbers(self, state: TrialState) -> list[int]:
        return [trial.number for trial in self.study.get_trials(deepcopy=False, states=(state,))]

    def close(self) -> None:
        """Take the lock files away, unless other processes still use some."""
        for lock in (self.alone, FileLock(self.locks / "journal")):
            lock.acquire()
            remove_lock(lock)
        with suppress(OSError):
            self.locks.rmdir()

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.locks / str(number))

    def best(self) -> FrozenTrial:
        """The first of the trials with the highest value among those that ran to the end; raises EMGError.

        One that was interrupted and tried again stands where it stood at first.
        """
        trials = self.study.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not complete:
            reasons = [trial.user_attrs["error"] for trial in trials if state(trial) == "failed"]
            raise EMGError(f"all {len(reasons)} trials of the sweep failed, the last because {reasons[-1]}")
        return max(complete, key=lambda trial: (trial.value, -self._first_try(trial, trials)))

    @staticmethod
    def _first_try(trial: FrozenTrial, trials: list[FrozenTrial]) -> int:
        """Its number, or that of the interrupted trial that it repeats."""
        while (interrupted := trial.user_attrs.get("repeats")) is not None:
            trial = trials[interrupted]
        return trial.number

    def importances(self) -> tuple[dict[str, float], str]:
        """Share of each setting in the variance of the values, the highest first; or why there are none.

        fANOVA (Hutter et al., 2014) over the trials that ran to the end.
        """
        complete, needed = len(self._numbers(TrialState.COMPLETE)), max(FEWEST, len(self.space) + 1)
        if complete < needed:
            return {}, f"{complete} trials are complete; which settings matter shows from {needed} on"
        try:
            return get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=self.seed)), ""
        except RuntimeError:  # no variance
            return {}, "all trials have the same value, so no setting matters"

    def logarithmic(self) -> list[str]:
        """Settings that are drawn on a logarithmic scale."""
        return [name for name, distribution in self.space.items() if getattr(distribution, "log", False)]


# ---- what is shown --------------------------------------------------------------------------------------------


def state(trial: FrozenTrial) -> str:
    """In words: a trial that failed by itself has an error, an interrupted one has none."""
    if trial.state == TrialState.FAIL:
        return "failed" if "error" in trial.user_attrs else "interrupted"
    return trial.state.name.lower()


def write_table(study: SharedStudy, run: Path) -> pd.DataFrame:
    """sweep.csv: one row per trial that was begun; validation_balanced_accuracy is that of its best epoch."""
    trials = [trial for trial in study.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    table = pd.DataFrame([row(trial, list(study.space)) for trial in trials])
    replace_file(run / "sweep.csv", lambda path: table.to_csv(path, index=False))
    return table


def row(trial: FrozenTrial, names: list[str]) -> dict:
    return (
        {"trial": trial.number + 1}
        | {name: trial.params.get(name) for name in names}
        | {
            "validation_balanced_accuracy": max(trial.intermediate_values.values(), default=None),
            "state": state(trial),
            "epochs": len(trial.intermediate_values),
            "seconds": trial.duration and trial.duration.total_seconds(),
            "weights": trial.user_attrs.get("weights"),
            "error": trial.user_attrs.get("error"),
        }
    )


def listed(params: dict) -> str:
    """NUM_LAYERS -1, LR 0.0003"""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
