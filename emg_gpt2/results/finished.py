"""The results of a run: metrics, predictions, figures, the model's card, the report."""

import logging
import shutil
from functools import partial
from pathlib import Path

from EMG_DATA_LOADER import filter_crosses
from emg_gpt2.base.files import replace_file, replace_folder, write_json
from emg_gpt2.model.card import facts_of_run, model_card
from emg_gpt2.model.config import start_words
from emg_gpt2.model.files import save_card, save_model
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.results.figures import picture, use_format
from emg_gpt2.results.reading import TRANSDUCTIVE, caveats
from emg_gpt2.results.report import write_report
from emg_gpt2.results.run import add_to_validation, write_predictions
from emg_gpt2.results.verdicts import log_verdicts
from emg_gpt2.settings import Settings
from emg_gpt2.training.adapt import count_parameters
from emg_gpt2.training.device import is_main_process
from emg_gpt2.training.history import Histories, best_epoch
from emg_gpt2.training.task import Task
from emg_gpt2.windows.format import bad_channels
from EMG_utils import Evaluation, draw_confusion_matrix, draw_history

logger = logging.getLogger(__name__)


def write_results(
    run: Path,
    model: EMGForSequenceClassification,
    task: Task,
    settings: Settings,
    histories: Histories,
    test: Evaluation,
) -> None:
    """Write the results into the run's folder, and the model also into MODEL_SAVING_DIR; only the main process does.

    task: as it was split, with its validation part.
    """
    if not is_main_process():
        return
    metrics = test.metrics | facts_of_task(task, settings) | facts_of_model(model, settings)
    linear_path = dict(histories.linear_path)
    if (alone := linear_path.pop("predicted", None)) is not None:
        add_to_validation(run, "linear_path", alone)
    metrics |= facts_of_history(histories.first) | {"linear_path": linear_path}
    replace_file(run / "metrics.json", lambda path: write_json(path, metrics))
    logger.info(test_line(metrics))
    for name, one in metrics.get("context", {}).items():
        words = f"{one['balanced_accuracy']:.3f} on {one['windows']} windows, from {one['what']}"
        logger.info(f"context {name}: balanced accuracy {words}")
    origin = {"split": task.split.description, "weights": metrics["weights"], "data_note": metrics["data_note"]}
    write_predictions(task.windows, task.split.test, test.probabilities, origin, run)
    use_format(settings.FIGURE_FORMAT)
    draw_figures(metrics, histories, settings, run)
    card = model_card(model.config, facts_of_run(task.windows, task.split, metrics, settings))
    save_card(card, run / "best_model")
    if settings.MODEL_SAVING_DIR:
        save_model(model, card, settings.MODEL_SAVING_DIR)
        if (adapter := run / "best_model" / "adapter").is_dir():
            copy = partial(shutil.copytree, adapter, dirs_exist_ok=True)
            replace_folder(settings.MODEL_SAVING_DIR / "adapter", copy)
    write_report(run, task.windows)
    log_verdicts(run)
    drawn = ", ".join(picture(Path(name)).name for name in ("accuracy", "loss", "confusion_matrix"))
    logger.info(f"{run}: report.html, {drawn}, metrics.json, best_model/ and more")


def facts_of_task(task: Task, settings: Settings) -> dict:
    """Data, split and numbers of windows, for metrics.json."""
    split = task.split
    return {
        "n_train": len(split.train),
        "n_val": len(split.validation),
        "n_test": len(split.test),
        "split": split.name,
        "split_description": split.description,
        "data": str(settings.DATA_LOCATION),
        "data_note": task.windows.metadata["note"],
        "bad_channels": bad_channels(task.windows.metadata.get("sources", [])),
        "filter_crosses_split": filter_crosses(task.windows, split),
        "refit": settings.REFIT,
    }


def facts_of_history(history: list[dict]) -> dict:
    """Epochs and time (s) of the first training, for metrics.json."""
    seconds = sum(row["seconds"] for row in history)
    return {"epochs": len(history), "best_epoch": best_epoch(history) + 1, "seconds": seconds}


def facts_of_model(model: EMGForSequenceClassification, settings: Settings) -> dict:
    """Weights before training and numbers of parameters, for metrics.json."""
    parameters, trained = count_parameters(model.config, settings)
    return {"weights": model.config.weights, "parameters": parameters, "trainable_parameters": trained}


def test_line(metrics: dict) -> str:
    """The result in one line."""
    return (
        f"test{caveats(metrics)}: accuracy {metrics['accuracy']:.3f}, balanced accuracy "
        f"{metrics['balanced_accuracy']:.3f} (chance {1 / len(metrics['classes']):.3f}), "
        f"macro F1 {metrics['macro_f1']:.3f}"
    )


def draw_figures(metrics: dict, histories: Histories, settings: Settings, run: Path) -> None:
    """Draw accuracy.png, loss.png and confusion_matrix.png, or those of another FIGURE_FORMAT."""
    origin = f"{settings.DATA_LOCATION.name}. {metrics['data_note']}".strip()
    model, split = f"{settings.MODEL_NAME}, {start_words(metrics['weights'])}", f"{metrics['split']}{caveats(metrics)}"
    note = f"{model}, split: {split}. Data: {origin}"
    note += f" Transductive: {TRANSDUCTIVE}." if metrics["transductive"] else ""
    title = (
        f"Test{caveats(metrics)}: balanced accuracy {metrics['balanced_accuracy']:.3f}, "
        f"accuracy {metrics['accuracy']:.3f}, {metrics['n_test']} windows"
    )
    draw_history(histories, 1 / len(metrics["classes"]), note, run)
    draw_confusion_matrix(metrics, title, note, run)
