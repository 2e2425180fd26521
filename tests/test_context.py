"""A model with context: what a sentence is made of, what each of its windows can see, and what main.py writes."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import STEM, call, raw_table, write_raw
from sklearn.metrics import balanced_accuracy_score

from EMG_DATA_LOADER import Split
from emg_gpt2.live.calibrating import calibration_of
from emg_gpt2.live.memory import Calibration, Memory
from emg_gpt2.live.signals import every_window, read_signal
from emg_gpt2.model.build import build_model, load_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification, reading_order
from emg_gpt2.model.session_path import SessionPath
from emg_gpt2.settings import Settings
from emg_gpt2.study import telling
from emg_gpt2.training.crossed import crossed
from emg_gpt2.training.task import make_task
from emg_gpt2.windows.reading import WindowSet, load_windows, open_windows
from emg_gpt2.windows.sentences import (
    CONTEXTS,
    UNTOLD,
    draw_sentences,
    first_repetitions,
    pieces,
    questions,
    sessions_of,
    single_windows,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = 12
FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48},
}


@pytest.fixture(scope="module")
def windows() -> WindowSet:
    """Two people, two sessions each, three gestures of two, three and four repetitions of five windows, one of idle."""
    rows, names = [], {"0": "idle", "2": "fist", "5": "flexion", "9": "pinch"}
    for subject, day in (("03", 1), ("03", 2), ("04", 1), ("04", 2)):
        recording, start = f"emg_gestures-{subject}-sequential-2018-05-0{day}-11-05-00-695", 0.0
        for label, repetitions in ((0, 1), (2, 2), (5, 3), (9, 4)):
            for repetition in range(repetitions):
                for _ in range(5):
                    rows.append((label, subject, f"2018-05-0{day}", "sequential", recording, repetition, start))
                    start += 0.25
    columns = ["TRAJ_GT", "subject", "session", "trajectory", "recording", "repetition", "start"]
    table = pd.DataFrame(rows, columns=columns)
    emg = np.random.default_rng(0).integers(-99, 99, (len(table), 50, 2)).astype(np.int16)
    return WindowSet(emg, table, {"class_names": names, "scale": 1.0})


def key(windows: WindowSet, rows: np.ndarray) -> set:
    return set(map(tuple, windows.table.iloc[rows][["subject", "session", "TRAJ_GT", "repetition"]].to_numpy()))


# ---- sentences ------------------------------------------------------------------------------------------------


def test_a_sentence_is_of_one_session_and_no_repetition_is_told_and_judged(windows):
    sessions = sessions_of(windows, np.arange(len(windows.table)))
    drawn = draw_sentences(sessions, 300, CONTEXT + 1, np.random.default_rng(0))
    assert drawn.rows.shape == drawn.told.shape == drawn.targets.shape == (300, 13)
    told = ~drawn.judged
    assert 100 < told.any(1).sum() < 250  # three of five begin with a calibration, some of them with no gesture kept
    assert told.sum(1).max() <= 9  # a quarter is judged
    for rows, mine in zip(drawn.rows, told, strict=True):
        assert len(windows.table.iloc[rows][["subject", "session"]].drop_duplicates()) == 1
        assert not key(windows, rows[mine]) & key(windows, rows[~mine])
        assert not mine[mine.sum() :].any()  # what is told comes first


def test_some_calibrations_lack_gestures_and_some_have_other_names(windows):
    drawn = draw_sentences(sessions_of(windows, np.arange(150)), 600, 17, np.random.default_rng(1))
    right = windows.targets[drawn.rows]
    exchanged = (drawn.targets != right).any(1)
    assert 20 < exchanged.sum() < 120  # 600 · 3/5 · 1/2 · 1/5, less those that happen to be the same
    for names, classes in zip(drawn.targets[exchanged], right[exchanged], strict=True):
        pairs = set(zip(classes.tolist(), names.tolist(), strict=True))
        assert len(pairs) == len(set(classes.tolist())) == len(set(names.tolist()))  # one name for each gesture
    told = [len(set(targets[told != UNTOLD])) for targets, told in zip(drawn.targets, drawn.told, strict=True)]
    assert set(told) == {0, 1, 2, 3}  # idle has a single repetition, which is judged


def test_a_sentence_of_one_window_is_of_any_gesture_and_nothing_is_told(windows):
    drawn = draw_sentences(sessions_of(windows, np.arange(len(windows.table))), 400, 1, np.random.default_rng(0))
    assert drawn.judged.all()
    assert (drawn.targets == windows.targets[drawn.rows]).all()
    assert min(np.bincount(drawn.targets.ravel())) > 70  # 100 of each of four gestures, whatever their repetitions


def test_the_order_of_the_protocol_cannot_be_learnt(windows):
    """The same session played backwards gives the same sentences of gestures: only the dice decide their order."""
    backwards = windows.table.assign(start=windows.table["start"].to_numpy()[::-1].copy())
    other = WindowSet(windows.emg, backwards, windows.metadata)
    drawn = [
        draw_sentences(sessions_of(one, np.arange(50)), 50, 13, np.random.default_rng(2)) for one in (windows, other)
    ]
    assert (drawn[0].targets == drawn[1].targets).all()
    assert (drawn[0].rows != drawn[1].rows).any()


def test_windows_by_themselves(windows):
    drawn = single_windows(windows, np.array([3, 7]))
    assert drawn.rows.tolist() == [[3], [7]]
    assert drawn.judged.all()
    assert drawn.targets.tolist() == [[windows.targets[3]], [windows.targets[7]]]


def test_every_window_is_judged_once_from_those_before_it():
    for count in (1, 5, 13, 14, 100):
        judged = []
        for rows, first in pieces(np.arange(count), CONTEXT):
            assert len(rows) <= CONTEXT + 1
            assert (np.diff(rows) == 1).all()
            assert first in (0, CONTEXT // 2)
            judged += rows[first:].tolist()
        assert judged == list(range(count))


def test_a_calibration_is_the_first_repetition_of_each_gesture(windows):
    (session,) = sessions_of(windows, np.arange(50))  # rows: idle 0–4, fist 5–14, flexion 15–29, pinch 30–49
    told, left = first_repetitions(session, CONTEXT)
    assert told.tolist() == [5, 7, 9, 15, 17, 19, 30, 32, 34]  # three of five windows of each; idle has one repetition
    assert left.tolist() == [0, 1, 2, 3, 4, *range(10, 15), *range(20, 30), *range(35, 50)]


def test_questions_tell_nothing_of_the_windows_that_they_judge(windows):
    asked = questions(windows, np.arange(len(windows.table)), CONTEXT)
    assert list(asked) == list(CONTEXTS)
    for name, each in asked.items():
        judged = np.concatenate([one.rows[one.first :] for one in each])
        assert len(set(judged)) == len(judged) == (200 if name != "calibrated" else 140)
        for one in each:
            assert (one.told[one.first :] == UNTOLD).all()
            assert not key(windows, one.rows[one.told != UNTOLD]) & key(windows, one.rows[one.first :])
    assert {one.remembered for one in asked["none"]} == {0}
    assert all((one.told[: one.first] != UNTOLD).all() for one in asked["calibrated"])


# ---- what a window sees -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> EMGForSequenceClassification:
    """With random weights, the embeddings of gestures too."""
    torch.manual_seed(0)
    names = {"channels": ["a", "b"], "class_codes": [0, 2, 5], "class_names": ["idle", "fist", "flexion"]}
    shape = {"model_type": request.param} | FAMILIES[request.param]
    config = EMGConfig(backbone=shape, window=50, patch=25, filters=2, filter_taps=5, context=8, **names)
    return EMGForSequenceClassification(config).eval()


@torch.no_grad()
def judge(model: EMGForSequenceClassification, emg: torch.Tensor, told: list[int], remembered: int | None = None):
    return model(emg=emg, told=torch.tensor([told]), remembered=remembered).logits


def test_a_window_sees_itself_and_what_was_before_it_bit_for_bit(model):
    emg, told = torch.randn(6, 50, 2), [2, 0, UNTOLD, UNTOLD, UNTOLD, UNTOLD]
    before, future = judge(model, emg, told), emg.clone()
    future[4] = 9.0
    after = judge(model, future, told)
    assert torch.equal(before[:4], after[:4])
    assert (before[4:] != after[4:]).any(1).all()


def test_what_is_told_of_a_window_changes_later_answers_alone(model):
    emg = torch.randn(5, 50, 2)
    one, other = (judge(model, emg, [1, told, UNTOLD, UNTOLD, UNTOLD]) for told in (0, 2))
    assert torch.equal(one[:2], other[:2])
    assert (one[2:] != other[2:]).any(1).all()


def test_windows_that_are_not_remembered_are_as_if_each_came_next(model):
    emg, told = torch.randn(6, 50, 2), [2, 1, UNTOLD, UNTOLD, UNTOLD, UNTOLD]
    together = judge(model, emg, told, remembered=2)
    for place in range(2, 6):
        alone = judge(model, emg[[0, 1, place]], told[:3])
        torch.testing.assert_close(together[place], alone[2], rtol=1e-4, atol=1e-5)


def test_a_window_by_itself_is_the_first_of_a_sentence(model):
    emg = torch.randn(3, 50, 2)
    alone = model(emg=emg).logits.detach()
    torch.testing.assert_close(judge(model, emg, [UNTOLD] * 3, remembered=0), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(judge(model, emg, [UNTOLD] * 3)[:1], alone[:1], rtol=1e-4, atol=1e-5)


def test_reading_order_by_hand():
    seen, positions = reading_order(3, None, torch.device("cpu"))
    assert positions.tolist() == [0, 0, 1, 1, 2, 2]
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 1, 0, 1, 0, 1],
    ]


def test_a_sentence_longer_than_the_language_model_reads_is_refused(tiny_gpt2):
    with pytest.raises(Exception, match=r"CONTEXT = 1024: .* reads 1023 windows at most"):
        build_model(EMGConfig(context=1024), str(tiny_gpt2), "never", 1)


# ---- main.py ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(small_file, tiny_gpt2, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("context") / "run"
    parts = ["--train-on", "03/2018-05-11/*", "--test-on", "03/2018-06-14/*", "--num-epochs", "1", "--batch-size", "65"]
    backbone = ["--model-name", tiny_gpt2, "--pretrained", "never", "--precision", "fp32", "--rotation", "1"]
    done = call("main.py", "--data-location", small_file, *parts, *backbone, "--context", CONTEXT, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_main_judges_with_nothing_with_what_came_before_and_with_a_calibration(run, small_file):
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["context"]) == ["none", "unlabelled", "calibrated"]
    for name, figures in metrics["context"].items():
        assert figures["what"] == CONTEXTS[name]
        assert figures["at_most"] == (0 if name == "none" else CONTEXT)
        assert figures["per_subject"]["03"]["balanced_accuracy"] == figures["balanced_accuracy"]
    assert metrics["balanced_accuracy"] == metrics["context"]["unlabelled"]["balanced_accuracy"]
    assert metrics["context"]["none"]["windows"] == metrics["n_test"] > metrics["context"]["calibrated"]["windows"]
    history = pd.read_csv(run / "history.csv")
    assert (history["validation_unlabelled"] == history["validation_balanced_accuracy"]).all()
    predictions = pd.read_parquet(run / "predictions.parquet")
    right = (predictions["predicted"] == predictions["TRAJ_GT"]).mean()
    assert right == pytest.approx(metrics["accuracy"])


def test_card_report_and_log_show_the_three(run):
    metrics = json.loads((run / "metrics.json").read_text())
    card, log = (run / "best_model" / "README.md").read_text(), (run / "log.txt").read_text()
    page = (run / "report.html").read_text()
    for name, figures in metrics["context"].items():
        reached = f"{figures['balanced_accuracy']:.3f}"
        assert f"{reached} from {figures['what']}" in card
        assert f"context {name}: balanced accuracy {reached} on {figures['windows']} windows" in log
        assert f"{name}: {figures['what']}" in page


def test_a_saved_model_with_context_is_the_same(run, small_file):
    model = load_model(run / "best_model")
    assert model.config.context == CONTEXT
    assert model.config.scale == "training"  # a session's signal as a whole is not looked at
    emg = torch.from_numpy(open_windows(small_file).emg[np.arange(4)]).float()
    assert model(emg=emg).logits.shape == (4, 8)


def test_a_gesture_of_a_single_session_can_be_learnt(windows, tmp_path):
    """Pinch is in one of the two training sessions alone, so no path can be fitted without that session."""
    kept = (
        windows.table["TRAJ_GT"].ne(9) | windows.table.index.isin(range(50)) | windows.table.index.isin(range(150, 200))
    )
    rows = np.flatnonzero(kept)
    table = windows.table.iloc[rows].reset_index(drop=True).assign(subject="03")
    table.loc[rows >= 100, "session"] = "2018-05-03"  # a later day, for the test
    part = WindowSet(windows.emg[rows], table, windows.metadata)
    train, test = np.flatnonzero(rows < 100), np.flatnonzero(rows >= 100)
    task = make_task(part, Split(train, train[:0], test, "named", ""), Settings(CONTEXT=4))
    config = EMGConfig(channels=["a", "b"], class_codes=[0, 2, 5, 9], class_names=list("wxyz"), context=4)
    groups, paths = crossed(EMGForSequenceClassification(config), task, 0)
    assert (len(groups), len(groups[0]), paths) == (1, 2, [])


def test_freeze_has_no_sentences(small_file):
    done = call("main.py", "--data-location", small_file, "--context", 4, "--freeze")
    assert done.returncode == 1
    assert "FREEZE with CONTEXT = 4: what is frozen is computed once" in done.stderr


# ---- predict and stream -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recordings(raw_folder, tmp_path_factory) -> list[Path]:
    """Two of person 03's second day, which the model was not trained on: the first fifth of one, and the other one."""
    judged, told = sorted(raw_folder.glob("emg_gestures-03-repeats_*-2018-06-14-*.hdf5"))
    table = pd.read_hdf(judged)
    return [write_raw(table.iloc[: len(table) // 5], tmp_path_factory.mktemp("short") / judged.name), told]


def predicted(model: Path, recording: Path, out: Path, *more: str | Path) -> tuple[pd.DataFrame, str]:
    done = call("emg_gpt2.commands.predict", recording, "--model", model, "--out", out, "--smooth", "none", *more)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(out / f"{recording.stem}.csv"), done.stdout + done.stderr


def test_predict_reads_what_came_before(run, recordings, tmp_path):
    """The decisions are those of a sentence: from the windows before, as far apart as in training."""
    table, said = predicted(run / "best_model", recordings[0], tmp_path, "--hop-ms", "125")
    assert f"from at most {CONTEXT} windows before it, none with a gesture" in said
    model = load_model(run / "best_model")
    signal = read_signal(recordings[0], model, "model")
    emg = torch.from_numpy(every_window(signal.samples, 250, 125)[: CONTEXT + 1].copy())
    expected = judge(model, emg, [UNTOLD] * (CONTEXT + 1)).softmax(1)
    found = table.filter(like="p_").to_numpy()[: CONTEXT + 1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_calibration_is_read_first(run, recordings, tmp_path):
    model = load_model(run / "best_model")
    plain, _ = predicted(run / "best_model", recordings[0], tmp_path / "plain", "--hop-ms", "250")
    told = ["--hop-ms", "250", "--calibrate", recordings[1]]
    calibrated, said = predicted(run / "best_model", recordings[0], tmp_path / "told", *told)
    assert "8 of them with a gesture" in said  # three quarters of twelve are nine: one of each gesture
    calibration = calibration_of(read_signal(recordings[1], model, "model"), model)
    assert calibration.gestures.tolist() == list(range(8))
    signal = read_signal(recordings[0], model, "model")
    emg = torch.from_numpy(np.concatenate([calibration.windows, every_window(signal.samples, 250, 250)[:1]]))
    expected = judge(model, emg, [*range(8), UNTOLD]).softmax(1)[-1]
    np.testing.assert_allclose(calibrated.filter(like="p_").to_numpy()[0], expected, atol=1e-4)
    assert not np.allclose(plain.filter(like="p_"), calibrated.filter(like="p_"))


def test_a_stream_decides_as_predict_does(run, recordings, tmp_path):
    told = ["--calibrate", recordings[1], "--smooth", "none", "--hop-ms", "250"]
    table, _ = predicted(run / "best_model", recordings[0], tmp_path, "--filter", "causal", *told)
    done = call("emg_gpt2.commands.stream", recordings[0], "--model", run / "best_model", "--speed", "0", *told)
    assert done.returncode == 0, done.stderr
    streamed = pd.read_csv(io.StringIO(done.stdout))
    shares = [one.filter(like="p_").to_numpy() for one in (table, streamed)]
    count = min(map(len, shares))
    assert abs(len(table) - len(streamed)) <= 1
    np.testing.assert_allclose(shares[1][:count], shares[0][:count], atol=1e-3)


def test_bad_calibrations_are_refused_in_a_sentence(run, trained, recordings, tmp_path):
    silent = write_raw(raw_table(np.zeros((4000, 8)), np.repeat([0, 1], 2000)), tmp_path / f"{STEM}.hdf5")
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    noise = np.random.default_rng(0).integers(-99, 99, (4000, 8))
    write_raw(raw_table(noise, np.full(4000, 44)), unknown / f"{STEM}.hdf5")
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    write_raw(raw_table(noise[:, :3], np.zeros(4000)), narrow / f"{STEM}.hdf5")
    for model, calibration, words in (
        (trained, recordings[1], "judges every window by itself; choose a model that was trained with CONTEXT"),
        (run, unknown, "no window lies in a gesture that the model knows"),
        (run, narrow, "3 channels, and the model was trained on 8"),
        (run, silent, "no channel changes in the calibration"),
        (run, recordings[1].parent, "recordings; name one"),
    ):
        flags = ["--model", model / "best_model", "--calibrate", calibration, "--out", tmp_path / "out"]
        done = call("emg_gpt2.commands.predict", recordings[0], *flags)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_memory_forgets_its_older_half_and_keeps_the_calibration(model):
    """Decision after decision as if the sentence were read anew."""
    torch.manual_seed(1)
    model.config.preprocessing = {"STRIDE_MS": 50.0}  # a window at 1000 Hz: every window is kept
    emg, told = (
        torch.randn(30, 50, 2),
        Calibration(np.random.default_rng(0).normal(size=(2, 50, 2)).astype("f"), np.array([2, 0])),
    )
    memory = Memory(model, 50, told)
    with torch.inference_mode():
        found = torch.cat([memory(part, None) for part in emg.split(4)])
    kept = list(torch.from_numpy(told.windows))
    for place, window in enumerate(emg):
        sentence = torch.stack([*kept, window])
        expected = judge(model, sentence, [2, 0, *[UNTOLD] * (len(kept) - 1)])[-1]
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-4)
        if len(kept) == 8:  # of six, the two youngest stay
            kept = kept[:2] + kept[6:]
        kept.append(window)


# ---- the path in closed form ------------------------------------------------------------------------------------


def new_path(channels: int, classes: int, ring: int = 1, **values: list) -> SessionPath:
    """A path for a context of eight windows, whose means move after every window."""
    names = [str(number) for number in range(max(channels, classes))]
    classes = {"class_codes": range(classes), "class_names": names[:classes]}
    config = EMGConfig(channels=names[:channels], ring=ring, context=8, **classes)
    path = SessionPath(config)
    for name, value in values.items():
        getattr(path, name).copy_(torch.tensor(value))
    return path


def likelihoods(window: float, *classes: tuple[float, float]) -> list[float]:
    return [-0.5 * 0.3 * ((window - mean) ** 2 / variance + np.log(variance)) for mean, variance in classes]


def test_what_is_told_moves_the_mean_of_its_class_by_hand():
    """One feature, classes at 0 and 2, whose own means vary by 3 from session to session. A window at 4 counts half, so
    the mean of its class becomes 3 · (4 / 2) / (1 + 3 / 2) = 2.4, and its windows vary by 1 + 3 / (1 + 3 / 2) = 2.2."""
    path = new_path(1, 2, means=[[0.0], [2.0]], own=[3.0], shared=[1e-9])
    found = path(torch.tensor([[[4.0], [5.0]]]), torch.tensor([[0, UNTOLD]]))[0, 1]
    expected = torch.tensor(likelihoods(5, (2.4, 2.2), (2, 4)))
    torch.testing.assert_close(found - found[0], expected - expected[0], check_dtype=False, rtol=1e-4, atol=1e-4)


def test_what_is_told_of_one_class_moves_the_others_by_what_they_share():
    """As above, but the offset of the session varies by 3 and nothing else: both means move by 2 / (1/3 + 1/2) = 2.4,
    and the offset still varies by 1.2."""
    path = new_path(1, 2, means=[[0.0], [2.0]], own=[1e-9], shared=[3.0])
    found = path(torch.tensor([[[4.0], [5.0]]]), torch.tensor([[0, UNTOLD]]))[0, 1]
    expected = torch.tensor(likelihoods(5, (2.4, 2.2), (4.4, 2.2)))
    torch.testing.assert_close(found - found[0], expected - expected[0], check_dtype=False, rtol=1e-4, atol=1e-4)


def test_windows_that_are_not_told_move_the_means_too():
    """Classes at 0 and 8; the session lies 3 to the right. A window at 5 looks like the second class at first, and like
    the first one after windows around 3 and 11."""
    path = new_path(1, 2, means=[[0.0], [8.0]], own=[0.05], shared=[9.0])
    read = torch.tensor([3.0, 11.0, 2.8, 11.1, 3.2, 10.9, 3.0, 11.0])
    asked = path(torch.tensor([[5.0]])[:, None], torch.tensor([[UNTOLD]]))[0, -1]
    after = path(torch.cat([read, torch.tensor([5.0])])[None, :, None], torch.full((1, 9), UNTOLD))[0, -1]
    assert (asked.argmax(), after.argmax()) == (1, 0)


@pytest.fixture(scope="module")
def turned_arms() -> tuple[SessionPath, np.ndarray]:
    """A path that was fitted to 40 sessions of a ring of four electrodes, on arms turned by 0 to 3; and the centres of
    its three classes."""
    rng, centres = np.random.default_rng(1), 6 * np.random.default_rng(0).normal(size=(3, 10))
    path, turns = new_path(4, 3, ring=4), rng.choice(4, 40, p=[0.7, 0.1, 0.1, 0.1])
    orders = path.pairs.numpy()
    targets, sessions = np.tile(np.arange(3).repeat(20), 40), np.arange(40).repeat(60)
    windows = (centres + rng.normal(size=(40, 3, 10)))[sessions, targets] + rng.normal(size=(2400, 10))
    path.fit(np.take_along_axis(windows, orders[turns[sessions]], 1), targets, sessions)
    return path, centres


def test_the_fit_turns_the_sessions_towards_each_other(turned_arms):
    path, _ = turned_arms
    assert sorted(path.shares.tolist())[-1] == pytest.approx(0.7, abs=0.12)
    assert path.directions.shape == (10, 10)
    assert (path.shared + path.own).mean() == pytest.approx(1, rel=0.2)  # with variance 1 within a session


def test_how_an_arm_is_turned_is_found_from_windows_that_are_not_told(turned_arms):
    path, centres = turned_arms
    rng = np.random.default_rng(2)
    targets = np.tile([0, 1, 2], 20)
    windows = centres[targets] + rng.normal(size=(60, 10))
    whole = torch.from_numpy(windows[:, path.pairs.numpy()[2]]).float()[None]
    found = path(whole, torch.full((1, 60), UNTOLD))[0].argmax(1).numpy()
    assert (found == targets)[9:].mean() > 0.95


def test_the_path_finds_how_classes_vary_within_and_between_sessions():
    """Two classes, 400 sessions of 25 windows each: variance 1 within a session, of an offset of both 4, and of their
    own ones 9."""
    rng, sessions, targets = np.random.default_rng(0), np.arange(400).repeat(50), np.tile(np.arange(2).repeat(25), 400)
    moved = 3 * rng.normal(size=(400, 2)) + 2 * rng.normal(size=(400, 1))
    path = new_path(1, 2)
    path.fit((moved[sessions, targets] + 5 * targets + rng.normal(size=len(targets)))[:, None], targets, sessions)
    assert path.own.tolist() == pytest.approx([9], rel=0.15)
    assert path.shared.tolist() == pytest.approx([4], rel=0.25)
    assert (path.means[1] - path.means[0]).abs().tolist() == pytest.approx([5], abs=0.7)
    assert float(path.directions.abs()) == pytest.approx(1, rel=0.05)


def test_other_names_in_the_calibration_are_other_names_in_the_answers():
    """A closed-form model alone: told that the gestures have exchanged their names, it exchanges its answers."""
    path = new_path(1, 2, means=[[0.0], [3.0]], own=[9.0], shared=[1.0])
    asked = torch.tensor([[[0.0], [3.0], [0.2], [2.9]]])
    answers = [
        path(asked, torch.tensor([[*told, UNTOLD, UNTOLD]]))[0, 2:].argmax(1).tolist() for told in ([0, 1], [1, 0])
    ]
    assert answers == [[0, 1], [1, 0]]


# ---- personalise ------------------------------------------------------------------------------------------------


def personalised(run: Path, data: Path, out: Path, *more: str) -> tuple[dict, str]:
    done = call("emg_gpt2.commands.personalise", run / "best_model", data, "--subject", "03", "--out", out, *more)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "personalise.json").read_text()), done.stdout


def test_personalise_compares_prompt_fine_tuning_and_lda(run, small_file, tmp_path, monkeypatch):
    """The prompt by hand: of nine places in twelve each gesture gets one, its first window of the day."""
    monkeypatch.setattr(telling, "STEPS", 2)
    written, said = personalised(run, small_file, tmp_path / "new")
    figures = {one["name"]: one["balanced_accuracy"] for one in written["figures"]}
    lda = ["LDA on log covariances", "LDA on log-RMS", "LDA on Hudgins"]
    models = ["model as saved", "model, windows before it", "prompted model", "personalised model"]
    assert list(figures) == [*models, *lda]
    model, windows = load_model(run / "best_model"), load_windows(Settings(DATA_LOCATION=small_file))
    table = windows.table.assign(target=windows.targets)
    day = table[table["session"] == "2018-06-14"]
    order = day.assign(time=day["recording"].str[-12:]).sort_values(["time", "start"])
    first = order.groupby("target")[["recording", "repetition"]].transform("first")
    used = (order[["recording", "repetition"]] == first).all(axis=1)
    told, tested = order[used].groupby("target").head(1).sort_values("target").index, order[~used].index
    emg = torch.from_numpy(windows.emg[np.concatenate([told, tested])]).float() * windows.metadata["scale"]
    found = judge(model, emg, [*range(8), *[UNTOLD] * len(tested)], remembered=8)[8:].argmax(1)
    expected = balanced_accuracy_score(windows.targets[tested], found)
    assert figures["prompted model"] == pytest.approx(expected)
    assert written["prompt"]["windows"] == 8
    assert list(written["prompt"]["beside"]) == ["model as saved", "personalised model", "LDA on log covariances"]
    assert "Prompted model beside LDA on log covariances, on the test part" in said
    assert "Kept: the model as saved" in said
    assert "The calibration is not in the folder: tell it with predict RECORDING --calibrate" in said
    old, same = (load_model(folder).state_dict() for folder in (run / "best_model", tmp_path / "new"))
    assert all(torch.equal(old[name], same[name]) for name in old)


@pytest.mark.nightly
def test_a_fine_tuned_model_with_context_predicts(run, small_file, recordings, tmp_path, monkeypatch):
    """With two repetitions prompt and fine-tuning are judged; the closed-form path stays as it was."""
    monkeypatch.setattr(telling, "STEPS", 2)
    more = ["--repetitions", "2", "--keep", "personalised"]
    written, said = personalised(run, small_file, tmp_path / "new", *more)
    assert written["kept"] == "personalised model"
    assert f"personalised model {written['loss']:.3f}, prompted model {written['loss_before']:.3f}" in said
    old, new = (load_model(folder).state_dict() for folder in (run / "best_model", tmp_path / "new"))
    assert not torch.equal(old["gestures.weight"], new["gestures.weight"])
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith(("linear.", "scale", "centre")))
    told = ["--hop-ms", "250", "--calibrate", recordings[1]]
    _, said = predicted(tmp_path / "new", recordings[0], tmp_path / "decisions", *told)
    assert "8 of them with a gesture" in said


def test_an_export_is_refused(run):
    done = call("emg_gpt2.commands.export", run / "best_model")
    assert done.returncode == 1
    assert "a model with context cannot be exported yet" in done.stderr
