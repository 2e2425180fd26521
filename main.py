"""Train a GPT-2 gesture classifier on windows of surface EMG and test it once.

    python main.py [any setting of ENV.py]

Several processes, on one machine or more, share every batch:

    torchrun --nproc-per-node 2 main.py [any setting of ENV.py]      (or accelerate launch main.py …)

Exit status: 0 done, 1 something that the user can put right (one sentence says what), 130 interrupted.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from emg_gpt2.base.interrupts import start_script

    start_script()
    from emg_gpt2.settings import check_command_line

    check_command_line("main.py")

import sys
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.model.build import load_model
from emg_gpt2.results.finished import write_results
from emg_gpt2.results.run import open_run, resumed_settings, write_settings, write_split
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.training.device import is_main_process, join_processes
from emg_gpt2.training.history import Histories
from emg_gpt2.training.new_model import log_model, new_model
from emg_gpt2.training.sweep import search
from emg_gpt2.training.task import Task, fitted_task, load_task, log_data
from emg_gpt2.training.tracker import require_tracker, tracking
from EMG_utils import evaluate, evaluate_linear_path, fit, refit


def main() -> int:
    join_processes()
    try:
        return exit_status("main.py", start, memory="lower BATCH_SIZE, BLOCKS or MEMORY_GB")
    finally:
        PartialState().destroy_process_group()


def start() -> None:
    """Settings → windows, split and references → a run folder → the experiment."""
    settings = read_settings()
    settings = resumed_settings(settings) if settings.RESUME else settings
    if settings.SWEEP and PartialState().num_processes > 1:
        raise EMGError("SWEEP: processes that train together try nothing; start each alone, with SWEEP_STUDY")
    require_tracker(settings)
    task = load_task(settings)
    with open_run(settings, Console(highlight=False, quiet=not is_main_process())) as run:
        log_data(task.windows, task.split, settings)
        write_split(task, run)  # refuses other data than those of a resumed run, before its settings are replaced
        write_settings(settings, run)
        experiment(task, settings, run)


def experiment(task: Task, settings: Settings, run: Path) -> None:
    """(Search) → train → test once → results; everything goes into the folder `run`."""
    if settings.SWEEP and not (run / "last").exists():
        settings = search(task, settings, run)
        write_settings(settings, run)
    with tracking(settings, run) as tracker:
        model = new_model(task, settings)
        log_model(model, settings)
        linear_path = evaluate_linear_path(model, task)
        history = fit(model, task, settings, run, tracker=tracker)
        fitted = fitted_task(task, settings)  # with REFIT the validation part belongs to its training part
        second = refit(fitted, settings, history, run, tracker) if settings.REFIT else []
        best = load_model(run / "best_model")
        test = evaluate(best, fitted, settings)
        tracker.log_test(test.metrics)
        write_results(run, best, task, settings, Histories(history, second, linear_path), test)


if __name__ == "__main__":
    sys.exit(main())
