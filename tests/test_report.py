"""Reports in a real browser, on a run whose names and notes are hostile, and what they are made of, by hand."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import call
from playwright.sync_api import Browser, Error, Page, sync_playwright

from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands import report
from emg_gpt2.results.comparison import why_not_comparable
from emg_gpt2.results.examples import confused_pairs, svg_path
from emg_gpt2.results.plots import accuracy_curves, loss_curves
from emg_gpt2.results.reading import FinishedRun, read_run
from emg_gpt2.results.report import write_report
from emg_gpt2.results.tables import calibration, size_and_speed
from emg_gpt2.results.used_settings import changed_settings, repeat_command
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.windows.reading import load_windows, open_windows

HOSTILE = "<script>window.hacked = 1</script>"
BOLD = "<b>a & b</b>"  # short enough to stand at an axis as a whole
NOTE = '<img src=x onerror="window.hacked = 1"> & "quoted"'
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = "no browser is here: apt-get install chromium, or python -m playwright install chromium"
A4 = {"width": 680, "height": 1009}  # pixels between margins of 15 mm


@pytest.fixture(scope="module")
def hostile_file(small_file, tmp_path_factory) -> Path:
    """`small_file` with a gesture, a recording and a note that are HTML."""
    table = pq.read_table(small_file)
    metadata = json.loads(table.schema.metadata[b"emg"]) | {"note": NOTE}
    metadata["class_names"] |= {"1": HOSTILE, "2": BOLD}
    recordings = table["recording"].to_pylist()
    names = [f"{HOSTILE}{name}" if name == recordings[0] else name for name in recordings]
    table = table.set_column(table.schema.get_field_index("recording"), "recording", pa.array(names))
    path = tmp_path_factory.mktemp("hostile") / "hostile.parquet"
    pq.write_table(table.replace_schema_metadata({b"emg": json.dumps(metadata).encode()}), path)
    return path


@pytest.fixture(scope="module")
def finished(hostile_file, tiny_gpt2, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    flags = ["--data-location", hostile_file, "--model-name", tiny_gpt2, "--run-dir", folder, "--num-layers", "-1"]
    flags += ["--num-epochs", "2", "--precision", "fp32", "--lr", "0.003", "--sampling-ratio", "0.3"]
    done = call("main.py", *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def metrics(finished) -> dict:
    return json.loads((finished / "metrics.json").read_text(encoding="utf-8"))


def changed(folder: Path, to: Path, leave_out: tuple[str, ...] = (), env: dict | None = None, **new) -> Path:
    """A copy of a run's folder with other figures in metrics.json and other settings in env.json."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("report.html", "last"))
    for name, more in (("metrics.json", new), ("env.json", env or {})):
        content = json.loads((to / name).read_text(encoding="utf-8")) | more
        kept = {key: value for key, value in content.items() if key not in leave_out}
        (to / name).write_text(json.dumps(kept), encoding="utf-8")
    return to


@pytest.fixture(scope="module")
def second(finished, tmp_path_factory) -> Path:
    """A run that is better in balanced accuracy, worse in accuracy and the same in macro F1."""
    return changed(
        finished,
        tmp_path_factory.mktemp("runs") / "second",
        env={"LR": 0.01},
        balanced_accuracy=0.9996,
        accuracy=0.0004,
    )


# ---- in a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error:
            pytest.skip(NO_BROWSER)
        yield browser
        browser.close()


def opened(browser: Browser, file: Path, width: int = 1280, **options) -> tuple[Page, list[str]]:
    """The page without a network, and what went wrong: messages, errors and requests for anything else."""
    page, wrong = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options).new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url == file.as_uri() or wrong.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=20_000)
    return page, wrong


@pytest.fixture(scope="module")
def page(browser, finished) -> Page:
    page, wrong = opened(browser, finished / "report.html")
    assert wrong == []
    return page


@pytest.fixture(scope="module")
def comparison(finished, second, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "comparison.html"
    assert report.main([str(finished), str(second), "--out", str(out)]) == 0
    return out


def table_of(page: Page, title: str) -> list[list[str]]:
    """The cells of the table below a heading, row by row."""
    rows = page.locator(f"[aria-label='{title}'] tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_the_page_shows_the_figures_of_metrics_json(page, metrics):
    for name, place in (
        ("balanced_accuracy", "balanced_accuracy"),
        ("accuracy", "accuracy_reached"),
        ("macro_f1", "macro_f1"),
    ):
        assert page.locator(f"#{place}").inner_text().startswith(f"{metrics[name]:.3f}\n"), name
    assert "chance 0.125" in page.locator("#balanced_accuracy").inner_text()
    assert f"{metrics['weights']} weights" in page.locator("header").inner_text()
    names = ("recall", "precision", "f1")
    assert table_of(page, "Test windows of each gesture") == [
        [gesture, *(f"{row[name]:.3f}" for name in names), str(row["support"])]
        for gesture, row in metrics["per_class"].items()
    ]
    names = ("balanced_accuracy", "accuracy", "macro_f1")
    assert table_of(page, "Test windows of each person") == [
        [subject, *(f"{row[name]:.3f}" for name in names), str(row["windows"])]
        for subject, row in metrics["per_subject"].items()
    ]


def test_the_verdict_stands_at_the_top(page):
    said = page.locator("header #verdict li").all_inner_texts()
    assert said[0].startswith("The backbone adds ")
    assert "sign-flip test over" in said[0]
    assert said[1].startswith("No baseline was run beside it")
    assert len(said) == 3


def test_the_page_tells_what_each_part_holds(page, metrics):
    rows = {row[0]: row[1:] for row in table_of(page, "What each part holds")}
    counts = {part: int(row[-1].replace(",", "")) for part, row in rows.items()}
    assert counts.pop("left out") > 0
    assert counts == {"train": metrics["n_train"], "validation": metrics["n_val"], "test": metrics["n_test"]}
    assert rows["test"][:3] == ["1", "2", "2"]  # one person's two days of two recordings, one of each held out
    held = [row for row in table_of(page, "Windows of each recording") if row[5] != "–"]
    assert len(held) == 2
    assert all(row[3:5] == ["–", "–"] for row in held)


def test_the_plots_hold_history_and_matrix(page, finished, metrics):
    history, again = pd.read_csv(finished / "history.csv"), pd.read_csv(finished / "refit" / "history.csv")
    drawn = page.evaluate("Object.fromEntries(plots.map(plot => [plot.id, plot.data.map(({y, z}) => ({y, z}))]))")
    assert [one["y"] for one in drawn["loss"]] == [
        *(pytest.approx(history[name].tolist()) for name in ("train_loss", "validation_loss")),
        pytest.approx(again["train_loss"].tolist()),
    ]
    columns = ("train_accuracy", "validation_accuracy", "validation_balanced_accuracy")
    assert [one["y"] for one in drawn["accuracy"]] == [
        *(pytest.approx(history[name].tolist()) for name in columns),
        pytest.approx(again["train_accuracy"].tolist()),
    ]
    alone = metrics["linear_path"]["validation_balanced_accuracy"]
    assert f"linear path alone, validation, balanced {alone:.3f}" in page.locator("#accuracy").text_content()
    counts = np.array(metrics["confusion_matrix"])
    assert np.allclose(drawn["matrix"][0]["z"], 100 * counts / counts.sum(1, keepdims=True))
    assert sum(drawn["reliability"][2]["y"]) == metrics["n_test"]
    assert f"chosen by the loss: epoch {metrics['best_epoch']}" in page.locator("#loss").inner_text()


@pytest.mark.nightly
def test_hovering_shows_a_value(page, finished):
    loss = pd.read_csv(finished / "history.csv")["validation_loss"][1]
    page.locator("#loss .trace").nth(1).locator(".point").nth(1).hover(force=True)
    page.wait_for_selector("#loss .hoverlayer .hovertext")
    assert f"epoch 2: {loss:.3f}" in page.locator("#loss .hoverlayer").text_content()


@pytest.mark.nightly
def test_the_matrix_shows_counts_when_hovered(page, metrics):
    page.locator("#matrix").scroll_into_view_if_needed()
    area = page.locator("#matrix .nsewdrag").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 16, area["y"] + area["height"] / 16)  # the first of eight classes
    page.wait_for_selector("#matrix .hoverlayer .hovertext")
    text = page.locator("#matrix .hoverlayer").text_content()
    assert f"idle, predicted idle:{metrics['confusion_matrix'][0][0]} windows" in text


@pytest.mark.nightly
def test_dragging_zooms_in(page):
    page.locator("#accuracy").scroll_into_view_if_needed()
    area = page.locator("#accuracy .nsewdrag").bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] / 4, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 2, middle, steps=5)
    page.mouse.up()
    page.wait_for_function("document.getElementById('accuracy')._fullLayout.xaxis.range[0] > 0.6")
    low, high = page.evaluate("document.getElementById('accuracy')._fullLayout.xaxis.range")
    assert (low, high) == pytest.approx((0.5 + 2 / 4, 0.5 + 2 / 2), abs=0.03)  # of 0.5 to 2.5


def test_hostile_names_are_text(page):
    assert page.evaluate("window.hacked") is None
    assert page.locator(".notice").first.inner_text() == NOTE
    assert HOSTILE in [row[0] for row in table_of(page, "Test windows of each gesture")]
    assert any(HOSTILE in row[2] for row in table_of(page, "Windows of each recording"))
    ticks = page.locator("#matrix .yaxislayer-above").text_content()
    assert HOSTILE[:15] + "…" in ticks
    assert BOLD in ticks
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 4  # plots, plotly.js packed and unpacked, and what draws


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_is_wider_than_a_phone(browser, finished, comparison, name):
    file = {"report": finished / "report.html", "comparison": comparison}[name]
    page, wrong = opened(browser, file, 390, is_mobile=True, has_touch=True)
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("plots[0].querySelector('.main-svg').getBoundingClientRect().width") <= 390 - 32
    assert page.evaluate("plots[0]._fullLayout.dragmode") is False  # a drag scrolls the page
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()


@pytest.mark.parametrize("name", ["report", pytest.param("comparison", marks=pytest.mark.nightly)])
def test_the_rules_of_accessibility_are_kept(browser, finished, comparison, name):
    page, wrong = opened(browser, {"report": finished / "report.html", "comparison": comparison}[name])
    assert wrong == []
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()
    assert page.locator("h1").count() == 1
    levels = [int(tag[1]) for tag in page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => e.tagName)")]
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_is_cut_off_on_paper(browser, finished, comparison, name):
    """The plots shrink before the browser prints, and grow back; all that is laid out fits on A4."""
    page, _ = opened(browser, {"report": finished / "report.html", "comparison": comparison}[name])
    page.evaluate("addEventListener('beforeprint', () => window.printed = plots.map(plot => plot._fullLayout.width))")
    before = page.evaluate("plots.map(plot => plot._fullLayout.width)")
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True)))
    assert 2 <= pages <= 9
    assert page.evaluate("Math.max(...window.printed)") <= A4["width"]
    assert page.evaluate("plots.map(plot => plot._fullLayout.width)") == before
    page.set_viewport_size(A4)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4["width"]
    assert page.locator("figure:visible").count() == page.locator("figure").count()
    assert not page.locator("nav:visible").count()
    boxes = [figure.bounding_box() for figure in page.locator("figure").all()]
    assert max(box["height"] for box in boxes) < A4["height"]


@pytest.mark.nightly
def test_a_comparison_marks_the_better_run(browser, comparison, metrics):
    page, _ = opened(browser, comparison)
    rows = {row[0]: row[1:] for row in table_of(page, "Figures of the runs")}
    assert rows["balanced accuracy"] == [f"{metrics['balanced_accuracy']:.3f}", "1.000 (best)"]
    assert rows["accuracy"] == [f"{metrics['accuracy']:.3f} (best)", "0.000"]
    assert rows["macro F1"] == [f"{metrics['macro_f1']:.3f}"] * 2
    assert table_of(page, "Settings that differ") == [["LR", "0.003", "0.01"]]
    assert not page.locator("#not-comparable").count()
    assert page.evaluate("plots.map(plot => plot.id)") == [
        *("validation_loss", "validation_balanced_accuracy", "matrix0", "matrix1")
    ]
    assert page.evaluate("plots[0].data.map(one => one.name)") == ["first", "second"]
    assert page.evaluate("window.hacked") is None


def test_the_best_figures_of_comparable_runs_are_marked(comparison, metrics):
    text = re.sub(
        r"<[^>]+>", " ", comparison.read_text(encoding="utf-8").partition('<script type="application/json"')[0]
    )
    assert re.search(rf"balanced accuracy\s+{metrics['balanced_accuracy']:.3f}\s+1\.000 \(best\)", text)
    assert re.search(rf"\saccuracy\s+{metrics['accuracy']:.3f} \(best\)\s+0\.000", text)
    assert re.search(r"LR\s+0\.003\s+0\.01", text)
    assert "must not be compared" not in text


# ---- the same page from the folder alone ------------------------------------------------------------------------


def test_the_command_writes_the_page_that_main_wrote(finished, tmp_path, capsys):
    out = tmp_path / "again.html"
    assert report.main([str(finished), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes() == (finished / "report.html").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_the_page_is_small(finished):
    """plotly.js, packed, takes 1.96 MB of it."""
    assert (finished / "report.html").stat().st_size < 2.4e6


def text_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8").partition('<script type="application/json"')[0]


def test_a_windows_file_that_is_gone_is_said(finished, tmp_path):
    text = text_of(changed(finished, tmp_path / "run", data="elsewhere.parquet"))
    assert "elsewhere.parquet: there is no such file" in text
    assert "<svg" not in text
    assert "<svg" in text_of(finished)


def test_windows_that_are_not_those_of_the_run_are_not_shown(finished, small_file, tmp_path):
    text = text_of(changed(finished, tmp_path / "run", data=str(small_file)))
    assert "the windows file holds other windows now" in text
    assert "<svg" not in text


def test_a_run_of_before_the_second_curves_gives_a_report(finished, tmp_path):
    """Its metrics.json has no figures of the linear path, and no version of this project."""
    old = changed(finished, tmp_path / "old", leave_out=("linear_path",), versions={"python": "3.11.7"})
    shutil.rmtree(old / "refit")
    run = read_run(old)
    names = [trace.name for figure in (accuracy_curves(run), loss_curves(run)) for trace in figure.data]
    assert "validation, balanced" in names
    assert not any("second" in name for name in names)
    assert "3.11.7" in text_of(old)


def test_a_run_with_nothing_but_its_figures_gives_a_report(finished, metrics, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    needed = (
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "per_class",
        "per_subject",
        "confusion_matrix",
        "classes",
        "n_test",
    )
    (old / "metrics.json").write_text(json.dumps({name: metrics[name] for name in needed}), encoding="utf-8")
    text = text_of(old)
    for name in ("env.json", "split.csv", "history.csv", "predictions.parquet"):
        assert f"{name} is not in the folder" in text, name
    assert f"{metrics['balanced_accuracy']:.3f}" in text
    assert report.main([str(old), str(finished), "--out", str(tmp_path / "both.html")]) == 0
    assert "must not be compared" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_a_leaky_split_is_announced(finished, tmp_path):
    assert "LEAKY split" in text_of(changed(finished, tmp_path / "run", split="random"))
    assert "LEAKY split" not in text_of(finished)


def test_filtering_that_crosses_the_split_is_told(finished, tmp_path):
    assert "filtering crosses the split" in text_of(changed(finished, tmp_path / "run", filter_crosses_split=True))
    assert "filtering crosses" not in text_of(finished)


def test_a_transductive_test_is_announced_and_not_compared_with_an_honest_one(finished, tmp_path):
    """Of an older run, whose metrics do not say it, by its settings."""
    one = changed(finished, tmp_path / "one", transductive=True)
    older = changed(finished, tmp_path / "older", ("transductive",), {"SCALE": "session"})
    for folder in (one, older):
        assert "<strong>Transductive.</strong> Each window was measured" in text_of(folder)
    assert "ransductive" not in text_of(finished)
    assert report.main([str(one), str(finished), "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "The information differs" in page
    assert "later windows included): one" in page


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"weights": "random"}, "The weights differ"),
        ({"data_note": "Other data."}, "The data differ"),
        ({"split": "random"}, "The split differs"),
    ],
)
def test_runs_that_must_not_be_compared_are_told_apart(finished, tmp_path, new, said):
    other = changed(finished, tmp_path / "other", balanced_accuracy=1.0, **new)
    out = tmp_path / "both.html"
    assert report.main([str(finished), str(other), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "must not be compared" in text
    assert said in text
    assert text.count("differ") == 1 + text.count("Settings that differ")
    assert "(best)" not in text


def test_other_test_windows_are_another_split(finished, tmp_path):
    other = changed(finished, tmp_path / "other")
    predictions = pd.read_parquet(other / "predictions.parquet")
    predictions.iloc[1:].to_parquet(other / "predictions.parquet")
    assert why_not_comparable({"a": read_run(finished), "b": read_run(other)}) == [
        "The split differs: the runs were not tested on the same windows"
    ]


def test_sweep_and_baselines_have_their_tables(finished, tmp_path):
    folder = changed(finished, tmp_path / "run")
    values = {"validation_balanced_accuracy": [0.5, 0.75, None], "state": ["complete", "complete", "failed"]}
    pd.DataFrame({"trial": [1, 2, 3], "LR": [1e-4, 3e-4, 1e-3], **values}).to_csv(folder / "sweep.csv", index=False)
    each = {"features": "RMS", "classifier": "LDA"}
    reached = [
        each | {"level": "inductive", "balanced_accuracy": 0.6},
        each | {"level": "transductive", "balanced_accuracy": 0.7},
    ]
    levels = {"inductive": "nothing", "transductive": "all"}
    found = {"baselines": reached, "levels": levels, "best": {one["level"]: one for one in reached}}
    (folder / "baselines.json").write_text(json.dumps(found), encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", text_of(folder))
    assert re.search(r"RMS\s+LDA\s+0\.600 \(best\)\s+0\.700 \(best\)", text)
    assert re.search(r"2\s+0\.0003\s+0\.75\s+complete\s+1\s+0\.0001\s+0\.5\s+complete\s+3\s+0\.001\s+–\s+failed", text)


# ---- what it is made of -----------------------------------------------------------------------------------------


def by_hand(probabilities: list, true: list, **more) -> FinishedRun:
    """A run of two gestures, 0 and 5, without a folder."""
    values = np.array(probabilities)
    predictions = pd.DataFrame({"TRAJ_GT": true, "p_0": values[:, 0], "p_5": values[:, 1]})
    predictions["predicted"] = np.where(values[:, 0] > values[:, 1], 0, 5)
    metrics = {"classes": {"0": "rest", "5": "fist"}} | more
    return FinishedRun(Path("nowhere"), metrics, settings={}, preprocessing={}, predictions=predictions)


def test_the_calibration_error_is_that_of_guo():
    """Confidences 0.92, 0.90, 0.62 and 1.00: of fifteen bins the 14th (0.867 to 0.933) holds two, one of them right:
    acc 0.5, conf 0.91; the tenth and the last hold one each, 0.62 wrong and 1.00 right.
    ECE = 2/4 · 0.41 + 1/4 · 0.62 + 1/4 · 0."""
    run = by_hand([[0.92, 0.08], [0.1, 0.9], [0.38, 0.62], [1.0, 0.0]], [0, 0, 0, 0])
    bins, error = calibration(run)
    assert error == pytest.approx(0.205 + 0.155)
    assert bins["windows"].tolist() == [1, 2, 1]
    assert bins["low"].tolist() == pytest.approx([9 / 15, 13 / 15, 14 / 15])
    assert bins["accuracy"].tolist() == pytest.approx([0, 0.5, 1])
    assert bins["confidence"].tolist() == pytest.approx([0.62, 0.91, 1])


def test_the_most_confused_pairs_come_first():
    run = by_hand([[1, 0]], [0], confusion_matrix=[[5, 1, 0], [4, 4, 0], [0, 2, 8]])
    assert [(pair["true"], pair["predicted"], pair["windows"]) for pair in confused_pairs(run)] == [
        *((1, 0, 4), (2, 1, 2), (0, 1, 1)),
    ]
    assert [pair["share"] for pair in confused_pairs(run)] == ["50", "20", "17"]
    assert confused_pairs(by_hand([[1, 0]], [0], confusion_matrix=[[5, 0], [0, 4]])) == []
    assert confused_pairs(by_hand([[1, 0]], [0], confusion_matrix=[[400, 1], [0, 4]]))[0]["share"] == "<1"


def test_a_window_is_drawn_channel_below_channel():
    """Two channels of three samples, in half lanes of 10 units about 10 and 30; 5 is not cut."""
    assert svg_path(np.array([[0, 1], [1, -1], [5, 0]])) == "M0 10l1 -10 1 -40M0 20l1 20 1 -10"


def test_the_windows_drawn_are_those_of_the_file(hostile_file):
    rows = np.array([700, 3, 3, 0])
    windows = open_windows(hostile_file)
    assert np.array_equal(windows.emg[rows], load_windows(Settings(DATA_LOCATION=hostile_file)).emg[rows])
    with pytest.raises(EMGError, match="there is no such file"):
        open_windows(hostile_file.with_name("gone.parquet"))


def test_settings_and_command_are_those_of_the_run(finished, hostile_file, tiny_gpt2):
    run = read_run(finished)
    assert {one["name"]: (one["value"], one["default"]) for one in changed_settings(run)} == {
        "DATA_LOCATION": (str(hostile_file), "EMG_03_data.parquet"),
        "MODEL_NAME": (str(tiny_gpt2), "gpt2"),
        "NUM_LAYERS": ("-1", "-9"),
        "NUM_EPOCHS": ("2", "8"),
        "SAMPLING_RATIO": ("0.3", "1"),
        "LR": ("0.003", "0.0003"),
    }
    assert size_and_speed(run)["precision"] == "fp32"  # whether it was asked for is not known
    start, script, *flags = shlex.split(repeat_command(run))
    assert (start, script) == ("python", "main.py")
    again = read_settings(Settings, flags).model_dump(mode="json")
    assert again | {"RUN_DIR": None} == run.settings | {"RUN_DIR": None}


def test_a_run_of_another_tool_has_no_command_of_main(finished, tmp_path):
    folder = changed(finished, tmp_path / "runs" / "subject-seed0")
    assert repeat_command(read_run(folder))
    (tmp_path / "settings.json").write_text("{}", encoding="utf-8")
    assert repeat_command(read_run(folder)) == ""
    assert "The command evaluate or ablate made this run" in text_of(folder)


def test_settings_of_places_machine_and_windows_file_repeat_nothing(finished, tmp_path):
    """Another tracker or less memory has no effect on the result; what is no setting any more is shown as it was."""
    env = {"TRACKER": "none", "MEMORY_GB": 1.0, "WORKERS": 3, "RUN_DIR": "x", "RESUME": "y", "GONE": 5, "SEED": 1}
    run = read_run(changed(finished, tmp_path / "run", env=env))
    shown = {one["name"]: one["default"] for one in changed_settings(run)}
    assert not shown.keys() & {"TRACKER", "MEMORY_GB", "WORKERS", "RUN_DIR", "RESUME"}
    assert shown["GONE"] == "no such setting now"
    assert "--seed 1" in repeat_command(run)
    assert not re.search("tracker|memory|workers|run-dir|resume|gone", repeat_command(run))


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_finished_run_is_one_sentence(finished, tmp_path, capsys):
    (tmp_path / "begun" / "last").mkdir(parents=True)
    broken = changed(finished, tmp_path / "broken")
    (broken / "history.csv").write_text("", encoding="utf-8")
    lacking = changed(finished, tmp_path / "lacking", leave_out=("macro_f1",))
    cases = {
        tmp_path: "no results of a finished run; name a folder under runs",
        tmp_path / "begun": f"finish it with main.py --resume {tmp_path / 'begun'}",
        broken: "history.csv: the file cannot be read",
        lacking: "macro_f1 is missing; run main.py anew",
    }
    for folder, said in cases.items():
        assert report.main([str(folder)]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("report: ")
        assert error.count("\n") == 1
        assert said in error
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert report.main([str(finished), "--out", str(tmp_path / "file" / "report.html")]) == 1
    assert re.fullmatch(r"report: .*file.*; free or mend the place, .*\n", capsys.readouterr().err)
    assert report.main([str(finished), str(finished)]) == 1
    assert "named twice" in capsys.readouterr().err
