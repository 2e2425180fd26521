"""Does the language model help? With and without its weights, beside simpler models.

    python -m emg_gpt2 ablate --data-location putemg.parquet [any setting of main.py]

Every arm, share of the training part and seed is one run of main.py in OUT/runs; each arm's learning rate is chosen
on the validation part, in OUT/rates. The same command goes on after an interruption.
Exit status: 0 done, 1 nothing to show, 3 some runs failed, 130 interrupted.
"""

from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.settings import read_settings
from emg_gpt2.study.options import AblationSettings

GROUP = "study"


def main(argv: list[str] | None = None) -> int:
    """Ablate as the command line says; returns the exit status."""
    work = lambda: run(read_settings(AblationSettings, argv, "ablate"))  # noqa: E731
    return exit_status("ablate", work, memory="lower BATCH_SIZE, BLOCKS or MEMORY_GB")


def run(given: AblationSettings) -> int:
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.study.ablation import ablate
        from emg_gpt2.study.showing_ablation import print_ablation
    log = Console(stderr=True, highlight=False)
    start_log(log)
    found = ablate(given, log)
    print_ablation(found, Console(highlight=False))
    print(f"\n{given.OUT}: ablation.json, ablation.csv, ablation.{given.FIGURE_FORMAT}, rates/, runs/")
    return 3 if found["failed"] else 0
