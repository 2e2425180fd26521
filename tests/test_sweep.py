"""The sweep: the grid, the wide search, and studies that are killed, resumed, shared, pruned and refused."""

import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import optuna
import pandas as pd
import pytest
import torch
from conftest import call
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from safetensors.torch import load_file
from test_main import SMALL, flags, history, read, start

from EMG_DATA_LOADER import split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import load_model
from emg_gpt2.results.run import write_split
from emg_gpt2.settings import Settings
from emg_gpt2.training import sweep as sweeping
from emg_gpt2.training.sweep import SharedStudy, choice, identity, search
from emg_gpt2.training.task import Task, load_task

GRID = [(0, 3e-4), (0, 3e-3), (-1, 3e-4), (-1, 3e-3)]


def trials_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep.csv")


def is_drawn(path: Path) -> bool:
    """Ink on a few percent of white paper at least."""
    image = matplotlib.image.imread(path)[:, :, :3]
    return 0.005 < (image.min(2) < 0.9).mean() < 0.9


@pytest.fixture(scope="session")
def tiny_flags(small_file, tiny_gpt2) -> list[str]:
    where = {"DATA_LOCATION": small_file, "MODEL_NAME": tiny_gpt2, "BLOCKS": 3, "SAMPLING_RATIO": 0.4}
    return ["--sweep", *flags(**where, **SMALL | {"NUM_EPOCHS": 1}, SPLIT="random", NUM_EPOCHS_FOR_VALIDATION=1)]


@pytest.fixture(scope="session")
def grid_flags(tiny_flags) -> list[str]:
    return [*tiny_flags, *flags(SWEEP_NUM_LAYERS="0,-1", SWEEP_LR="3e-4,3e-3")]


# ---- the grid -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def swept(grid_flags, tmp_path_factory) -> tuple[Path, Path, str]:
    """A sweep of 2 × 2 trials on random windows, and a folder for the model that held a file already."""
    base = tmp_path_factory.mktemp("swept")
    (base / "models").mkdir()
    (base / "models" / "notes.txt").write_text("mine")
    settings = {"RUN_DIR": base / "run", "MODEL_SAVING_DIR": base / "models"}
    done = call("main.py", *grid_flags, *flags(**settings, WINDOW_MS=200, FILTER="causal"))
    assert done.returncode == 0, done.stderr
    return base / "run", base / "models", done.stdout


def test_the_sweep_tries_the_whole_grid_and_trains_with_the_best(swept):
    folder, saved, _ = swept[0], read(swept[0], "env.json"), swept[2]
    trials = pd.read_csv(folder / "sweep.csv")
    grid = trials[["NUM_LAYERS", "LR"]].itertuples(index=False, name=None)
    assert list(grid) == [(0, 3e-4), (0, 3e-3), (-1, 3e-4), (-1, 3e-3)]
    best = trials.loc[trials["validation_balanced_accuracy"].idxmax()]
    assert (saved["NUM_LAYERS"], saved["LR"]) == (best["NUM_LAYERS"], best["LR"])
    assert set(trials["state"]) == {"complete"}
    assert set(trials["epochs"]) == {1}
    # The last training has the trial's seed, data and single epoch.
    assert history(folder)["validation_balanced_accuracy"].tolist() == [best["validation_balanced_accuracy"]]


def test_frozen_blocks_keep_the_language_models_weights(swept, tiny_gpt2):
    """With −1 the first two of three blocks are frozen but for their norms, with 0 the third as well."""
    source, model = load_file(tiny_gpt2 / "model.safetensors"), load_file(swept[0] / "best_model" / "model.safetensors")
    frozen = 3 + read(swept[0], "env.json")["NUM_LAYERS"]
    assert frozen in (2, 3)
    backbone = {name.removeprefix("backbone."): t for name, t in model.items() if name.startswith("backbone.")}
    unchanged = {name for name, tensor in backbone.items() if torch.equal(tensor, source[name])}
    assert unchanged == {
        name for name in backbone if re.match(r"h\.\d\.(attn|mlp)\.", name) and int(name.split(".")[1]) < frozen
    }


def test_the_parameters_that_are_trained_are_counted(swept):
    metrics, width, linear = read(swept[0], "metrics.json"), 32, 36 * 8 + 8
    frozen = 3 + read(swept[0], "env.json")["NUM_LAYERS"]
    assert metrics["parameters"] - metrics["trainable_parameters"] == frozen * (12 * width**2 + 9 * width) + linear


def test_random_windows_are_announced_wherever_the_result_appears(swept):
    assert "leaky" in read(swept[0], "metrics.json")["split_description"]
    assert "leaky" in (swept[0] / "log.txt").read_text()
    assert "leaky" in swept[2]


def test_settings_that_the_file_was_not_made_with_are_noted(swept):
    log = (swept[0] / "log.txt").read_text()
    assert re.search("WINDOW_MS is 250 in the file, not 200; run Preprocessing.py", log)
    assert re.search("FILTER is putemg in the file, not causal", log)
    assert "STRIDE_MS" not in log


def test_the_model_is_also_put_where_it_was_wanted(swept):
    ours, theirs = (load_model(folder).state_dict() for folder in (swept[1], swept[0] / "best_model"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_other_files_beside_the_saved_model_are_kept(swept):
    assert (swept[1] / "notes.txt").is_file()


def test_a_sweep_is_drawn(swept):
    assert is_drawn(swept[0] / "sweep.png")


# ---- killed, resumed, shared ----------------------------------------------------------------------------------


def kill_in_a_trial(process, folder: Path) -> pd.DataFrame:
    """SIGKILL once a trial is complete and the next is running; returns the trials that were complete."""
    end = time.monotonic() + 120
    trials = pd.DataFrame({"state": []})
    while set(trials["state"]) != {"complete", "running"}:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
        trials = trials_of(folder) if (folder / "sweep.csv").exists() else trials
    process.kill()
    process.communicate(timeout=60)
    return trials[trials["state"] == "complete"]


def check_points(trials: pd.DataFrame, undisturbed: pd.DataFrame) -> None:
    """Every point of the grid is complete once, with the value that it has in a sweep that was left alone."""
    columns = ["NUM_LAYERS", "LR", "validation_balanced_accuracy"]
    complete = trials[trials["state"] == "complete"][columns].sort_values(columns).reset_index(drop=True)
    pd.testing.assert_frame_equal(complete, undisturbed[columns].sort_values(columns).reset_index(drop=True))


@pytest.mark.nightly
def test_a_killed_sweep_goes_on_without_repeating_a_trial(grid_flags, swept, tmp_path):
    """It is resumed while a second process joins its study: together they end it."""
    resumed, joined = tmp_path / "resumed", tmp_path / "joined"
    before = kill_in_a_trial(start(*grid_flags, *flags(RUN_DIR=resumed)), resumed)
    joining = [*grid_flags, *flags(SWEEP_STUDY=resumed / "sweep.journal", RUN_DIR=joined)]
    for process in [start("--resume", str(resumed)), start(*joining)]:
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, said + errors
    log = (resumed / "log.txt").read_text() + (joined / "log.txt").read_text()
    begun = [f"{number}" for number in range(1, 6)]  # the one that was killed, and each of the four points
    assert sorted(re.findall(r" trial (\d+): NUM_LAYERS", log)) == begun
    assert log.count(f"trial {len(before) + 1} was interrupted; it is tried again") == 1
    for folder in (resumed, joined):
        trials = trials_of(folder)
        check_points(trials, trials_of(swept[0]))
        pd.testing.assert_frame_equal(trials.head(len(before)), before)
        assert trials["state"].tolist().count("interrupted") == 1
        for name in ("NUM_LAYERS", "LR"):
            assert read(folder, "env.json")[name] == read(swept[0], "env.json")[name]
        assert (folder / "metrics.json").is_file()


# ---- the wide search ------------------------------------------------------------------------------------------


def test_the_wide_search_starts_from_the_settings_and_returns_the_best(small, folder):
    best, names = search_here(small, folder, BLOCKS=3, SWEEP_TRIALS=3, NUM_EPOCHS_FOR_VALIDATION=1), list(sweeping.WIDE)
    trials = trials_of(folder)
    assert trials["trial"].tolist() == [1, 2, 3]
    assert trials[names].nunique().max() == 3
    free = [name for name in names if name != "BLOCKS"]  # 3 is none of its choices
    assert trials[free].iloc[0].to_dict() == {name: choice(small[1], name) for name in free}
    expected = trials.loc[trials["validation_balanced_accuracy"].idxmax()]
    assert [choice(best, name) for name in names] == expected[names].tolist()
    assert is_drawn(folder / "sweep.png")


def test_the_table_of_the_wide_search_holds_legal_values():
    for name, distribution in sweeping.WIDE.items():
        categorical = isinstance(distribution, CategoricalDistribution)
        for value in distribution.choices if categorical else (distribution.low, distribution.high):
            assert choice(Settings(**{name: value}), name) == value


# ---- one process, step by step --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small(small_file, tiny_gpt2) -> tuple[Task, Settings]:
    """A task, and the settings of a small wide search."""
    settings = {"DATA_LOCATION": small_file, "MODEL_NAME": str(tiny_gpt2), "PRECISION": "fp32", "SWEEP_SPACE": "wide"}
    settings = Settings(**settings, NUM_EPOCHS_FOR_VALIDATION=2, SAMPLING_RATIO=0.3, LR=3e-3, SWEEP_TRIALS=6)
    return load_task(settings), settings


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """A run's folder with its split.csv, as main.py has it when the sweep begins."""
    write_split(small[0], tmp_path)
    return tmp_path


def search_here(small, folder: Path, **other) -> Settings:
    return search(small[0], small[1].model_copy(update=other), folder)


def open_study(small, folder: Path, **other) -> SharedStudy:
    settings = small[1].model_copy(update=other)
    return SharedStudy(settings, identity(small[0], settings, folder), folder)


@pytest.mark.parametrize(("before", "ends"), [(1.0, ("pruned", 1)), (0.0, ("complete", 2))])
def test_a_trial_below_the_median_of_five_is_stopped(small, folder, before, ends):
    """Five trials that stand at 1 (the highest there is) or at 0 after each epoch, then one that is trained."""
    study = open_study(small, folder)
    point = {name: choice(small[1], name) for name in sweeping.WIDE}
    values = {"value": before / 2, "intermediate_values": {1: before, 2: before}}
    made = create_trial(params=point, distributions=sweeping.WIDE, user_attrs={"weights": "random"}, **values)
    study.study.add_trials([made] * 5)
    search_here(small, folder)
    trials = trials_of(folder)
    assert len(trials) == 6
    trained = trials.iloc[0]  # it was queued first
    assert (trained["state"], trained["epochs"]) == ends


def test_the_grid_is_tried_to_the_end(small, folder):
    """Without a pruner: after five trials at 1 the grid's only point still gets both epochs."""
    grid = {"SWEEP_SPACE": "grid", "SWEEP_NUM_LAYERS": [-1], "SWEEP_LR": [1e-4]}
    study, perfect = open_study(small, folder, **grid), {"value": 1.0, "intermediate_values": {1: 1.0, 2: 1.0}}
    point = {"params": {"NUM_LAYERS": -1, "LR": 1e-4}, "distributions": study.space}
    study.study.add_trials([create_trial(**point, **perfect, user_attrs={"weights": "random"})] * 5)
    search_here(small, folder, **grid)
    trained = trials_of(folder).iloc[0]
    assert (trained["state"], trained["epochs"]) == ("complete", 2)


def test_a_trial_that_fails_is_named_and_the_sweep_goes_on(small, folder, monkeypatch, caplog):
    """The settings themselves fail: 200 of 250 samples leave no room for two patches."""
    monkeypatch.setattr(sweeping, "WIDE", {"PATCH_MS": CategoricalDistribution([200.0, 25.0, 50.0])})
    best = search_here(small, folder, PATCH_MS=200.0, SWEEP_TRIALS=4, NUM_EPOCHS_FOR_VALIDATION=1)
    trials = trials_of(folder)
    failed = trials[trials["state"] == "failed"]
    assert len(trials) == 4
    assert set(failed["PATCH_MS"]) == {200.0}
    assert set(trials[trials["state"] == "complete"]["PATCH_MS"]) == {25.0, 50.0}
    assert failed["error"].str.startswith("PATCH_MS = 200 is 200 samples").all()
    assert "trial 1 failed: PATCH_MS = 200 is 200 samples" in caplog.text
    assert best.PATCH_MS in (25.0, 50.0)


def test_if_all_trials_fail_there_is_one_sentence(small, folder, monkeypatch):
    monkeypatch.setattr(sweeping, "WIDE", {"PATCH_MS": FloatDistribution(150.0, 250.0)})
    with pytest.raises(EMGError, match=r"^all 3 trials of the sweep failed, the last because PATCH_MS = ") as error:
        search_here(small, folder, SWEEP_TRIALS=3)
    assert "\n" not in str(error.value)


# ---- studies without training ---------------------------------------------------------------------------------


def work(small, folder: Path, other: dict, dies: bool) -> None:
    """A process that takes trials; one that dies does so in its second."""
    study = open_study(small, folder, **other)
    for count, trial in enumerate(study.trials()):
        time.sleep(0.02)
        if dies and count:
            os.kill(os.getpid(), signal.SIGKILL)
        study.study.tell(trial, 0.5)


SPACES = {
    "grid": {"SWEEP_NUM_LAYERS": [0, -1, -2, -3, -4, -5], "SWEEP_LR": [1e-4, 1e-3, 1e-2, 1e-1]},
    "wide": {"SWEEP_TRIALS": 24},
}


@pytest.mark.parametrize("space", ["grid", pytest.param("wide", marks=pytest.mark.nightly)])
def test_four_processes_of_which_one_dies_try_every_point_once(small, folder, space):
    other = SPACES[space] | {"SWEEP_SPACE": space}
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(small, folder, other, number == 0)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    trials = open_study(small, folder, **other).study.trials
    states, points = [sweeping.state(trial) for trial in trials], {str(trial.params) for trial in trials}
    assert (states.count("complete"), states.count("interrupted"), len(trials), len(points)) == (24, 1, 25, 24)


def test_a_trial_that_others_took_for_dead_ends_the_sweep_in_one_sentence(small, folder, monkeypatch):
    """As in a folder whose locks stay on one machine: while a trial begins here, it is ended elsewhere."""
    build, elsewhere = sweeping.new_model, open_study(small, folder).study

    def build_late(*given):
        elsewhere.tell(0, state=optuna.trial.TrialState.FAIL)
        return build(*given)

    monkeypatch.setattr(sweeping, "new_model", build_late)
    with pytest.raises(EMGError, match=r"sweep.journal: another process ended this trial, .* shares locks$"):
        search_here(small, folder)


def test_more_trials_can_be_wanted_later(small, folder):
    for wanted in (2, 5, 3):
        study = open_study(small, folder, SWEEP_TRIALS=wanted)
        for trial in study.trials():
            study.study.tell(trial, 0.5)
    assert len(study.study.trials) == 5


def test_a_search_that_was_cut_goes_on_with_the_same_points(small, folder):
    """14 trials, in one go or in two: the same values give the same points, those of TPE (after the tenth) too."""
    points = []
    for number, goes in enumerate([(14,), (11, 14)]):
        for wanted in goes:
            study = open_study(small, folder, SWEEP_TRIALS=wanted, SWEEP_STUDY=folder / f"{number}.journal")
            for trial in study.trials():
                study.study.tell(trial, trial.params["DROPOUT"])
        points.append([trial.params for trial in study.study.trials])
    assert points[0] == points[1]


OTHER = {
    "BATCH_SIZE": {"BATCH_SIZE": 7},
    "SEED, split": {"SEED": 5},
    "NUM_EPOCHS_FOR_VALIDATION": {"NUM_EPOCHS_FOR_VALIDATION": 1},
    "search space": {"SWEEP_LR": [1e-4]},
}


@pytest.mark.parametrize("named", OTHER)
def test_a_study_of_something_else_is_refused(small, folder, named):
    before = open_study(small, folder, SWEEP_SPACE="grid").path.read_bytes()
    task, other = small[0], small[1].model_copy(update=OTHER[named] | {"SWEEP_SPACE": "grid"})
    (folder / "split.csv").unlink()
    write_split(replace(task, split=split_windows(task.windows, other)), folder)
    with pytest.raises(EMGError, match=f"sweep.journal: the study was started with another {named}; name a new"):
        open_study(small, folder, **other.model_dump())
    assert (folder / "sweep.journal").read_bytes() == before


def test_a_study_of_other_data_is_refused(small, folder):
    open_study(small, folder)
    task, settings = small
    other = replace(task.windows, metadata=task.windows.metadata | {"scale": 0.5})
    with pytest.raises(EMGError, match="the study was started with another data; name a new SWEEP_STUDY"):
        open_study((replace(task, windows=other), settings), folder)


def test_a_study_may_be_shared_from_other_places(small, folder):
    """Another machine has other paths and less memory; it may want more trials."""
    open_study(small, folder)
    open_study(small, folder, DATA_LOCATION=Path("/elsewhere/w.parquet"), MEMORY_GB=1.0, SWEEP_TRIALS=50, LR=1e-4)


def test_half_a_line_at_the_end_of_a_study_is_dropped(small, folder):
    """As a full disk or a kill leaves it; optuna would write its next line behind it, and never read the two."""
    study = open_study(small, folder)
    whole = study.path.read_bytes()
    study.path.write_bytes(whole + b'{"op_code": 4, "wor')
    again = open_study(small, folder)
    assert study.path.read_bytes() == whole
    assert again.study.user_attrs == study.study.user_attrs


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b'{"mine": 1}', b'{"op_code":0,"worker', bytes(range(256)) * 9])
def test_a_file_that_is_no_study_is_left_alone(small, folder, content):
    path = folder / "mine"
    path.write_bytes(content)
    with pytest.raises(EMGError, match=f"^{path}: this is no study of a sweep, or a damaged one; name a new file"):
        open_study(small, folder, SWEEP_STUDY=path)
    assert path.read_bytes() == content


def test_of_equal_trials_the_first_wins_whichever_of_them_was_interrupted():
    """Trial 1 was interrupted twice, and its third try, trial 4, is as good as trial 2."""
    study, lr = optuna.create_study(direction="maximize"), FloatDistribution(0, 1)
    for number, (repeats, rate) in enumerate([(None, 0.1), (None, 0.2), (0, 0.1), (2, 0.1)]):
        made = {"params": {"LR": rate}, "distributions": {"LR": lr}}
        made |= {"user_attrs": {"repeats": repeats}} if repeats is not None else {}
        fails = number in (0, 2)
        study.add_trial(
            create_trial(state=TrialState.FAIL if fails else TrialState.COMPLETE, value=None if fails else 0.5, **made)
        )
    best = SharedStudy.best(SimpleNamespace(study=study, _first_try=SharedStudy._first_try))
    assert best.params == {"LR": 0.1}


def test_the_wide_space_holds_tokens_of_ones_own():
    own = Settings(SWEEP_SPACE="wide", TOKENS=["raw", "covariance"])
    assert sweeping.space(own)["TOKENS"].choices == (*sweeping.WIDE["TOKENS"].choices, "raw,covariance")
    assert sweeping.first_points(own)[0]["TOKENS"] == "raw,covariance"
    assert sweeping.space(Settings(SWEEP_SPACE="wide")) == sweeping.WIDE
