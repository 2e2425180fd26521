"""Training: stopped anywhere and resumed, on several processes, from a mapped file, compiled, deterministic."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, run
from pydantic import ValidationError
from safetensors.torch import load_file
from test_main import compare_runs, flags, history, one_sentence, read, start
from torch._dynamo.utils import counters

import EMG_utils
from EMG_DATA_LOADER import cut_rows, read_emg, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import load_model
from emg_gpt2.model.normalise import log_covariance
from emg_gpt2.settings import Settings
from emg_gpt2.training.checkpoint import CHECKPOINT_SHARE, GUESSED_RATE, Checkpoints
from emg_gpt2.training.device import faster_precision
from emg_gpt2.training.finite import NotFiniteError
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import Task, fitted_task, load_task
from emg_gpt2.training.trainer import Trainer
from emg_gpt2.windows.reading import load_windows
from EMG_utils import fit, refit

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(small_file: Path, tiny_gpt2: Path, **changes) -> Settings:
    """Few windows, and all that chance can do."""
    few = {"DATA_LOCATION": small_file, "MODEL_NAME": str(tiny_gpt2), "BATCH_SIZE": 16, "NUM_EPOCHS": 3, "LR": 3e-3}
    few |= {"FILTERS": 4, "PRECISION": "fp32", "SAMPLING_RATIO": 0.2, "RING": 4, "ROTATION": 1, "REFIT": False}
    return Settings(**few | {"BLOCKS": 1} | changes)


def task_of(chosen: Settings) -> Task:
    return read_task(chosen.DATA_LOCATION, chosen.SAMPLING_RATIO)


@cache
def read_task(windows: Path, ratio: float) -> Task:
    return load_task(Settings(DATA_LOCATION=windows, SAMPLING_RATIO=ratio))


def fit_here(chosen: Settings, run: Path | None = None, task: Task | None = None, **options) -> Trainer:
    """`fit` a new model; returns its trainer. The windows of `task` may be spoilt, those of the model are not."""
    made = []

    class NotedTrainer(Trainer):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    task = task or task_of(chosen)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EMG_utils, "Trainer", NotedTrainer)
        fit(new_model(task_of(chosen), chosen), task, chosen, run, **options)
    return made[0]


def weights(trained: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best_model" / "model.safetensors")


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def before_step(monkeypatch) -> Callable:
    """`before_step(act)` calls `act(trainer, steps)` before every step, when so many steps are done."""

    def install(act: Callable[[Trainer, int], None]) -> None:
        batches = Trainer.batches

        def watched(trainer, bar):
            for batch in batches(trainer, bar):
                act(trainer, len(trainer.history) * trainer.steps + trainer.sums.step)
                yield batch

        monkeypatch.setattr(Trainer, "batches", watched)

    return install


# ---- learning -------------------------------------------------------------------------------------------------


def test_the_backbone_learns_without_the_linear_path(small_file, tiny_gpt2):
    alone = settings(small_file, tiny_gpt2, LINEAR_PATH=False, TOKENS="covariance", SAMPLING_RATIO=1, NUM_EPOCHS=4)
    losses = [row["train_loss"] for row in fit_here(alone).history]
    assert losses[0] < np.log(8) * 1.2
    assert losses[-1] < 0.6 * losses[0]


def test_training_ends_early_where_the_loss_no_longer_falls(small_file, tiny_gpt2, caplog):
    """Nothing is learned at such a rate, so the first epoch stays the best."""
    still = settings(small_file, tiny_gpt2, LR=1e-30, PATIENCE=2, NUM_EPOCHS=8, TOKENS="covariance")
    with caplog.at_level("INFO", "emg_gpt2"):
        assert len(fit_here(still).history) == 3
    assert "no better epoch in 2: stopping early" in caplog.text


def test_bfloat16_learns_what_float32_does(small_file, tiny_gpt2):
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the first precision of a process
    half = fit_here(settings(small_file, tiny_gpt2, NUM_EPOCHS=1, PRECISION="bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = fit_here(settings(small_file, tiny_gpt2, NUM_EPOCHS=1))
    assert half.history[0]["train_loss"] == pytest.approx(whole.history[0]["train_loss"], rel=0.05)
    assert half.history != whole.history
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(half).values())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((2.6, 1.0), ("bf16", "bfloat16 products are 2.6 times as fast here")),
        ((1.0, 3.3), ("fp32", "bfloat16 products are 3.3 times as slow here")),
        ((1.2, 1.0), ("fp32", "bfloat16 products are hardly faster here")),
        ((1.0, 1.0), ("fp32", "bfloat16 products are hardly faster here")),
    ],
)
def test_the_faster_precision_is_taken_on_a_cpu(seconds, expected):
    assert faster_precision(*seconds) == expected


# ---- stopped and resumed --------------------------------------------------------------------------------------


def train_both(chosen: Settings, run: Path) -> None:
    """The two trainings of a run, as main.py has them."""
    task = task_of(chosen)
    history = fit(new_model(task, chosen), task, chosen, run)
    refit(fitted_task(task, chosen), chosen, history, run)


def die_at(steps: int, refitting: bool = False, every: int = 2) -> None:
    """SIGKILL for this process when so many steps of one training are done; a checkpoint after `every` steps."""
    batches = Trainer.batches

    def deadly(trainer, bar):
        for batch in batches(trainer, bar):
            done = len(trainer.history) * trainer.steps + trainer.sums.step
            if done == steps and (trainer.run.name == "refit") == refitting:
                os.kill(os.getpid(), signal.SIGKILL)
            trainer.checkpoints.due = lambda after=done + 1: after % every == 0
            yield batch

    Trainer.batches = deadly


def in_a_copy(act: Callable[[], object]) -> None:
    """`act` in a copy of this process, which is killed by it."""
    victim = multiprocessing.get_context("fork").Process(target=act)
    victim.start()
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="a copy of this process is killed, which Windows cannot make")
def test_a_run_that_is_killed_between_two_steps_ends_as_if_left_alone(small_file, tiny_gpt2, tmp_path):
    """In epoch 2 of 6 steps, after the third step, with a checkpoint of the second; then in the second training."""
    chosen = settings(small_file, tiny_gpt2, NUM_EPOCHS=2, REFIT=True)
    train_both(chosen, tmp_path / "alone")
    folder = tmp_path / "run"
    for steps, refitting in ((9, False), (3, True)):
        in_a_copy(lambda: (die_at(steps, refitting), train_both(chosen, folder)))  # noqa: B023, it is called at once
        last = folder / "refit" / "last" if refitting else folder / "last"
        assert read(last, "epoch.json")["step"] == 2
        assert len(read(last, "history.json")) == (0 if refitting else 1)
    train_both(chosen, folder)
    assert same(best_weights(folder), best_weights(tmp_path / "alone"))
    for inside in (".", "refit"):
        expected = history(tmp_path / "alone" / inside)
        pd.testing.assert_frame_equal(history(folder / inside), expected, check_exact=True)


@pytest.mark.nightly
def test_stopped_after_any_step_and_resumed_training_ends_as_if_left_alone(
    small_file, tiny_gpt2, before_step, tmp_path
):
    chosen, stop_at = settings(small_file, tiny_gpt2), None
    before_step(lambda _, steps: signal.raise_signal(signal.SIGINT) if steps == stop_at else None)
    alone = fit_here(chosen, tmp_path / "alone")
    best = best_weights(tmp_path / "alone")
    for stop_at in range(2 * alone.steps + 1):
        folder = tmp_path / f"{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            fit_here(chosen, folder)
        assert len(read(folder / "last", "history.json")) == stop_at // alone.steps
        assert read(folder / "last", "epoch.json")["step"] == stop_at % alone.steps + 1
        stop_at = None
        resumed = fit_here(chosen, folder)
        assert same(weights(resumed), weights(alone))
        assert without_seconds(resumed.history) == without_seconds(alone.history)
        assert same(best_weights(folder), best)
        shutil.rmtree(folder)


def test_a_kill_before_the_last_checkpoint_leaves_no_state_behind(small_file, tiny_gpt2, tmp_path):
    """All epochs are done, and last/ is one that was written between two steps."""
    chosen = settings(small_file, tiny_gpt2, NUM_EPOCHS=1)
    with pytest.raises(KeyboardInterrupt):
        fit_here(chosen, tmp_path, after_epoch=lambda _: signal.raise_signal(signal.SIGINT))
    assert (tmp_path / "last" / "state.safetensors").is_file()
    fit_here(chosen, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    best = {f"best_model/{name}" for name in ("config.json", "model.safetensors")}
    assert names == {"history.csv", "validation.parquet", "last/epoch.json", "last/history.json", *best}


def test_a_second_signal_acts_at_once(small_file, tiny_gpt2, before_step):
    def interrupt_twice(*_):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise LookupError("in the middle of a step")

    before_step(interrupt_twice)
    with pytest.raises(LookupError):
        fit_here(settings(small_file, tiny_gpt2))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_keep_their_share_of_the_time(small_file, tiny_gpt2):
    """Two took 4 s together, so a third makes 6 s: CHECKPOINT_SHARE of 6 s / CHECKPOINT_SHARE."""
    chosen = settings(small_file, tiny_gpt2)
    model = new_model(task_of(chosen), chosen)
    checkpoints = Checkpoints(None, model, torch.optim.AdamW(model.parameters()))
    first = 12 * sum(p.numel() for p in model.parameters()) / GUESSED_RATE  # but for the linear path, 8 · 37 of 4
    checkpoints.began = time.perf_counter()
    assert not checkpoints.due()
    checkpoints.began -= 1.01 * first / CHECKPOINT_SHARE
    assert checkpoints.due()
    checkpoints.seconds, checkpoints.count = 4.0, 2
    checkpoints.began = time.perf_counter() - 6 / CHECKPOINT_SHARE + 5
    assert not checkpoints.due()
    checkpoints.began -= 10
    assert checkpoints.due()


def test_the_log_says_how_fast_it_was(small_file, tiny_gpt2, tmp_path, caplog):
    with caplog.at_level("INFO", "emg_gpt2"):
        trained = fit_here(settings(small_file, tiny_gpt2, NUM_EPOCHS=3), tmp_path, stop_after=2)
    assert "epoch 2/2: " in caplog.text  # as many as are planned, though the learning rate is that of three
    pattern = r"(\d+) windows/s; (.*)% of the time went into waiting for data, (.*)% into (\d+) checkpoints"
    ((rate, data, saving, checkpoints),) = re.findall(pattern, caplog.text)
    seconds = sum(row["seconds"] for row in trained.history)  # of all steps, and of the validation
    assert int(rate) > 2 * len(trained.task.split.train) / seconds
    assert float(data) < 50
    assert float(saving) < 50
    assert int(checkpoints) >= 1
    assert trained.spent["steps"] < seconds


# ---- runs that are killed and signalled -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_flags(small_file, tiny_gpt2) -> list[str]:
    """A run of some seconds, with all that chance can do, that goes through a second training too."""
    chosen = {"DATA_LOCATION": small_file, "MODEL_NAME": tiny_gpt2, "LR": 3e-3, "BATCH_SIZE": 8, "FILTERS": 4}
    return flags(**chosen, PRECISION="fp32", NUM_EPOCHS=4, ROTATION=1)


@pytest.fixture(scope="module")
def left_alone(long_flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    done = run("main.py", *long_flags, *flags(RUN_DIR=folder))
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def wait_for_a_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not (folder / "last" / "history.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.nightly
def test_killed_again_and_again_a_run_ends_as_if_left_alone(long_flags, left_alone, tmp_path):
    """SIGKILL at random moments, until the run gets to its end before the next one."""
    folder, chance, kills = tmp_path / "run", random.Random(0), 0
    process = start(*long_flags, *flags(RUN_DIR=folder))
    wait_for_a_checkpoint(folder, process)
    while True:
        try:
            longer = 1 + kills / 4  # so that it ends on a slow machine too
            process.wait(chance.uniform(5, 9) * longer if kills else chance.uniform(0.1, 0.5))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            process = start(*flags(RESUME=folder))
    assert process.returncode == 0, process.communicate()
    process.communicate()
    assert kills
    compare_runs(folder, left_alone)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["env.json", "split.csv"])
def test_a_resumed_run_that_ends_while_it_writes_leaves_what_was_there(name, left_alone, tmp_path):
    """A limit on the size of files ends it in the middle of the file, as a kill may."""
    folder = tmp_path / "run"
    shutil.copytree(left_alone, folder)
    before, names = (folder / name).read_bytes(), {path.name for path in folder.iterdir()}
    limit = len(before) // 2
    limited = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    ended = run("-c", limited + "runpy.run_path('main.py', run_name='__main__')", *flags(RESUME=folder))
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert (folder / name).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_first(number, long_flags, left_alone, tmp_path):
    """SIGTERM is what a cluster sends before it takes the machine back."""
    folder = tmp_path / "run"
    process = start(*long_flags, *flags(RUN_DIR=folder))
    wait_for_a_checkpoint(folder, process)
    time.sleep(0.1)
    asked = time.time()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; go on with --resume {folder}" in one_sentence(errors)
    saved = folder / "refit" / "last" if (folder / "refit" / "last").exists() else folder / "last"
    assert (saved / "epoch.json").stat().st_mtime > asked
    done = run("main.py", *flags(RESUME=folder))
    assert done.returncode == 0, done.stderr
    compare_runs(folder, left_alone)


# ---- loss -----------------------------------------------------------------------------------------------------


def test_the_loss_of_an_epoch_is_the_mean_over_its_windows_weighted_by_class(small_file, tiny_gpt2):
    """Nothing is learned and nothing is random, so the model gives every window's loss again."""
    still = {"LR": 1e-30, "DROPOUT": 0, "NOISE": 0, "ROTATION": 0, "TOKENS": "covariance", "NUM_EPOCHS": 1}
    trained = fit_here(settings(small_file, tiny_gpt2, **still, BATCH_SIZE=10**6))
    task, rows = trained.task, trained.task.split.train
    target, references = torch.from_numpy(task.windows.targets[rows]), task.references.of(torch.from_numpy(rows))
    with torch.no_grad():
        logits = trained.model.eval()(emg=read_emg(task.windows, rows), reference=references).logits
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    weight = 1 / torch.bincount(target).double()[target]
    row = trained.history[0]
    assert row["train_loss"] == pytest.approx(float((weight * losses).sum() / weight.sum()), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(float((logits.argmax(1) == target).double().mean()))


# ---- frozen blocks --------------------------------------------------------------------------------------------


def test_frozen_blocks_have_no_gradients_and_no_state(small_file, tiny_gpt2):
    """Of two blocks one is trained: below it only the norms, each twice 32 · 2 numbers, and AdamW keeps two of each."""
    whole, last = (
        fit_here(settings(small_file, tiny_gpt2, NUM_LAYERS=layers, NUM_EPOCHS=1, BLOCKS=2)) for layers in (-2, -1)
    )
    sizes = []
    for trained in (whole, last):
        state = trained.optimizer.state_dict()["state"]
        sizes.append(sum(one["exp_avg"].numel() + one["exp_avg_sq"].numel() for one in state.values()))
        frozen = [p for p in trained.model.parameters() if not p.requires_grad]
        assert all(p.grad is None for p in frozen)
    assert sizes[0] - sizes[1] == 2 * (12 * 32**2 + 9 * 32)  # the block's matrices and their biases


@pytest.mark.parametrize("layers", [-1, 0])
def test_what_is_computed_once_is_what_the_samples_give(layers, small_file, tiny_gpt2):
    """And all below the trained blocks stays as it was."""
    chosen = settings(small_file, tiny_gpt2, NUM_LAYERS=layers, FREEZE=True, ROTATION=0, NUM_EPOCHS=2, BLOCKS=2)
    before, trained = new_model(task_of(chosen), chosen).state_dict(), fit_here(chosen)
    rows, task = trained.task.split.validation, trained.task
    own = trained.feed.read(rows)
    trained.module.eval()
    with torch.no_grad():
        references = task.references.of(torch.from_numpy(rows))
        expected = trained.model(emg=read_emg(task.windows, rows), reference=references).logits
        found = trained.logits(own)
    assert own.emg.shape == (len(rows), 6, 32)
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, weights(trained)[name])}
    trains = ("backbone.ln_f.", "head.", "residual_weight", *(["backbone.h.1."] if layers else []))
    assert changed == {name for name in before if name.startswith(trains)}


def test_frozen_tokenisers_have_the_norms_of_the_training_part(small_file, tiny_gpt2):
    """With them the log powers of the training part have mean 0 and deviation 1, almost: two batches count the same."""
    chosen = settings(small_file, tiny_gpt2, FREEZE=True, ROTATION=0, TOKENS="power", SAMPLING_RATIO=1)
    task, seen = task_of(chosen), []
    model, rows = new_model(task, chosen).eval(), task.split.train
    model.tokenisers["power"].norm.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        model(emg=read_emg(task.windows, rows), reference=task.references.of(torch.from_numpy(rows)))
    assert seen[0].mean((0, 2)).abs().max() < 0.2
    assert (seen[0].std((0, 2)) - 1).abs().max() < 0.2


def test_windows_that_are_computed_once_cannot_be_turned():
    with pytest.raises(ValidationError, match="FREEZE with ROTATION = 1"):
        Settings(FREEZE=True, ROTATION=1)


def test_frozen_blocks_are_not_compiled():
    with pytest.raises(ValidationError, match="FREEZE with COMPILE"):
        Settings(FREEZE=True, COMPILE=True)


# ---- not finite -----------------------------------------------------------------------------------------------


def spoilable_task(chosen: Settings) -> Task:
    """A task whose windows are a copy in float32, in which `spoil` can put NaN."""
    task = task_of(chosen)
    return replace(task, windows=replace(task.windows, emg=task.windows.emg.astype(np.float32)))


def spoil(task: Task, rows: list[int]) -> None:
    task.windows.emg[rows, 7, 2] = np.nan


def after(epoch: int, act: Callable[[], object]) -> Callable[[dict], None]:
    """For `fit`: `act` when this epoch has ended."""
    return lambda row: act() if row["epoch"] == epoch else None


def rows_of_step(task: Task, chosen: Settings, epoch: int, step: int) -> np.ndarray:
    order = np.random.default_rng([chosen.SEED, epoch - 1]).permutation(task.split.train)
    return cut_rows(order, chosen.BATCH_SIZE)[step - 1]


def stopped(chosen: Settings, run: Path, task: Task | None = None, **options) -> str:
    with pytest.raises(NotFiniteError) as caught:
        fit_here(chosen, run, task, **options)
    return str(caught.value)


@pytest.mark.parametrize("tokens", ["covariance", "covariance,power", "raw"])
def test_a_window_that_is_not_finite_stops_the_training_and_is_named(tokens, small_file, tiny_gpt2, tmp_path):
    chosen = settings(small_file, tiny_gpt2, TOKENS=tokens)
    task = spoilable_task(chosen)
    rows = rows_of_step(task, chosen, 2, 3)
    said = stopped(chosen, tmp_path, task, after_epoch=after(1, lambda: spoil(task, [rows[5]])))
    window = task.windows.table.iloc[rows[5]]
    assert said == (
        f"the loss is nan in epoch 2, step 3, with samples that are not finite in the window at "
        f"{window['start']:.3f} s of {window['recording']}, row {rows[5]} ({tmp_path / 'bad_batch.csv'} lists the "
        f"batch); lower LR or look at them; the best model so far, of epoch 1, is in {tmp_path / 'best_model'}"
    )
    batch = pd.read_csv(tmp_path / "bad_batch.csv", dtype={"subject": str})
    assert batch["row"].tolist() == rows.tolist()
    assert batch["start"].tolist() == task.windows.table["start"].iloc[rows].tolist()
    assert np.flatnonzero(batch["largest_sample"].isna()).tolist() == [5]
    assert batch["loss"].isna()[5]
    if tokens != "covariance,power":  # whose norm is over the batch
        assert batch["loss"].notna().sum() == len(rows) - 1


def test_the_best_model_so_far_is_kept_and_the_state_is_from_before(small_file, tiny_gpt2, tmp_path, monkeypatch):
    """The epochs before are those of an undisturbed training, and a resumed run meets the same batch."""
    chosen = settings(small_file, tiny_gpt2)
    fit_here(chosen, tmp_path / "alone", stop_after=1)
    folder, task = tmp_path / "run", spoilable_task(chosen)
    steps = -(-len(task.split.train) // chosen.BATCH_SIZE)
    looks = iter(range(100))  # a checkpoint after the first step of every epoch; there is a pause at its end, too
    monkeypatch.setattr(Checkpoints, "due", lambda self: next(looks) % (steps + 1) == 0)
    row = rows_of_step(task, chosen, 2, 2)[0]
    said = stopped(chosen, folder, task, after_epoch=after(1, lambda: spoil(task, [row])))
    assert same(best_weights(folder), best_weights(tmp_path / "alone"))
    assert all(tensor.isfinite().all() for tensor in load_model(folder / "best_model").state_dict().values())
    assert history(folder)["epoch"].tolist() == [1]
    assert read(folder / "last", "epoch.json")["step"] == 1
    assert stopped(chosen, folder, task) == said


def test_before_the_end_of_the_first_epoch_there_is_no_model(small_file, tiny_gpt2, tmp_path):
    chosen = settings(small_file, tiny_gpt2)
    task = spoilable_task(chosen)
    spoil(task, [rows_of_step(task, chosen, 1, 1)[0]])
    assert stopped(chosen, tmp_path, task).endswith("; no epoch was finished, so there is no model yet")
    assert {path.name for path in tmp_path.iterdir()} == {"bad_batch.csv"}


def test_the_first_of_several_unchecked_steps_is_named(small_file, tiny_gpt2, tmp_path, monkeypatch):
    """As on a GPU, where several steps go by before their losses are read."""
    chosen, look = settings(small_file, tiny_gpt2, BATCH_SIZE=8), Trainer._look
    task = spoilable_task(chosen)
    rows = rows_of_step(task, chosen, 1, 2)
    spoil(task, [rows[1]])
    monkeypatch.setattr(Checkpoints, "due", lambda self: False)
    late = lambda trainer, *given: look(trainer, *given) if trainer.sums.step == trainer.steps else None  # noqa: E731
    monkeypatch.setattr(Trainer, "_look", late)
    said = stopped(chosen, tmp_path, task)
    assert "epoch 1, step 2, with samples that are not finite in" in said
    assert f"row {rows[1]} " in said
    assert pd.read_csv(tmp_path / "bad_batch.csv")["row"].tolist() == rows.tolist()


def test_steps_that_are_too_long_stop_the_training(small_file, tiny_gpt2, tmp_path):
    """The weights are not finite after the first step, which the second one tells by the losses of all its windows."""
    chosen = settings(small_file, tiny_gpt2, WARMUP=0).model_copy(update={"LR": 1e30})
    said = stopped(chosen, tmp_path)
    assert re.match(r"the loss is (nan|inf) in epoch 1, step 2, with losses that are not finite in the ", said)
    assert f"and {len(rows_of_step(task_of(chosen), chosen, 1, 2)) - 1} more of its batch" in said


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_the_last_step_spoilt_are_never_kept(validated, small_file, tiny_gpt2, tmp_path):
    """A single step an epoch: neither its loss nor, without a validation part, another one shows it."""
    chosen = settings(small_file, tiny_gpt2, WARMUP=0, BATCH_SIZE=10_000).model_copy(update={"LR": 1e39})
    task = task_of(chosen)
    said = stopped(chosen, tmp_path, task if validated else replace(task, split=task.split.with_validation()))
    assert said.startswith("the weights are not finite after epoch 1, step 1; lower LR; no epoch was finished")
    assert not any(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_stops_the_training(small_file, tiny_gpt2, tmp_path, before_step):
    def spoil_gradient(trainer: Trainer, steps: int) -> None:
        if steps == trainer.steps:
            trainer.model.head.weight.register_hook(lambda gradient: gradient * torch.inf)

    before_step(spoil_gradient)
    said = stopped(settings(small_file, tiny_gpt2), tmp_path)
    assert re.match(
        r"the gradient of a loss of \d\S+ is (nan|inf) in epoch 2, step 1, with the largest loss in the ", said
    )
    losses = pd.read_csv(tmp_path / "bad_batch.csv").set_index("row")["loss"]
    assert f", row {losses.idxmax()} (" in said


def test_validation_windows_that_are_not_finite_are_named_and_choose_no_epoch(small_file, tiny_gpt2, tmp_path):
    chosen = settings(small_file, tiny_gpt2)
    task = spoilable_task(chosen)
    bad, steps = task.split.validation[[3, 5]].tolist(), -(-len(task.split.train) // chosen.BATCH_SIZE)
    said = stopped(chosen, tmp_path, task, after_epoch=after(1, lambda: spoil(task, bad)))
    assert said.startswith(f"the loss on the validation part is nan in epoch 2, step {steps}, with samples that")
    assert f"row {bad[0]} and 1 more" in said
    assert said.endswith(f"the best model so far, of epoch 1, is in {tmp_path / 'best_model'}")
    assert pd.read_csv(tmp_path / "bad_batch.csv")["row"].tolist() == bad
    assert len(history(tmp_path)) == 1


def test_a_refit_that_stops_leaves_the_first_model(small_file, tiny_gpt2, tmp_path, before_step):
    chosen = settings(small_file, tiny_gpt2, NUM_EPOCHS=1, REFIT=True)
    task = spoilable_task(chosen)
    first = fit_here(chosen, tmp_path, task).history
    best, fitted = best_weights(tmp_path), fitted_task(task, chosen)
    before_step(lambda *_: spoil(task, task.split.train))
    with pytest.raises(EMGError, match=r"training anew: the loss is nan.*that of the first training is in .*best_mo"):
        refit(fitted, chosen, first, tmp_path)
    assert same(best_weights(tmp_path), best)


def test_one_window_that_is_not_finite_leaves_the_log_covariances_of_the_others():
    signal = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))
    spoilt = signal.clone()
    spoilt[2, 7, 1] = torch.nan
    found = log_covariance(spoilt)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], log_covariance(signal)[[0, 1, 3]])


# ---- the same result ------------------------------------------------------------------------------------------


def test_deterministic_algorithms_train_as_the_others_do_here(small_file, tiny_gpt2):
    plain = fit_here(settings(small_file, tiny_gpt2, NUM_EPOCHS=1))
    strict = fit_here(settings(small_file, tiny_gpt2, NUM_EPOCHS=1, DETERMINISTIC=True))
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert same(weights(strict), weights(plain))


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_backbone_is_compiled_once_and_learns_the_same(small_file, tiny_gpt2):
    """The last batch of an epoch is smaller, and validation is another mode: all of that in the first epoch."""
    still = {"DROPOUT": 0, "NUM_EPOCHS": 3}
    plain, graphs = fit_here(settings(small_file, tiny_gpt2, **still)), []
    note_graphs = lambda _: graphs.append(counters["stats"]["unique_graphs"])  # noqa: E731
    compiled = fit_here(settings(small_file, tiny_gpt2, **still, COMPILE=True), after_epoch=note_graphs)
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 3
    for one, other in zip(compiled.history, plain.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


# ---- several processes ----------------------------------------------------------------------------------------


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "main.py", *arguments]
    return run(*command)


@pytest.fixture(scope="module")
def together_flags(small_file, tiny_gpt2) -> list[str]:
    """The second batch of an epoch is a single window, which one process has and the other has not."""
    chosen = Settings(DATA_LOCATION=small_file)
    count = len(split_windows(load_windows(chosen), chosen).train)
    named = {"DATA_LOCATION": small_file, "MODEL_NAME": tiny_gpt2, "LR": 3e-3, "BATCH_SIZE": count - 1}
    return flags(**named, FILTERS=4, PRECISION="fp32", NUM_EPOCHS=8, DROPOUT=0, ROTATION=1, REFIT=False)


@pytest.fixture(scope="module")
def one_and_two(together_flags, tmp_path_factory) -> list[Path]:
    """The same run by one process and by two."""
    folders = [tmp_path_factory.mktemp("together") / str(processes) for processes in (1, 2)]
    for processes, folder in zip((1, 2), folders, strict=True):
        done = launch(processes, *together_flags, *flags(RUN_DIR=folder))
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.nightly
def test_two_processes_train_like_one(one_and_two):
    one, two = (history(folder) for folder in one_and_two)
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-3)
    first, second = (read(folder, "metrics.json") for folder in one_and_two)
    assert (first["processes"], second["processes"]) == (1, 2)
    assert second["balanced_accuracy"] == pytest.approx(first["balanced_accuracy"], abs=5e-3)


@pytest.mark.nightly
def test_two_processes_predict_every_window_once(one_and_two):
    one, two = (pd.read_parquet(folder / "predictions.parquet") for folder in one_and_two)
    identity = [column for column in one.columns if not column.startswith("p")]
    pd.testing.assert_frame_equal(one[identity], two[identity])
    probabilities = [column for column in one.columns if column.startswith("p_")]
    assert np.allclose(one[probabilities], two[probabilities], atol=2e-3)
    assert len(two) == read(one_and_two[1], "metrics.json")["n_test"]


SPOIL_ONE = """
import sys
import main
from stress.numbers_cases import spoil_training
if main.join_processes().process_index == 1:
    spoil_training(2, 1, "sample")
sys.exit(main.main())
"""


@pytest.mark.nightly
def test_a_batch_of_which_one_process_sees_the_fault_is_listed_whole(together_flags, tmp_path):
    (tmp_path / "spoil.py").write_text(SPOIL_ONE)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tmp_path / "spoil.py"]
    small = flags(RUN_DIR=tmp_path / "run", BATCH_SIZE=25, TOKENS="covariance")
    done = run(*command, *together_flags, *small, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("main.py")]
    assert len(said) == 2, done.stderr
    assert all("the loss is nan in epoch 2, step 1, with losses that are not finite" in line for line in said)
    batch = pd.read_csv(tmp_path / "run" / "bad_batch.csv")
    assert (len(batch), batch["row"].nunique(), batch["loss"].isna().sum()) == (25, 25, 1)
    assert batch["loss"].isna()[13]  # of 25 windows the first process has 13
    assert (tmp_path / "run" / "best_model" / "model.safetensors").is_file()
    assert len(history(tmp_path / "run")) == 1


@pytest.mark.nightly
def test_one_of_two_processes_writes(one_and_two):
    one, two = one_and_two
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in two.iterdir()} == names
    log = (two / "log.txt").read_text()
    assert log.count("cpu:0, 2 processes") == 1
    assert log.count("epoch 1/8") == 1


@pytest.mark.nightly
def test_two_processes_that_were_killed_end_as_if_left_alone(one_and_two, together_flags, tmp_path):
    folder, command = tmp_path / "run", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = list(map(str, [sys.executable, *command, "main.py", *together_flags, *flags(RUN_DIR=folder)]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, cwd=ROOT, env=variables, **pipes)
    wait_for_a_checkpoint(folder, process)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()
    assert not (folder / "metrics.json").exists()
    done = launch(2, *flags(RESUME=folder))
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(history(folder), history(one_and_two[1]), check_exact=True)
    ours, theirs = (load_file(one / "best_model" / "model.safetensors") for one in (folder, one_and_two[1]))
    assert same(ours, theirs)


@pytest.mark.nightly
def test_accelerate_launches_it_too(together_flags, tmp_path):
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "main.py", *together_flags]
    done = run(*command, *flags(RUN_DIR=tmp_path / "run", NUM_EPOCHS=1))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.nightly
def test_processes_that_train_together_do_not_sweep(together_flags, tmp_path):
    done = launch(2, *together_flags, "--sweep", *flags(RUN_DIR=tmp_path / "run"))
    assert done.returncode != 0
    assert "main.py: SWEEP: processes that train together try nothing" in done.stderr
    assert "main.py (process 1): SWEEP: " in done.stderr
    assert not (tmp_path / "run").exists()


# ---- more than memory -----------------------------------------------------------------------------------------

CAPPED = """
import re, resource, sys
import main
taken = int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + 800_000_000,) * 2)
sys.exit(main.main())
"""


@pytest.fixture(scope="module")
def large_file(small_file, tmp_path_factory) -> Path:
    """1.2 GB of windows: those of `small_file` again and again, as ever new repetitions."""
    table = pq.read_table(small_file)
    path, place = tmp_path_factory.mktemp("large") / "large.parquet", table.schema.get_field_index("repetition")
    with pq.ParquetWriter(path, table.schema) as writer:
        for copy in range(-(-1_200_000_000 // (table.num_rows * 4000))):
            later = pc.add(table["repetition"], pa.scalar(10 * copy, pa.int16()))
            writer.write_table(table.set_column(place, table.schema.field(place), later))
    return path


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_windows_that_are_larger_than_memory_are_trained_on(large_file, tiny_gpt2, tmp_path):
    """The process may take 800 MB more than it has once torch is imported."""
    named = {"DATA_LOCATION": large_file, "MODEL_NAME": tiny_gpt2, "FILTERS": 4, "PRECISION": "fp32", "NUM_EPOCHS": 1}
    command = ["-c", CAPPED, *flags(**named, BATCH_SIZE=16, SAMPLING_RATIO=0.01, SPLIT="repetition", REFIT=False)]
    command += flags(TEST_SHARE=0.01, VALIDATION_SHARE=0.01)
    done = run(*command, *flags(RUN_DIR=tmp_path / "memory"))
    assert done.returncode == 1
    assert "the memory is full; lower BATCH_SIZE, BLOCKS or MEMORY_GB" in one_sentence(done.stderr)
    done = run(*command, *flags(RUN_DIR=tmp_path / "mapped", MEMORY_GB=0.5))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mapped" / "metrics.json").is_file()
