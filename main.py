"""Train a GPT-2 gesture classifier on windows of surface EMG and test it once.

    python main.py [any setting of ENV.py]

Several processes, on one machine or more, share every batch:

    torchrun --nproc-per-node 2 main.py [any setting of ENV.py]      (or accelerate launch main.py)

Exit status: 0 done, 1 something that the user can put right (one sentence says what), 130 interrupted.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from EMG_start import start_script

    start_script()

import logging
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console
from transformers.utils import logging as transformers_logging

from EMG_build import load_model
from EMG_card import facts_of_run, model_card
from EMG_DATA_LOADER import Split, WindowSet, load_windows, split_windows
from EMG_figures import draw_confusion_matrix, draw_history
from EMG_files import replace_file, write_json
from EMG_model import ModelError, References
from EMG_report import write_report
from EMG_run import discard_if_empty, open_run, resumed_settings, save_card, save_model, write_predictions, write_split
from EMG_start import interrupts_first
from EMG_sweep import sweep
from EMG_tracker import Tracker, require_tracker, tracking
from EMG_trainer import NotFiniteError, Trainer, best_epoch, choose_precision, join_processes, of_main_process, refit
from EMG_utils import compute_metrics, new_model, session_references, versions
from ENV import EMGError, Settings, from_command_line

logger = logging.getLogger("main")

TRACKED = ("accuracy", "balanced_accuracy", "macro_f1")  # of metrics.json


def main() -> int:
    sys.stdout.reconfigure(errors="replace")  # a Windows code page lacks − and ≤
    sys.stderr.reconfigure(errors="replace")
    first, run = True, None
    try:
        first = join_processes().is_main_process
        console = Console(highlight=False, quiet=not first)
        with interrupts_first():
            settings = from_command_line(Settings)
            settings = resumed_settings(settings) if settings.RESUME else settings
            if settings.SWEEP and PartialState().num_processes > 1:
                raise EMGError("SWEEP: processes that train together try nothing; start each alone, with SWEEP_STUDY")
            windows = load_windows(settings)
            split = split_windows(windows, settings)
            run = of_main_process(open_run(settings) if first else None)
            start_log(console, run if first else None)
            experiment(windows, split, settings, console, run)
    except (EMGError, ModelError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        close_log()
        kept = isinstance(error, NotFiniteError)  # there may be no checkpoint, but a batch to look at, and a model
        gone = run is None or (first and not kept and discard_if_empty(run))
        again = "run the same command again" if gone else "go on with --resume"
        print(f"main.py{told_apart()}: {explain(error, again)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if first:
            print(f"main.py: interrupted; {after_interrupt(run)}", file=sys.stderr)
        return 130
    finally:
        PartialState().destroy_process_group()
    return 0


def told_apart() -> str:
    """Which process speaks, where it is not the first or only one."""
    number = PartialState().process_index
    return f" (process {number})" if number else ""


def explain(error: Exception, again: str = "go on with --resume") -> str:
    """One sentence; `again` is what to do once a place can be written."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "the memory is full; lower BATCH_SIZE, BLOCKS or MEMORY_GB"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}; free or mend the place, then {again}"
    return str(error)


def after_interrupt(run: Path | None) -> str:
    """What to do now, in words."""
    close_log()
    if run is None or discard_if_empty(run):
        return "nothing was finished; run the same command again"
    return f"go on with --resume {run}"


def experiment(windows: WindowSet, split: Split, settings: Settings, console: Console, run: Path) -> None:
    """Data → (sweep) → train → test once → figures → report; everything goes into the folder `run`.

    Where several processes train together, the first one alone writes.
    """
    require_tracker(settings)
    describe_data(windows, split, settings)
    if PartialState().is_main_process:
        write_settings(settings, run)
        write_split(windows, split, run)

    references = session_references(windows, split, settings)
    if settings.SWEEP and not (run / "last").exists():
        settings = sweep(windows, split, references, settings, console, run)
        write_settings(settings, run)

    with tracking(settings, run) as tracker:
        train_and_test(windows, split, references, settings, console, run, tracker)


def train_and_test(
    windows: WindowSet,
    split: Split,
    references: References,
    settings: Settings,
    console: Console,
    run: Path,
    tracker: Tracker,
) -> None:
    """The part of the experiment that `tracker` shows."""
    model = new_model(windows, split, references, settings)
    parameters, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    logger.info(
        f"{settings.MODEL_NAME}, {model.config.weights} weights: {parameters:,} parameters, {trainable:,} trained"
    )
    trainer = Trainer(model, windows, split, references, settings, settings.NUM_EPOCHS)
    history = trainer.fit(console, run, track=tracker.log)
    steps = trainer.steps * len(history)
    if settings.REFIT:
        track = partial(tracker.log, prefix="refit/", after=steps)
        trainer = refit(windows, split, settings, best_epoch(history) + 1, console, run, track)
        steps += trainer.steps * len(trainer.history)

    best = load_model(run / "best_model")
    probabilities = trainer.predict(best, split.test)
    if not PartialState().is_main_process:
        return
    metrics = compute_metrics(windows, split.test, probabilities) | facts_of_training(windows, split, settings, trainer)
    metrics |= {
        "parameters": parameters,
        "trainable_parameters": trainable,
        "epochs": len(history),
        "best_epoch": best_epoch(history) + 1,
        "seconds": sum(row["seconds"] for row in history),
        "seconds_per_window": trainer.seconds_per_window(best, split.test),
    }
    replace_file(run / "metrics.json", lambda path: write_json(path, metrics))
    tracker.log({name: metrics[name] for name in TRACKED}, steps + 1, prefix="test/")
    described = {"split": split.description, "weights": best.config.weights, "data_note": metrics["data_note"]}
    write_predictions(windows, split.test, probabilities, described, run)
    draw(metrics, history, split, settings, run)
    logger.info(
        f"test{leaky(split)}: accuracy {metrics['accuracy']:.3f}, balanced accuracy {metrics['balanced_accuracy']:.3f} "
        f"(chance {1 / len(windows.classes):.3f}), macro F1 {metrics['macro_f1']:.3f}"
    )
    card = model_card(best.config, facts_of_run(windows, split, metrics, settings))
    save_card(card, run / "best_model")
    if settings.MODEL_SAVING_DIR:
        save_model(best, card, settings.MODEL_SAVING_DIR)
    write_report(run, windows)
    logger.info(f"{run}: report.html, accuracy.png, loss.png, confusion_matrix.png, metrics.json, best_model/ and more")


def facts_of_training(windows: WindowSet, split: Split, settings: Settings, trainer: Trainer) -> dict:
    """What was trained on what, for metrics.json."""
    return {
        "n_train": len(split.train),
        "n_val": len(split.validation),
        "n_test": len(split.test),
        "split": split.name,
        "split_description": split.description,
        "data": str(settings.DATA_LOCATION),
        "data_note": windows.metadata["note"],
        "weights": trainer.bare_model.config.weights,
        "refit": settings.REFIT,
        "device": str(trainer.device),
        "processes": trainer.processes,
        "precision": trainer.precision,
        "versions": versions(),
    }


def write_settings(settings: Settings, run: Path) -> None:
    """env.json: with the precision that was chosen, so that a resumed run computes in it too."""
    chosen = {"PRECISION": choose_precision(settings.PRECISION)[0]}
    replace_file(run / "env.json", lambda path: write_json(path, settings.model_dump(mode="json") | chosen))


def describe_data(windows: WindowSet, split: Split, settings: Settings) -> None:
    described = windows.metadata
    logger.info(
        f"{settings.DATA_LOCATION}: {len(windows.table)} windows of {described['window']} samples at "
        f"{described['sampling_rate']:g} Hz, {len(described['channels'])} channels, {len(windows.classes)} classes"
    )
    if described["note"]:
        logger.info(described["note"])
    wanted = settings.model_dump(mode="json")
    for name, made_with in described["settings"].items():
        if wanted.get(name, made_with) != made_with:
            logger.warning(f"{name} is {made_with} in the file, not {wanted[name]}; run Preprocessing.py to change it")
    for name in settings.model_fields_set & {"CLASS_NAMES", "DATA_NOTE"}:
        logger.warning(f"{name} is the file's own; run Preprocessing.py to change it")
    logger.info(split.description)
    for part in ("validation", "test"):
        absent = set(range(len(windows.classes))) - set(windows.targets[getattr(split, part)])
        if absent:
            names = ", ".join(windows.class_names[index] for index in sorted(absent))
            logger.warning(f"the {part} part has no window of {names}; balanced accuracy is over the other classes")
    logger.info(f"{len(split.train)} windows to train, {len(split.validation)} to validate, {len(split.test)} to test")


def leaky(split: Split) -> str:
    return " (LEAKY split: random windows)" if split.name == "random" else ""


def draw(metrics: dict, history: list[dict], split: Split, settings: Settings, run: Path) -> None:
    origin = f"{settings.DATA_LOCATION.name}. {metrics['data_note']}".strip()
    note = f"{settings.MODEL_NAME}, {metrics['weights']} weights, split: {split.name}{leaky(split)}. Data: {origin}"
    title = (
        f"Test{leaky(split)}: balanced accuracy {metrics['balanced_accuracy']:.3f}, "
        f"accuracy {metrics['accuracy']:.3f}, {metrics['n_test']} windows"
    )
    draw_history(history, metrics["best_epoch"] - 1, 1 / len(metrics["classes"]), note, run)
    draw_confusion_matrix(metrics, title, note, run)


def start_log(console: Console, run: Path | None) -> None:
    """Everything goes to the terminal, above the progress bar, and to log.txt; nothing of a process without a run."""
    handlers = [ConsoleHandler(console)]
    if run:
        handlers.append(logging.FileHandler(run / "log.txt", encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers, force=True)
    logging.raiseExceptions = False  # a full disk is said in one sentence, not in a traceback for each line of log.txt
    for name in ("main", "EMG_sweep", "EMG_utils", "EMG_trainer", "EMG_build"):
        logging.getLogger(name).setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it would list every block that BLOCKS leaves out


def close_log() -> None:
    """Let go of log.txt: Windows deletes no folder with an open file."""
    for handler in logging.getLogger().handlers:
        handler.close()


class ConsoleHandler(logging.Handler):
    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
