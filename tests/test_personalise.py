"""personalise: which repetitions are used for what, the figures before and after, and the adapted model."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import call
from matplotlib.colors import to_rgb
from safetensors.torch import load_file, save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands.personalise import main
from emg_gpt2.model.build import load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import measure_reference
from emg_gpt2.results.figures import BLUE, GREY, ORANGE
from emg_gpt2.study.adapting import adapt, best_factor, best_mix, held_out_logits, with_reference_of
from emg_gpt2.study.calibration import check_apart, order_of_repetitions
from emg_gpt2.windows.reading import WindowSet

DAY = "2018-06-14"  # the second of person 03
TURNED = [5, 2, 7, 0, 3, 6, 1, 4]  # the electrodes of the day, as the model's first day had them


pytestmark = pytest.mark.usefixtures("one_thread")


def variant(source: Path, target: Path, keep=None, change=None, **metadata) -> Path:
    """A windows file with the rows for which `keep`, a function of the table, is true, and with other metadata.

    `change` makes other stored values of (n, 250, 8) ones.
    """
    table = pq.read_table(source)
    described = json.loads(table.schema.metadata[b"emg"]) | metadata
    if keep:
        table = table.filter(pa.array(keep(table.drop_columns(["emg"]).to_pandas())))
    if change:
        emg = change(table["emg"].combine_chunks().flatten().to_numpy().reshape(-1, 250, 8))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(emg.reshape(-1)), emg[0].size)
        table = table.set_column(table.column_names.index("emg"), "emg", lists)
    pq.write_table(table.replace_schema_metadata({b"emg": json.dumps(described).encode()}), target)
    return target


@pytest.fixture(scope="module")
def turned(windows_file, tmp_path_factory) -> Path:
    """Person 03, both days and all three trajectories, with the electrodes in another order."""
    path = tmp_path_factory.mktemp("turned") / "turned.parquet"
    return variant(
        windows_file, path, lambda table: table["subject"] == "03", lambda emg: emg[..., TURNED], note="made for a test"
    )


@pytest.fixture(scope="module")
def personalised(trained, turned, tmp_path_factory) -> tuple:
    """The folder, and what the command said; three repetitions, so that they are of two recordings."""
    out = tmp_path_factory.mktemp("out") / "deep" / "er"
    arguments = [trained / "best_model", turned, "--subject", "03", "--repetitions", "3", "--out", out]
    done = call("emg_gpt2.commands.personalise", *arguments)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def written(personalised) -> dict:
    return json.loads((personalised[0] / "personalise.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def by_hand(turned) -> tuple[pd.DataFrame, torch.Tensor]:
    """The last day's windows with their part, and emg (n, T, C) in counts; with nothing of this project."""
    table = pq.read_table(turned)
    scale = json.loads(table.schema.metadata[b"emg"])["scale"]
    day = table.filter(pa.array(table["session"].to_numpy() == DAY))
    emg = torch.tensor(np.array(day["emg"].to_pylist(), np.float32).reshape(len(day), 250, 8)) * np.float32(scale)
    frame = day.drop_columns(["emg"]).to_pandas()
    clock = {"repeats_long": "11-05", "sequential": "11-10", "repeats_short": "11-15"}  # as the simulator names them
    repetitions = {}
    for row in frame.itertuples():
        repetition = (clock[row.trajectory], row.start, row.recording, row.repetition)
        repetitions.setdefault(row.TRAJ_GT, {}).setdefault((row.recording, row.repetition), repetition)
    first = {
        (label, *key)
        for label, of_label in repetitions.items()
        for key in sorted(of_label, key=lambda one: of_label[one][:2])[:3]
    }
    used = [key in first for key in zip(frame["TRAJ_GT"], frame["recording"], frame["repetition"], strict=True)]
    return frame.assign(used=used), emg


def figures_of(written: dict, name: str) -> dict:
    (one,) = [one for one in written["figures"] if one["name"] == name]
    return one


def check(found: dict, frame: pd.DataFrame, labels: np.ndarray) -> None:
    """Whether the figures are those of the predicted labels of the test windows."""
    target = frame.loc[~frame["used"], "TRAJ_GT"]
    assert found["accuracy"] == pytest.approx((target == labels).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, labels))
    assert found["macro_f1"] == pytest.approx(f1_score(target, labels, average="macro"))
    assert found["windows"] == len(target)


def in_shares(emg: torch.Tensor, labels: np.ndarray, shares: list[float]) -> torch.Tensor:
    """4000 windows, in which every class has the share that it had in training: its windows over and over."""
    each = [np.resize(np.flatnonzero(labels == code), round(4000 * share)) for code, share in enumerate(shares)]
    return emg[np.concatenate(each)]


@pytest.fixture(scope="module")
def session_reference(by_hand, trained, small_file):
    """That of the calibration part, with the shares of the training part, counted here."""
    (frame, emg), split = by_hand, pd.read_csv(trained / "split.csv")
    counts = split.loc[split["part"] == "train", "TRAJ_GT"].value_counts().sort_index()
    classes = np.searchsorted(counts.index, frame.loc[frame["used"], "TRAJ_GT"])
    used = emg[torch.tensor(frame["used"])]
    return measure_reference(in_shares(used, classes, (counts / counts.sum()).tolist()))


@torch.no_grad()
def labels_of(model: EMGForSequenceClassification, emg: torch.Tensor) -> np.ndarray:
    return np.array(model.config.class_codes)[model(emg=emg).logits.argmax(1)]


# ---- which windows --------------------------------------------------------------------------------------------


def test_the_first_repetitions_in_time_are_used_and_all_else_is_tested(written, by_hand):
    frame, _ = by_hand
    used = frame.loc[frame["used"], ["TRAJ_GT", "recording", "repetition"]].drop_duplicates()
    assert {tuple(one.values()) for one in written["calibration_repetitions"]} == set(used.itertuples(index=False))
    assert (written["n_calibration"], written["n_test"]) == (frame["used"].sum(), (~frame["used"]).sum())
    assert written["session"] == DAY  # the person's last
    assert used.groupby("TRAJ_GT").size().tolist() == [3] * 8
    fists = used.loc[used["TRAJ_GT"] == 1, "recording"].str.contains("sequential")
    assert sorted(fists) == [False, False, True]  # by name, repeats_short would come before sequential


def test_no_sample_is_in_both_parts(by_hand):
    frame, _ = by_hand
    for _, windows in frame.groupby("recording"):
        used, tested = (windows.loc[windows["used"] == part, "start"].to_numpy() for part in (True, False))
        assert used.size == 0 or np.abs(used[:, None] - tested).min() > 0.2499


def test_repetitions_are_in_the_order_of_date_and_time_then_of_start():
    """By name `a` comes before `b`; the number of a repetition says nothing, and each gesture counts for itself."""
    late, early = "emg_gestures-03-a-2018-05-11-11-15-00-000", "emg_gestures-03-b-2018-05-11-11-05-00-000"
    rows = [(1, late, 0, 1.0), (1, early, 1, 2.0), (1, early, 0, 9.0), (0, late, 0, 3.0), (1, early, 1, 2.1)]
    table = pd.DataFrame(rows, columns=["TRAJ_GT", "recording", "repetition", "start"])
    assert order_of_repetitions(table).tolist() == [2, 0, 1, 0, 0]


def test_windows_that_overlap_across_the_parts_are_refused():
    table = pd.DataFrame({"recording": ["a", "a", "b"], "start": [1.0, 1.249, 1.0]})
    windows = WindowSet(np.zeros((3, 250, 1)), table, {"window": 250, "sampling_rate": 1000.0})
    check_apart(windows, np.array([True, True, False]))
    with pytest.raises(EMGError, match=r"a: .* overlap at 1\.000 s"):
        check_apart(windows, np.array([True, False, False]))
    table["start"] = [1.0, 1.25, 1.0]  # the next sample
    check_apart(windows, np.array([True, False, False]))


# ---- figures --------------------------------------------------------------------------------------------------


def test_before_is_the_model_with_its_own_reference_and_with_that_of_the_calibration_part(
    written, by_hand, trained, session_reference
):
    (frame, emg), model = by_hand, load_model(trained / "best_model")
    tested = emg[~torch.tensor(frame["used"])]
    check(figures_of(written, "model as saved"), frame, labels_of(model, tested))
    model.set_reference(session_reference)
    check(figures_of(written, "model, reference of the session"), frame, labels_of(model, tested))


def test_after_is_what_the_new_folder_alone_predicts(written, by_hand, personalised):
    frame, emg = by_hand
    model = load_model(personalised[0])
    check(figures_of(written, "personalised model"), frame, labels_of(model, emg[~torch.tensor(frame["used"])]))
    assert "subject 03, session 2018-06-14, first 3 repetitions" in model.config.data_note


def test_electrodes_in_another_order_are_learnt(written):
    """Neither the saved model nor a new scale can know the order; three repetitions of every gesture tell it."""
    before = max(one["balanced_accuracy"] for one in written["figures"] if one["kind"] == "before")
    assert before < 0.6
    assert figures_of(written, "personalised model")["balanced_accuracy"] > before + 0.3


def test_the_model_itself_is_left_as_it_was(written, trained, personalised):
    old, new = load_model(trained / "best_model").state_dict(), load_model(personalised[0]).state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"scale", "centre", "spread", "residual_weight", "linear.weight", "linear.bias"}
    assert new["residual_weight"] == pytest.approx(written["factor"] * old["residual_weight"].item())


def test_the_baseline_on_log_rms_is_what_scikit_learn_says_without_this_project(written, by_hand):
    frame, emg = by_hand
    used, features = np.array(frame["used"]), np.log(np.sqrt((emg.double().numpy() ** 2).mean(1)))
    scaler = StandardScaler().fit(features[used])
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    lda.fit(scaler.transform(features[used]), frame.loc[used, "TRAJ_GT"])
    check(figures_of(written, "LDA on log-RMS"), frame, lda.predict(scaler.transform(features[~used])))


def test_the_baseline_on_log_covariances_is_lda_on_what_the_model_sees(written, by_hand, trained, session_reference):
    (frame, emg), model = by_hand, load_model(trained / "best_model")
    used = np.array(frame["used"])
    _, features = model.normalise(emg, session_reference)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(8, 1 / 8))
    lda.fit(features[used].double().numpy(), frame.loc[used, "TRAJ_GT"])
    check(figures_of(written, "LDA on log covariances"), frame, lda.predict(features[~used].double().numpy()))


def test_the_table_shows_each_figure_and_the_origin(personalised, written):
    said = personalised[1].stdout
    for one in written["figures"]:
        (line,) = [line for line in said.partition("Verdict")[0].splitlines() if f" {one['name']} " in line]
        shown = [word for word in line.split() if word.replace(".", "").isdigit()]
        figures = [f"{one[key]:.3f}" for key in ("balanced_accuracy", "accuracy", "macro_f1")]
        assert shown[-4:] == [*figures, str(written["n_test"])]
    assert "chance 0.125" in said
    assert "random weights" in said
    assert "made for a test" in said
    assert "Warning" not in said + personalised[1].stderr


def test_the_picture_shows_before_and_after(personalised, written):
    """The orange bar is as much longer than the grey ones as the model got better."""
    image = matplotlib.image.imread(personalised[0] / "personalise.png")[..., :3]
    grey, orange, blue = (np.abs(image - to_rgb(colour)).max(2) < 0.02 for colour in (GREY, ORANGE, BLUE))
    lengths = [np.flatnonzero(mask.sum(0) > 20).size for mask in (grey, orange)]
    before = max(one["balanced_accuracy"] for one in written["figures"] if one["kind"] == "before")
    after = figures_of(written, "personalised model")["balanced_accuracy"]
    assert lengths[1] / lengths[0] == pytest.approx(after / before, rel=0.03)
    assert blue.any()


# ---- the adaptation -------------------------------------------------------------------------------------------


def made_windows(gestures: int, count: int = 40) -> WindowSet:
    """`count` windows (T = 60, C = 3) of each gesture, which is strong in the channel of its number."""
    strength = np.full((gestures, 3), 10.0)
    np.fill_diagonal(strength, 40.0)
    labels = np.repeat(np.arange(gestures), count)
    emg = np.random.default_rng(1).normal(size=(len(labels), 60, 3)) * strength[labels, None]
    return WindowSet(emg, pd.DataFrame({"TRAJ_GT": labels, "subject": "1", "session": "1"}), {"scale": 1.0})


def made_model(gestures: int, linear_path: bool) -> EMGForSequenceClassification:
    names = {"class_codes": range(gestures), "class_names": [f"gesture {i}" for i in range(gestures)]}
    shape = {"backbone": {"n_embd": 8, "n_head": 2, "n_layer": 1}, "tokens": ["bands"], "window": 60, "patch": 20}
    torch.manual_seed(0)
    config = EMGConfig(**names, **shape, channels=["a", "b", "c"], linear_path=linear_path)
    return EMGForSequenceClassification(config).eval()


@pytest.mark.parametrize("gestures", [2, 3])
@pytest.mark.parametrize("linear_path", [True, False])
@torch.no_grad()
def test_logits_are_the_factor_times_the_models_and_lda_on_top(gestures, linear_path, tmp_path):
    model, windows = made_model(gestures, linear_path), made_windows(gestures)
    places = np.arange(len(windows.table)) % 2  # two repetitions of each gesture
    adapted = adapt(model, windows, np.arange(len(places)), places)
    adapted.model.save_pretrained(tmp_path)
    emg = torch.tensor(windows.emg).float()
    reference = measure_reference(emg)
    features = model.normalise(emg, reference)[1].double().numpy()
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(gestures, 1 / gestures))
    theirs = torch.tensor(lda.fit(features, windows.targets).decision_function(features))
    theirs = torch.stack([-theirs / 2, theirs / 2], 1) if gestures == 2 else theirs
    expected = adapted.factor * model(emg=emg, reference=reference).logits + adapted.weight * theirs
    assert adapted.weight > 0  # the untrained model is of no use, and LDA is right on the other repetition too
    assert torch.allclose(load_model(tmp_path)(emg=emg).logits, expected.float(), atol=1e-3)


def test_the_factor_is_the_one_of_lowest_cross_entropy_from_none_to_all():
    """Two of three right with the same margin m: cross entropy is lowest where a window counts as right by 2 : 1."""
    logits, targets = (
        np.array([[4.0, 0], [4.0, 0], [4.0, 0], [0, 4.0], [0, 4.0], [0, 4.0]]),
        np.array([0, 0, 1, 1, 1, 0]),
    )
    assert best_factor(logits, targets) == pytest.approx(np.log(2) / 4, abs=1e-4)
    assert best_factor(logits, 1 - targets) == pytest.approx(0, abs=1e-4)  # wrong more often than right
    assert best_factor(logits, logits.argmax(1)) == pytest.approx(1, abs=1e-4)  # never surer than it was


def test_the_mix_is_the_one_that_is_right_most_often():
    """Each is right with half of the windows; ours by a margin of 1 or 0.1, theirs by 1 or 20, wrong by the other."""
    targets = np.array([0, 0, 1, 1])
    sign = np.array([[1, -1]] * 2 + [[-1, 1]] * 2) / 2
    ours, theirs = np.array([1, -0.1, 1, -0.1])[:, None] * sign, np.array([-1, 20, -1, 20])[:, None] * sign
    assert best_mix(ours, theirs, targets) == 0.1  # from 0.01 (−0.099 + 0.2) to 0.3 (0.7 − 0.3) all are right
    assert best_mix(sign, -sign, targets) == 0.03  # from 0 to 0.3 all are right


def test_lda_is_judged_on_the_repetition_that_it_was_not_fitted_to():
    """Both repetitions of each class lie apart: in its own one LDA is right, in the other one wrong."""
    targets, places = np.repeat([0, 0, 1, 1], 20), np.repeat([0, 1, 0, 1], 20)
    middle = np.where(targets == places, 1.0, -1.0)  # the second repetition has the classes changed over
    features = torch.tensor(middle[:, None] + np.random.default_rng(0).normal(scale=0.1, size=(80, 2)))
    assert (held_out_logits(features, targets, places).argmax(1) != targets).all()
    assert held_out_logits(features, targets, np.zeros(80, int)) is None  # one repetition says nothing


def test_the_reference_of_a_session_counts_rest_as_training_did():
    """A calibration of as much rest as gesture, for a model that was trained on 90 % rest."""
    model, windows = made_model(2, True), made_windows(2)
    model.class_share.copy_(torch.tensor([0.9, 0.1]))
    scale = with_reference_of(model, windows, np.arange(80)).scale[0]
    power = np.square(windows.emg - windows.emg.mean(1, keepdims=True)).mean(1)  # (80, 3)
    expected = np.sqrt(0.9 * power[:40].mean(0) + 0.1 * power[40:].mean(0))
    assert scale.numpy() == pytest.approx(expected, rel=1e-4)


# ---- wrong inputs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def day(small_file, tmp_path_factory) -> Path:
    """Person 03's first day, few windows."""
    path = tmp_path_factory.mktemp("day") / "day.parquet"
    return variant(small_file, path, lambda table: table["session"] == "2018-05-11")


def one_sentence(arguments: list, words: str, capsys) -> None:
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("personalise: ")
    assert words in said.err


def test_a_wrong_command_is_refused_in_one_sentence(trained, day, small_file, tmp_path, capsys):
    model, full = trained / "best_model", tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("mine")
    for arguments, words in (
        ([model, day], "--subject"),
        ([model, day, "--subject", "04"], "has no such subject; choose from 03"),
        ([model, day, "--subject", "03", "--session", "2018-01-01"], "has no such session; choose from 2018-05-11"),
        ([model, day, "--subject", "03", "--repetitions", "0"], "0 is not a number from 1"),
        ([model, day, "--subject", "03", "--repetitions", "4"], "has 4 repetitions, and 5 are needed"),
        ([model, small_file, "--subject", "03", "--out", full], "there is something already"),
        ([model, tmp_path / "none.parquet", "--subject", "03"], "there is no such file"),
        ([tmp_path / "none", day, "--subject", "03"], "no model can be loaded"),
        ([model, day, "--subject", "03", "--memory-gb", "-1"], "MEMORY_GB"),
    ):
        one_sentence(arguments, words, capsys)
    assert [path.name for path in full.iterdir()] == ["note.txt"]


def test_data_that_do_not_fit_the_model_are_refused_in_one_sentence(trained, day, tmp_path, capsys):
    described = json.loads(pq.read_schema(day).metadata[b"emg"])
    names, settings = described["class_names"], described["settings"]
    others = [f"OTHER_{number}" for number in range(8)]
    for number, (changes, words) in enumerate(
        (
            ({"channels": others}, "channel: OTHER_0, and"),
            ({"channels": others[:7], "change": lambda emg: emg[..., :7]}, "number of channels: 7, and"),
            ({"window": 200, "change": lambda emg: emg[:, :200]}, "samples a window: 200, and"),
            ({"sampling_rate": 500.0}, "Hz: 500.0, and"),
            ({"unit": "as recorded"}, "unit: as recorded, and"),
            ({"settings": settings | {"FILTER": "causal"}}, "FILTER: causal, and"),
            ({"settings": settings | {"BAND_HZ": [20, 300]}}, "BAND_HZ: [20, 300], and"),
            ({"class_names": names | {"1": "point"}}, "label 1 is point, not fist"),
            ({"keep": lambda table: table["TRAJ_GT"] != 6}, "pinch index: not in this session"),
            ({"keep": lambda table: (table["TRAJ_GT"] != 0) | (table["start"] % 4 < 1)}, "windows in its first"),
        )
    ):
        path = variant(day, tmp_path / f"{number}.parquet", **changes)
        one_sentence([trained / "best_model", path, "--subject", "03"], words, capsys)
    assert len(list(tmp_path.iterdir())) == 10  # nothing was written


def test_a_gesture_that_the_model_does_not_know_is_refused_by_name(trained, day, tmp_path, capsys):
    table = pq.read_table(day)
    labels = np.where(table["TRAJ_GT"].to_numpy() == 9, 5, table["TRAJ_GT"].to_numpy()).astype(np.int8)
    path, described = tmp_path / "new.parquet", json.loads(table.schema.metadata[b"emg"])
    described["class_names"]["5"] = "point"
    table = table.set_column(table.column_names.index("TRAJ_GT"), "TRAJ_GT", pa.array(labels))
    pq.write_table(table.replace_schema_metadata({b"emg": json.dumps(described).encode()}), path)
    words = "point (label 5): no gesture that"
    one_sentence([trained / "best_model", path, "--subject", "03"], words, capsys)


# ---- the verdict ----------------------------------------------------------------------------------------------


def test_the_verdict_compares_the_personalised_model_with_the_one_that_came(personalised, written):
    found, said = written["verdict"], personalised[1].stdout
    reached = [figures_of(written, name)["balanced_accuracy"] for name in ("personalised model", "model as saved")]
    assert [found["first"], found["second"]] == pytest.approx(reached)
    assert (found["words"], found["unit"]) == ("better", "repetition")
    assert found["p"] < 0.01
    assert f"balanced accuracy {reached[0]:.3f} beside {reached[1]:.3f}: better" in said
    assert written["kept"] == "personalised model"
    assert written["loss"] < written["loss_before"]
    assert "Kept: the personalised model" in said


@pytest.mark.parametrize("remembers", ["config", "split"])
def test_a_day_that_the_model_was_trained_on_is_refused(trained, small_file, tmp_path, capsys, remembers):
    """By the model's own config, wherever its folder is; by split.csv beside the folder of an older model."""
    model = copied_model(trained, tmp_path / "run" / "best_model", days=remembers == "config")
    if remembers == "split":
        shutil.copy(trained / "split.csv", tmp_path / "run")
    flags = ["--subject", "03", "--session", "2018-05-11", "--out", tmp_path / "out"]
    one_sentence([model, small_file, *flags], "was trained on subject 03, session 2018-05-11", capsys)
    one_sentence([model, small_file, *flags], "(03 on 2018-06-14)", capsys)
    assert not (tmp_path / "out").exists()


def copied_model(trained: Path, folder: Path, days: bool) -> Path:
    """The trained model elsewhere, with no run around it; without `days` as an older version wrote it."""
    shutil.copytree(trained / "best_model", folder)
    config = json.loads((folder / "config.json").read_text())
    if not days:
        del config["trained_days"]
        weights = load_file(folder / "model.safetensors")
        own = {name: tensor for name, tensor in weights.items() if not name.startswith("class_")}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_that_fits_as_it_is_stays_as_it_is(trained, day, tmp_path, capsys):
    """It was trained on these windows, which an older model's copied folder cannot know, and nothing can be gained."""
    model, out = copied_model(trained, tmp_path / "model", days=False), tmp_path / "out"
    for keep, name in (("better", "model as saved"), ("personalised", "personalised model")):
        flags = ["--subject", "03", "--keep", keep, "--out", str(out / keep)]
        assert main([str(model), str(day), *flags]) == 0
        said = capsys.readouterr().out
        assert "cannot be checked" in said
        assert f"Kept: the {name}" in said
        written = json.loads((out / keep / "personalise.json").read_text(encoding="utf-8"))
        assert written["kept"] == name
        assert not written["training_days_known"]
    old, same, other = (load_model(folder).state_dict() for folder in (model, out / "better", out / "personalised"))
    assert all(torch.equal(old[key], same[key]) for key in old)
    assert not torch.equal(old["scale"], other["scale"])
    card = (out / "better" / "README.md").read_text(encoding="utf-8")
    assert "kept here unchanged" in card
    assert "**Personalised**" not in card
