"""The validation loop (SWEEP): trials of settings, kept in a study that processes and machines can share.

The study is a journal: a file that optuna only appends to, which unlike SQLite is safe in a shared folder.
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
from emg_gpt2.base.log import progress, time_to_go
from emg_gpt2.model.config import start_words
from emg_gpt2.results.figures import draw_sweep, shortened, use_format
from emg_gpt2.settings import Role, Settings
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import Task
from EMG_utils import fit

logger = logging.getLogger(__name__)

WIDE: dict[str, BaseDistribution] = {  # of SWEEP_SPACE = "wide"; any setting of model and training may be added
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
UNPRUNED = 5  # the first trials run to the end; later ones are compared with their median
FEWEST = 8  # complete trials (and more than there are settings) for importances; those from fewer are chance


def search(task: Task, settings: Settings, run: Path) -> Settings:
    """Try settings for NUM_EPOCHS_FOR_VALIDATION epochs each, as SWEEP_SPACE says; returns the best as settings.

    Trials are compared on the validation part only. sweep.csv and sweep.png in `run` show every trial of the study,
    also those of other processes. Raises EMGError where the study belongs to other data or settings, or every trial
    fails.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = SharedStudy(settings, identity(task, settings, run), run)
    began, first = time.monotonic(), None
    with progress() as bar:
        for trial in study.trials():
            first = trial.number if first is None else first
            shown = bar.task_ids[0] if bar.task_ids else bar.add_task("trials", total=study.total, completed=first)
            bar.update(shown, completed=trial.number)
            left = time_to_go(time.monotonic() - began, trial.number - first, max(1, study.total - trial.number))
            logger.info(f"trial {trial.number + 1}: {params_line(trial.params)}{left}")
            write_table(study, run)
            study.run(trial, partial(train, trial, task, with_params(settings, trial.params)))
            write_table(study, run)
    table, best = write_table(study, run), study.best()
    study.close()
    origin = f"{settings.DATA_LOCATION.name}. {task.windows.metadata['note']}".strip()
    model, split = f"{settings.MODEL_NAME}, {start_words(best.user_attrs['weights'])}", task.split.description
    caption = f"{model}. {shortened(split)}. Data: {origin}"
    use_format(settings.FIGURE_FORMAT)
    draw_sweep(table, *study.importances(), study.logarithmic(), caption, run)
    logger.info(f"best trial: {best.number + 1}, {params_line(best.params)}; balanced accuracy {best.value:.3f}")
    return with_params(settings, best.params)


def with_params(settings: Settings, params: dict) -> Settings:
    """The settings with the values of a trial."""
    return Settings(**settings.model_dump() | params)


def train(trial: optuna.Trial, task: Task, settings: Settings) -> float:
    """Train for a trial; returns its best balanced accuracy on the validation part.

    Raises TrialPruned where an epoch is below the median of the trials before.
    """
    model, epochs = new_model(task, settings), settings.NUM_EPOCHS_FOR_VALIDATION
    trial.set_user_attr("weights", model.config.weights)

    def report(row: dict) -> None:
        trial.report(row["validation_balanced_accuracy"], row["epoch"])
        if row["epoch"] < epochs and trial.should_prune():
            raise optuna.TrialPruned

    history = fit(model, task, settings, epochs=epochs, after_epoch=report)
    return max(row["validation_balanced_accuracy"] for row in history)


# ---- search space ---------------------------------------------------------------------------------------------


def space(settings: Settings) -> dict[str, BaseDistribution]:
    """Setting → the values to try; in the wide space among them TOKENS as they are."""
    if settings.SWEEP_SPACE == "wide":
        own, tokens = choice(settings, "TOKENS"), WIDE.get("TOKENS")
        added = tokens and own not in tokens.choices
        return WIDE | ({"TOKENS": CategoricalDistribution([*tokens.choices, own])} if added else {})
    matters = settings.FREEZE or settings.ADAPT in ("full", "lora")  # NUM_LAYERS, without which a trial is repeated
    values = {"NUM_LAYERS": settings.SWEEP_NUM_LAYERS if matters else [settings.NUM_LAYERS], "LR": settings.SWEEP_LR}
    return {name: CategoricalDistribution(list(dict.fromkeys(choices))) for name, choices in values.items()}


def first_points(settings: Settings) -> list[dict]:
    """Points that are tried first: the whole grid in its order; in the wide space, the settings as they are."""
    distributions = space(settings)
    if settings.SWEEP_SPACE == "grid":
        choices = [distribution.choices for distribution in distributions.values()]
        return [dict(zip(distributions, point, strict=True)) for point in itertools.product(*choices)]
    values = {name: choice(settings, name) for name in distributions}
    return [{name: value for name, value in values.items() if contains(distributions[name], value)}]


def choice(settings: Settings, name: str):
    """A setting's value as optuna has it: a list is a text, as on the command line."""
    value = getattr(settings, name)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def contains(distribution: BaseDistribution, value) -> bool:
    """Whether the value is one of those to try."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution.low <= value <= distribution.high


def identity(task: Task, settings: Settings, run: Path) -> dict:
    """What all trials of a study share: data, split.csv, search space and the settings outside it."""
    distributions = space(settings)
    compared = settings.with_role(Role.DATA, Role.SPLIT, Role.MODEL, Role.TRAINING) - {"NUM_EPOCHS"}
    compared |= {"NUM_EPOCHS_FOR_VALIDATION"}
    return settings.model_dump(mode="json", include=compared - set(distributions)) | {
        "data": checksum(json.dumps(task.windows.metadata, sort_keys=True)),
        "split": checksum((run / "split.csv").read_text(encoding="utf-8")),
        "search space": {name: distribution_to_json(distribution) for name, distribution in distributions.items()},
    }


def checksum(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


# ---- the study ------------------------------------------------------------------------------------------------


class SharedStudy:
    """An optuna study in a journal file, from which several processes take trials in turn.

    A process holds a file lock while it runs a trial, and the system frees the lock when the process dies. So any other
    process, also on another machine, sees an interrupted trial at once and tries it again.
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
        """Let `train` find the value of the trial; an error ends this trial only."""
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
                f"{self.path}: another process ended this trial, because it does not see the file locks of this one; "
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
            if whole < len(content):  # half a line, from a full disk or a kill: optuna would append to it
                os.truncate(self.path, whole)
        try:
            storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=lock))
            named = {"study_name": "sweep", "storage": storage, "pruner": pruner}
            return optuna.load_study(**named) if content else optuna.create_study(**named, direction="maximize")
        except (ValueError, KeyError, TypeError):
            raise refused from None

    def _claim(self, identity: dict, first: list[dict]) -> None:
        """Write identity and first points into a new study; raises EMGError where the study has another identity."""
        found = self.study.user_attrs.get("identity")
        if found is None:
            for point in first:  # some are there already where a process died here
                self.study.enqueue_trial(point, skip_if_exists=True)
            self.study.set_user_attr("identity", identity)
        elif found != identity:
            differing = sorted(name for name in found.keys() & identity.keys() if found[name] != identity[name])
            differing = differing or sorted(found.keys() ^ identity.keys())  # another version of the program
            raise EMGError(
                f"{self.path}: the study was started with another {', '.join(differing)}; name a new SWEEP_STUDY"
            )

    def trials(self) -> Iterator[optuna.Trial]:
        """Yield trials for this process to run, until the study has all; then wait for those of other processes."""
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
        """The next trial and the lock on it: one that waits, else a new one, until the study has all (None)."""
        with self.alone:
            self._fail_interrupted()
            self._queue_interrupted()
            counted = [trial for trial in self.study.get_trials(deepcopy=False) if state(trial) != "interrupted"]
            if len(counted) >= self.total and not self._numbers(TrialState.WAITING):
                return None
            # the same seed for every process, and after any interruption
            self.study.sampler = TPESampler(seed=self.seed + len(counted))
            trial = self.study.ask(self.space)
            lock = self._lock(trial.number)
            lock.acquire()
            return trial, lock

    def _fail_interrupted(self) -> None:
        """End the trials whose process is dead."""
        for number in self._numbers(TrialState.RUNNING):
            lock = self._lock(number)
            with suppress(Timeout):  # a living process holds it
                lock.acquire(blocking=False)
                self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
                remove_lock(lock)

    def _queue_interrupted(self) -> None:
        """Let every interrupted trial be tried again, once."""
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
        """Remove the lock files, unless other processes still use some."""
        for lock in (self.alone, FileLock(self.locks / "journal")):
            lock.acquire()
            remove_lock(lock)
        with suppress(OSError):
            self.locks.rmdir()

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.locks / str(number))

    def best(self) -> FrozenTrial:
        """The complete trial with the highest value, the first of equal ones; raises EMGError where all failed.

        A repeated trial counts as early as the interrupted one.
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
        """Share of each setting in the variance of the values, the highest first; or the reason for none.

        fANOVA (Hutter et al., 2014) over the complete trials.
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


# ---- table ----------------------------------------------------------------------------------------------------


def state(trial: FrozenTrial) -> str:
    """The trial's state in sweep.csv; optuna's FAIL is `failed` with an error, `interrupted` without one."""
    if trial.state == TrialState.FAIL:
        return "failed" if "error" in trial.user_attrs else "interrupted"
    return trial.state.name.lower()


def write_table(study: SharedStudy, run: Path) -> pd.DataFrame:
    """Write sweep.csv: one row per trial that was begun."""
    trials = [trial for trial in study.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    table = pd.DataFrame([trial_row(trial, list(study.space)) for trial in trials])
    replace_file(run / "sweep.csv", lambda path: table.to_csv(path, index=False))
    return table


def trial_row(trial: FrozenTrial, names: list[str]) -> dict:
    """Settings and outcome of a trial; validation_balanced_accuracy is that of its best epoch."""
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


def params_line(params: dict) -> str:
    """Return NUM_LAYERS -1, LR 0.0003"""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
