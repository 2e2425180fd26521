"""Evaluate every fold of a split or protocol with several seeds: figures per person and over people.

    python -m emg_gpt2 evaluate --protocol A --data-location putemg.parquet [any setting of main.py]

Each fold and seed is one run of main.py in OUT/runs/FOLD-seedN. Given again, the command keeps the runs that are
finished and goes on with the one that was interrupted.
Exit status: 0 done, 1 nothing to show, 3 some runs failed, 130 interrupted.
"""

from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.settings import read_settings
from emg_gpt2.study.options import EvaluationSettings

GROUP = "study"


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    work = lambda: run(read_settings(EvaluationSettings, argv, "evaluate"))  # noqa: E731
    return exit_status("evaluate", work, memory="lower BATCH_SIZE, BLOCKS or MEMORY_GB")


def run(given: EvaluationSettings) -> int:
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.study.evaluation import evaluate_folds
        from emg_gpt2.study.people import print_evaluation
    log = Console(stderr=True, highlight=False)
    start_log(log)
    found, out = evaluate_folds(given, log)
    print_evaluation(found, Console(highlight=False))
    kind = given.FIGURE_FORMAT
    print(f"\n{out}: evaluation.json, evaluation.{kind}, per_subject.csv, confusion_matrix.{kind}, runs/")
    return 3 if found["failed"] else 0
