"""A run's curves in TensorBoard, Weights & Biases or MLflow, through the trackers of accelerate."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.settings import Settings

logger = logging.getLogger(__name__)

PROJECT = "EMG-GPT2"
TEST_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")
SHARE = 0.01  # of the time goes into points between epochs, at the most: a distant server is slow to answer
WANDB_SECONDS = 0.2  # between two writes to its file; a killed process loses what it has not written
PACKAGES = {  # tracker → whether it is installed, and its package
    "tensorboard": (is_tensorboard_available, "tensorboard"),
    "wandb": (is_wandb_available, "wandb"),
    "mlflow": (is_mlflow_available, "mlflow-skinny"),
}


class Tracker:
    """One log of a whole run, on one axis of steps: the parts training, second training (`refit/`) and test (`test/`).

    tracker.json in the run's folder holds the last step that was logged. A resumed run repeats some steps with the same
    results; they are not logged again. Where logging fails, it ends with a warning, and the training goes on.
    theirs: accelerate's tracker, started; None logs nothing.
    """

    def __init__(self, theirs: GeneralTracker | None, run: Path, last: int = -1):
        self.theirs, self.run, self.last = theirs, run, last
        self.began, self.spent = time.perf_counter(), 0.0
        self.prefix, self.before = "", 0  # of the part, and the steps of the parts before it

    def begin_part(self, prefix: str) -> None:
        """Begin the names of all that follows with `prefix`."""
        self.prefix = prefix

    def end_part(self, steps: int) -> None:
        """Let the steps of the next part come after the `steps` of this one."""
        self.before += steps

    def log(self, values: dict, step: int, spare: bool = False) -> None:
        """Log numbers by name, after `step` steps of the part; texts are left out.

        `spare` values are left out where they would take too much of the time.
        """
        began, step = time.perf_counter(), self.before + step
        if self.theirs is None or step <= self.last or (spare and self.spent > SHARE * (began - self.began)):
            return
        named = {self.prefix + name: value for name, value in values.items() if not isinstance(value, str)}
        at_once = {"commit": True} if self.theirs.name == "wandb" else {}  # it would wait for the next step's
        self._try(lambda: self.theirs.log(named, step=step, **at_once))
        self._try(lambda: self._note(step))
        self.spent += time.perf_counter() - began

    def _note(self, step: int) -> None:
        self.last, noted = step, {"tracker": self.theirs.name, "run": _identity(self.theirs), "step": step}
        replace_file(self.run / "tracker.json", lambda path: write_json(path, noted))

    def log_test(self, metrics: dict) -> None:
        """Log the figures of the test, one step after the training."""
        self.begin_part("test/")
        self.log({name: metrics[name] for name in TEST_FIGURES}, 1)

    def begin(self, settings: Settings) -> None:
        """Log the settings."""
        values = {name: _written(value) for name, value in settings.model_dump(mode="json").items()}
        self._try(lambda: self.theirs.store_init_configuration(values))
        self._try(lambda: self._note(max(0, self.last)))

    def finish(self) -> None:
        if self.theirs is not None:
            self._try(self.theirs.finish)

    def _try(self, act) -> None:
        """Turn any error of the library into a warning, so that the training goes on."""
        try:
            if self.theirs is not None:
                act()
        except Exception as error:
            logger.warning(f"{self.theirs.name} fails ({_first_line(error)}); the run goes on without it")
            self.theirs = None


@contextmanager
def tracking(settings: Settings, run: Path) -> Iterator[Tracker]:
    """The log of the run in the folder `run`, new or continued; raises EMGError where it cannot begin.

    tensorboard/, wandb/ or mlflow.db lie in the folder; MLFLOW_TRACKING_URI names another place, and WANDB_MODE and
    WANDB_PROJECT are wandb's own. Of several processes that train together, only the main process logs.
    """
    if settings.TRACKER == "none" or not PartialState().is_main_process:
        yield Tracker(None, run)
        return
    tracker = _start(settings.TRACKER, run)
    if tracker.last < 0 or settings.TRACKER == "wandb":  # a killed process may have lost wandb's settings
        tracker.begin(settings)
    try:
        yield tracker
    finally:
        tracker.finish()


def require_tracker(settings: Settings) -> None:
    """Raises EMGError where the package of TRACKER is missing."""
    is_available, package = PACKAGES.get(settings.TRACKER, (lambda: True, ""))
    if not is_available():
        raise EMGError(f"TRACKER = {settings.TRACKER}: it is not installed; pip install {package}, or set it to none")


def _start(name: str, run: Path) -> Tracker:
    try:
        known = _known_log(name, run / "tracker.json")
        theirs = STARTERS[name](run, known["run"], known["step"])
        theirs.start()
    except Exception as error:  # each library has its own
        raise EMGError(
            f"TRACKER = {name}: it cannot begin ({_first_line(error)}); mend that, or set TRACKER to none"
        ) from None
    return Tracker(theirs, run, known["step"])


def _known_log(name: str, path: Path) -> dict:
    """`run` and `step` of the log that a resumed run goes on with; a new log where it had none, or another tracker."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tracker": None}
    return known if known.get("tracker", name) == name else {"run": None, "step": -1}


def _tensorboard(run: Path, identity: str | None, last: int) -> TensorBoardTracker:
    """TensorBoard drops what was logged after the `last` noted step: the process was killed before it was noted."""
    return TensorBoardTracker("tensorboard", run, purge_step=last + 1 if last >= 0 else None)


def _wandb(run: Path, identity: str | None, last: int) -> WandBTracker:
    import wandb  # a third of a second

    settings = wandb.Settings(x_transaction_log_flush_interval=WANDB_SECONDS)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(project, dir=run, name=run.name, id=identity, resume="allow", settings=settings)


def _mlflow(run: Path, identity: str | None, last: int) -> MLflowTracker:
    import mlflow  # half a second

    for source in ("mlflow", "alembic"):  # each table of a new database is news to them
        logging.getLogger(source).setLevel(logging.WARNING)
    if "MLFLOW_TRACKING_URI" in os.environ:
        return MLflowTracker(PROJECT, run_id=identity, run_name=run.name)
    folder = run.resolve()
    mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
    return MLflowTracker(PROJECT, (folder / "mlflow").as_uri(), run_id=identity, run_name=run.name)


STARTERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _identity(theirs: GeneralTracker) -> str | None:
    """The name by which wandb and mlflow find the run again; None for TensorBoard."""
    if theirs.name == "tensorboard":
        return None
    return theirs.tracker.id if theirs.name == "wandb" else theirs.tracker.info.run_id


def _written(value) -> bool | int | float | str:
    """The value as TensorBoard takes it, which has no lists."""
    if isinstance(value, list | dict | None):
        return json.dumps(value, ensure_ascii=False)
    return value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
