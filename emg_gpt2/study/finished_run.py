"""A finished run of main.py: its metrics, and the windows and the split that it was made from."""

import json
from pathlib import Path

from EMG_DATA_LOADER import Split, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.results.run import is_split_of
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import WindowSet, load_windows


def read_metrics(run: Path, *names: str) -> dict:
    """The named figures of the run's metrics.json. Raises EMGError where the run is not finished."""
    path = run / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return {name: metrics[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        raise EMGError(
            f"{path}: there are no results of a finished run; finish it with main.py --resume {run}"
        ) from None


def load_split(settings: Settings, run: Path | None = None) -> tuple[WindowSet, Split]:
    """The windows at DATA_LOCATION and their split. Raises EMGError where they are not those of `run`."""
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    if run and not ((run / "split.csv").is_file() and is_split_of(run, windows, split)):
        raise EMGError(
            f"{run / 'split.csv'}: the run was made on other windows or another split than {settings.DATA_LOCATION} "
            "gives now; name its windows with --data-location or run main.py anew"
        )
    return windows, split
