"""How much must be read of a new person? Accuracy against people, seconds of signal and calibration windows.

    python -m emg_gpt2 prompt --data-location MYO_10_people.parquet --context 64 [any setting of main.py]

Every fold of the people, number of people to learn from and seed is one run of main.py in OUT/runs. The same command
goes on after an interruption. Exit status: 0 done, 1 nothing to show, 3 some runs failed, 130 interrupted.
"""

from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.settings import read_settings
from emg_gpt2.study.options import PromptSettings

GROUP = "study"


def main(argv: list[str] | None = None) -> int:
    """Study prompts as the command line says; returns the exit status."""
    work = lambda: run(read_settings(PromptSettings, argv, "prompt"))  # noqa: E731
    return exit_status("prompt", work, memory="lower BATCH_SIZE, CONTEXT or MEMORY_GB")


def run(given: PromptSettings) -> int:
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.study.prompting import study_prompts
        from emg_gpt2.study.showing_prompts import print_prompts
    log = Console(stderr=True, highlight=False)
    start_log(log)
    found = study_prompts(given, log)
    print_prompts(found, Console(highlight=False))
    kind = given.FIGURE_FORMAT
    print(f"\n{given.OUT}: prompts.json, prompts.csv, people.{kind}, seconds.{kind}, calibration.{kind}, runs/")
    return 3 if found["failed"] else 0
