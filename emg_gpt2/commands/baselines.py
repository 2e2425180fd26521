"""Score the field's classical classifiers on the windows and the split of main.py.

    python -m emg_gpt2 baselines [any setting of main.py] [--out FILE]
    python -m emg_gpt2 baselines --add-to RUN

With --add-to, data and split are those of a finished run, and the run's folder gets baselines.json, baselines.png and
a new report.html. What is scored, and how, is in emg_gpt2/study/baselines.py.
Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.settings import read_settings
from emg_gpt2.study.options import BaselineSettings

GROUP = "study"


def main(argv: list[str] | None = None) -> int:
    """Score the baselines that the command line names; returns the exit status."""
    work = lambda: run(read_settings(BaselineSettings, argv, "baselines"))  # noqa: E731
    return exit_status("baselines", work, memory="lower MEMORY_GB or SAMPLING_RATIO")


def run(settings: BaselineSettings) -> None:
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.study.baselines import run_baselines
    start_log(Console(stderr=True, highlight=False))
    run_baselines(settings, Console(highlight=False))
