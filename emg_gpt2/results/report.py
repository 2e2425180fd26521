"""report.html: everything about a finished run on one page, from the files in its folder.

The page needs no other file: it holds its style, its plots and the library that draws them, and its content security
policy forbids the browser to fetch anything.
"""

import base64
import gzip
import json
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from EMG_DATA_LOADER import CROSSED
from emg_gpt2.base.files import replace_file
from emg_gpt2.model.config import start_words
from emg_gpt2.results.examples import confused_pairs, examples_of
from emg_gpt2.results.plots import accuracy_curves, confusion_matrix, loss_curves, reliability
from emg_gpt2.results.reading import TRANSDUCTIVE, FinishedRun, read_run
from emg_gpt2.results.tables import BINS, baseline_rows, calibration, parts_table, size_and_speed, sweep_rows
from emg_gpt2.results.used_settings import changed_settings, repeat_command
from emg_gpt2.results.verdicts import verdicts_of
from emg_gpt2.windows.reading import WindowSet


def write_report(folder: Path, windows: WindowSet | None = None, out: Path | None = None) -> Path:
    """Write report.html into a run's folder, or the page to `out`; returns where it is.

    Without `windows` the few that are drawn are read from the run's DATA_LOCATION. Raises EMGError where there is no
    finished run.
    """
    run, out = read_run(folder), out or folder / "report.html"
    write_page(out, "report.html", contents(run, windows), report_plots(run))
    return out


def write_page(out: Path, template: str, values: dict, figures: dict[str, Figure]) -> None:
    """Fill a file of templates/ with values and plots, and replace `out` by the page."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names and notes come from untrusted files
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["figure"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    plain = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    text = pages.get_template(template).render(values, figures=plain, library=library())
    replace_file(out, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))


@cache
def library() -> str:
    """plotly.js, compressed and as base64: 2 MB instead of 5."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def report_plots(run: FinishedRun) -> dict[str, Figure]:
    """The plots of a report, by their names in the template."""
    found = {"matrix": confusion_matrix(run.metrics["confusion_matrix"], run.names)}
    if run.history is not None:
        found |= {"loss": loss_curves(run), "accuracy": accuracy_curves(run)}
    if run.predictions is not None:
        found["reliability"] = reliability(calibration(run)[0])
    return found


def contents(run: FinishedRun, windows: WindowSet | None) -> dict:
    """The values of the template report.html."""
    bins, error = calibration(run) if run.predictions is not None else (None, None)
    pairs = confused_pairs(run)
    return {
        "run": run,
        "metrics": run.metrics,
        "transductive": TRANSDUCTIVE,
        "crossed": CROSSED,
        "start": start_words(run.metrics.get("weights", "unknown")),
        "name": run.folder.resolve().name,
        "date": begin_date(run.folder),
        "majority": majority(run.metrics),
        "verdicts": verdicts_of(run),
        "settings": changed_settings(run),
        "parts": parts_table(run),
        "bins": bins,
        "bin_count": BINS,
        "calibration_error": error,
        "pairs": pairs,
        **examples_of(run, pairs, windows),
        "facts": size_and_speed(run),
        "baselines": baseline_rows(run),
        "sweep": sweep_rows(run),
        "command": repeat_command(run),
    }


def begin_date(folder: Path) -> str:
    """When the run began, by its log.txt; empty without one."""
    log = folder / "log.txt"
    return log.read_text(encoding="utf-8", errors="replace")[: len("2026-01-01 12:00")] if log.is_file() else ""


def majority(metrics: dict) -> dict:
    """`name` of the most frequent gesture, and the `accuracy` of always predicting it."""
    supports = {name: row["support"] for name, row in metrics["per_class"].items()}
    name = max(supports, key=supports.get)
    return {"name": name, "accuracy": supports[name] / sum(supports.values())}
