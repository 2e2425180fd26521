"""What the pictures say: labels, units, order, axes, formats. Pixels are for eyes."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import svg_texts
from matplotlib.colors import to_rgb

from emg_gpt2.results import figures
from emg_gpt2.results.figures import accuracy_limits, draw_sweep, percent, plt, save, shortened, use_format
from emg_gpt2.results.lanes import draw_channels
from emg_gpt2.results.tables import wilson
from emg_gpt2.study.differences import ALWAYS, IN_ORDER
from emg_gpt2.study.forearm import Filters, draw_filters, draw_importance
from emg_gpt2.study.occlusion import Importance, Part
from emg_gpt2.study.people import draw_people
from emg_gpt2.study.showing_ablation import draw_ablation
from emg_gpt2.training.history import Histories
from EMG_utils import draw_confusion_matrix, draw_history


@pytest.fixture(autouse=True)
def as_svg():
    use_format("svg")
    yield
    use_format("png")
    plt.close("all")


@pytest.fixture
def kept(monkeypatch):
    """Figures that are not closed after they are written."""
    monkeypatch.setattr(plt, "close", lambda *_: None)


# ---- in common ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "begin"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_picture_has_the_format_in_use(kind, begin, tmp_path):
    use_format(kind)
    save(plt.figure(), "caption", tmp_path / "some.png")
    [path] = tmp_path.iterdir()
    assert path.name == f"some.{kind}"
    assert path.read_bytes().startswith(begin)


def test_a_caption_is_broken_into_lines_that_fit(tmp_path):
    save(plt.figure(figsize=(figures.WIDTH, 2)), "word " * 100, tmp_path / "some.svg")
    lines = svg_texts(tmp_path / "some.svg")
    assert len(lines) == 4  # 499 letters, at most 158 in a line
    assert " ".join(lines) == ("word " * 100).strip()


def test_the_colours_differ_in_brightness_too():
    """Of what stands side by side: two kinds that are compared, and right, wrong and not judged decisions."""
    grey = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in (figures.BLUE, figures.ORANGE)]
    assert abs(np.diff(grey)[0]) > 0.05


def test_a_share_is_not_rounded_to_none_or_all():
    assert [percent(*one) for one in ((0, 9), (1, 400), (3, 400), (399, 400), (400, 400))] == [
        *("0", "<1", "1", ">99", "100")
    ]


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.1, 0.9], 0, 0.98), ([0.7, 0.9], 0.68, 0.92), ([1.0, 1.0], 0.95625, 1.00625), ([0.5, 0.51], 0.48, 0.53)],
)
def test_an_axis_of_accuracies_shows_the_difference_and_no_less_than_five_points(values, low, high):
    assert accuracy_limits(values) == pytest.approx((low, high))


def test_the_interval_of_a_share():
    """Wilson's, as in the tables: 1 of 1 and 9 of 10."""
    low, high = wilson(pd.Series([1.0, 0.9]), pd.Series([1, 10]))
    assert low.round(3).tolist() == [0.207, 0.596]
    assert high.round(3).tolist() == [1, 0.982]


def test_a_long_list_of_recordings_is_no_caption():
    held_out = "whole recordings held out (SPLIT = trajectory), fold 0: "
    held_out += ", ".join(f"03/2018-05-11/recording-{n}" for n in range(9))
    assert shortened(held_out).endswith(" … (all in split.csv)")
    assert shortened(held_out).startswith("Whole recordings held out (SPLIT = trajectory), fold 0: 03/2018-05-11/recor")
    assert len(shortened(held_out)) <= 130
    assert shortened("days of people held out") == "Days of people held out"


def test_large_channels_run_behind_small_ones_and_are_not_cut():
    curves = np.array([[-1.0, 1], [-50, 50], [-2, 2]])
    _, axes = plt.subplots()
    lane = draw_channels(axes, np.array([0.0, 1]), curves, ["A", "B", "C"], "lines {lane:g} mV apart")
    assert (lane, axes.get_ylabel()) == (5, "lines 5 mV apart")  # twice the median channel's 2, rounded up
    lines = axes.get_lines()
    assert lines[1].get_ydata().tolist() == [-11, 9]
    assert lines[1].get_zorder() < min(lines[0].get_zorder(), lines[2].get_zorder())
    assert all(one.get_color() != other.get_color() for one, other in pairwise(lines))


# ---- a run ----------------------------------------------------------------------------------------------------


def test_the_curves_show_what_was_learned_and_say_where_their_axis_begins(tmp_path):
    names = ("train_accuracy", "validation_accuracy", "validation_balanced_accuracy", "train_loss", "validation_loss")
    history = [{"epoch": epoch} | dict.fromkeys(names, 0.97 + epoch / 100) for epoch in (1, 2)]
    draw_history(Histories(history, [], {"validation_balanced_accuracy": 0.9}), 0.125, "Data: here", tmp_path)
    said = svg_texts(tmp_path / "accuracy.svg")
    assert "accuracy (axis from 0.89)" in said  # a tenth of 0.9 … 0.99 below 0.9
    assert "chance, balanced: 0.125 (outside the axis)" in said
    assert "chosen by the loss: epoch 1" in said
    assert {"cross entropy (nat)", "chosen by the loss: epoch 1"} <= {*svg_texts(tmp_path / "loss.svg")}


def test_a_confusion_matrix_has_one_unit_and_the_windows_of_each_gesture(tmp_path):
    metrics = {"confusion_matrix": [[838, 4], [0, 60]], "classes": {"0": "rest", "1": "fist"}}
    draw_confusion_matrix(metrics, "Test", "Data: here", tmp_path)
    said = svg_texts(tmp_path / "confusion_matrix.svg")
    assert {"rest (842)", "fist (60)", ">99", "838", "<1", "4", "100", "60"} <= {*said}
    assert {"predicted gesture", "true gesture (windows)", "share of the true gesture's windows (%)"} <= {*said}


def test_of_many_classes_only_the_shares_are_written(tmp_path):
    names = {str(n): f"gesture {n}" for n in range(22)}
    draw_confusion_matrix({"confusion_matrix": (777 * np.eye(22, dtype=int)), "classes": names}, "", "", tmp_path)
    said = svg_texts(tmp_path / "confusion_matrix.svg")
    assert said.count("100") == 23  # 22 cells, and the colour bar
    assert "777" not in said


# ---- a study --------------------------------------------------------------------------------------------------


def test_people_have_an_axis_with_a_name(tmp_path):
    found = {
        "per_subject": {"03": {"balanced_accuracy": 0.9}, "04": {"balanced_accuracy": 0.8}},
        "per_subject_and_seed": [{"subject": "03", "balanced_accuracy": 0.9}],
        "overall": {"balanced_accuracy": {"mean": 0.85, "low": None, "high": None}},
        "baselines": [],
        "chance": 0.125,
        "title": "Title",
        "origin": "Origin",
    }
    draw_people(found, tmp_path / "evaluation.svg")
    said = svg_texts(tmp_path / "evaluation.svg")
    assert {"balanced accuracy, test part", "person", "03", "04", "chance, balanced: 0.125"} <= {*said}
    assert "Title. Origin" in said


def ablated(**changes) -> dict:
    def result(share: float, order: str, mean: float) -> dict:
        return {"share": share, "order": order, "mean": mean, "std_over_seeds": 0.01, "low": None, "high": None}

    results = [result(0.5, IN_ORDER, 0.85), result(1.0, IN_ORDER, 0.9), result(1.0, ALWAYS, 0.88)]
    arms = [{"name": "small", "title": "small", "results": results}]
    arms.append({"name": "pretrained-frozen", "title": "pretrained", "why_not": "weights not available (no network)"})
    found = {"arms": arms, "shares": [0.5, 1.0], "people": ["01"], "seeds": [0, 1, 2], "chance": 0.125, "blocks": 2}
    found |= {"model": "gpt2", "weights": ["random"], "split": "session", "split_description": "days held out"}
    return found | {"epochs": 8, "data": "x.parquet", "data_note": "", **changes}


def test_an_ablation_has_intervals_and_its_axis_says_where_it_begins(kept, tmp_path):
    draw_ablation(ablated(), tmp_path / "ablation.svg")
    [axes] = plt.gcf().axes
    said = svg_texts(tmp_path / "ablation.svg")
    names = {f"{share} % of the training windows" for share in (50, 100)}
    assert names | {"100 % of the training windows, patches shuffled in training and test"} <= {*said}
    bars = [bar.get_children()[-1].get_segments()[0][:, 0].tolist() for bar in axes.containers]
    assert bars == [pytest.approx([0.84, 0.86]), pytest.approx([0.89, 0.91]), pytest.approx([0.87, 0.89])]
    assert {"balanced accuracy, test part (axis from 0.83)", "weights not available"} <= {*said}
    assert "bars: ± deviation over seeds" in " ".join(said)
    assert not axes.get_title()


def test_a_sweep_has_a_panel_per_setting_and_numbered_trials(tmp_path):
    table = pd.DataFrame({"trial": [1, 2, 3], "LR": [0.1, 0.1, 0.2], "NUM_LAYERS": [0, -1, 0], "BLOCKS": [2, 2, 2]})
    table = table.assign(validation_balanced_accuracy=[0.5, 0.5, 0.7], state="complete")
    draw_sweep(table, {}, "3 trials are complete", [], "Data: here", tmp_path)
    said = svg_texts(tmp_path / "sweep.svg")
    assert {"LR", "NUM_LAYERS", "0.1", "0.2", "−1", "1, 2", "best: trial 3"} <= {*said}
    assert "BLOCKS" not in said
    assert "3 trials are complete. Data: here" in " ".join(said)


# ---- what a model looks at ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ring", "rings"), [(2, {"ring 1", "ring 2"}), (3, set())])
def test_importance_names_every_electrode_and_its_ring(ring, rings, tmp_path):
    """Where the channels are no whole number of rings, no ring is named."""
    parts = [Part("electrode", f"EMG_{n}", np.array([n])) for n in range(1, 5)]
    parts += [Part("band", "0–60 Hz", np.array([0])), Part("moment", "0–50 ms", np.array([0]))]
    value = np.full((3, len(parts)), 0.2)
    found = Importance(value, value - 0.1, value + 0.1, value, value[0])
    draw_importance(found, parts, ["all gestures", "rest", "fist"], ring, ["Data: here"], tmp_path / "explain.svg")
    said = svg_texts(tmp_path / "explain.svg")
    assert {"EMG_1", "EMG_2", "EMG_3", "EMG_4", "0–60 Hz", "0–50 ms"} <= {*said}
    assert {text for text in said if text.startswith("ring")} == rings
    assert said.count("20") >= 18


def test_a_negative_use_of_a_filter_is_explained(tmp_path):
    curves = np.zeros((2, 9))
    bank = Filters(np.linspace(0, 500, 9), curves, curves, np.array([0.01, -0.02]))
    draw_filters(bank, ["Data: here"], tmp_path / "filters.svg")
    said = svg_texts(tmp_path / "filters.svg")
    assert "2: peak 0 Hz, use −2.00" in said
    assert "negative where it is higher without the filter" in " ".join(said)
    assert {"frequency (Hz)", "response (dB below the filter's peak)"} <= {*said}
