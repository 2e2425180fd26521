"""Training: stopped anywhere and resumed, on several processes, from a mapped file, compiled, deterministic."""

import io
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
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, run
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from test_main import flags, history, one_sentence, read, start
from torch._dynamo.utils import counters

from EMG_DATA_LOADER import Split, cut_rows, split_windows
from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.build import load_model
from emg_gpt2.model.normalise import log_covariance
from emg_gpt2.settings import Settings
from emg_gpt2.training.trainer import CHECKPOINT_SHARE, GUESSED_RATE, NotFiniteError, Trainer, refit
from emg_gpt2.windows.feed import Feed
from emg_gpt2.windows.reading import load_windows
from EMG_utils import new_model, session_references

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(small_file: Path, tiny_gpt2: Path, **changes) -> Settings:
    """Few windows, all that chance can do, and a patience that ends the training early."""
    few = {"DATA_LOCATION": small_file, "MODEL_NAME": str(tiny_gpt2), "BATCH_SIZE": 16, "NUM_EPOCHS": 3, "LR": 3e-3}
    few |= {"FILTERS": 4, "PRECISION": "fp32", "SAMPLING_RATIO": 0.2, "RING": 4, "ROTATION": 1, "REFIT": False}
    return Settings(**few | changes)


def trainer(chosen: Settings, split: Split | None = None) -> Trainer:
    windows = load_windows(chosen)
    split = split or split_windows(windows, chosen)
    references = session_references(windows, split, chosen)
    model = new_model(windows, split, references, chosen)
    return Trainer(model, windows, split, references, chosen, chosen.NUM_EPOCHS)


def fit(chosen: Settings, folder: Path | None = None) -> Trainer:
    trained = trainer(chosen)
    trained.fit(Console(file=io.StringIO()), folder)
    return trained


def weights(trained: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.bare_model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ---- stopped and resumed --------------------------------------------------------------------------------------


def interrupt_at(trained: Trainer, number: int) -> None:
    """Send SIGINT when the batch `number` of the fit has been read: its step is then done, and no other."""
    really, count = trained.feed.__class__.__call__, iter(range(10**6))

    def feed(parts):
        for batch in really(trained.feed_itself, parts):
            if trained.model.training and next(count) == number:
                signal.raise_signal(signal.SIGINT)
            yield batch

    trained.feed_itself, trained.feed = trained.feed, feed


def test_stopped_after_any_step_and_resumed_training_ends_as_if_left_alone(small_file, tiny_gpt2, tmp_path):
    chosen = settings(small_file, tiny_gpt2)
    alone = fit(chosen, tmp_path / "alone")
    best = load_file(tmp_path / "alone" / "best_model" / "model.safetensors")
    for number in range(2 * alone.steps + 1):
        folder, stopped = tmp_path / f"{number}", trainer(chosen)
        interrupt_at(stopped, number)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit(Console(file=io.StringIO()), folder)
        assert len(read(folder / "last", "history.json")) == number // alone.steps
        assert read(folder / "last", "epoch.json")["step"] == number % alone.steps + 1
        resumed = fit(chosen, folder)
        assert same(weights(resumed), weights(alone)), number
        assert without_seconds(resumed.history) == without_seconds(alone.history), number
        assert same(load_file(folder / "best_model" / "model.safetensors"), best), number
        shutil.rmtree(folder)


def test_a_kill_before_the_last_checkpoint_leaves_no_state_behind(small_file, tiny_gpt2, tmp_path):
    """All epochs are done, and last/ is one that was written between two steps."""
    trained = fit(settings(small_file, tiny_gpt2, NUM_EPOCHS=1), tmp_path)
    expected = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    trained.checkpoint(tmp_path)
    assert (tmp_path / "last" / "state.safetensors").is_file()
    fit(settings(small_file, tiny_gpt2, NUM_EPOCHS=1), tmp_path)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == expected


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


def compare_runs(one: Path, other: Path) -> None:
    """Bit for bit, but for the clock."""
    for inside in (".", "refit"):
        pd.testing.assert_frame_equal(history(one / inside), history(other / inside), check_exact=True)
    ours, theirs = (load_file(folder / "best_model" / "model.safetensors") for folder in (one, other))
    assert same(ours, theirs)
    metrics, expected = read(one, "metrics.json"), read(other, "metrics.json")
    assert {key for key, value in metrics.items() if value != expected[key]} == {"seconds", "seconds_per_window"}
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_first(number, long_flags, left_alone, tmp_path):
    """SIGTERM is what a cluster sends before it takes the machine back."""
    folder = tmp_path / "run"
    process = start(*long_flags, *flags(RUN_DIR=folder))
    wait_for_a_checkpoint(folder, process)
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; go on with --resume {folder}" in one_sentence(errors)
    saved = folder / "refit" / "last" if (folder / "refit" / "last").exists() else folder / "last"
    when = time.time() - (saved / "epoch.json").stat().st_mtime
    assert when < 5
    done = run("main.py", *flags(RESUME=folder))
    assert done.returncode == 0, done.stderr
    compare_runs(folder, left_alone)


def test_a_second_signal_acts_at_once(small_file, tiny_gpt2):
    trained = trainer(settings(small_file, tiny_gpt2))

    def feed(parts):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise LookupError("in the middle of a step")
        yield

    trained.feed = feed
    with pytest.raises(LookupError):
        trained.fit(Console(file=io.StringIO()))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_keep_their_share_of_the_time(small_file, tiny_gpt2):
    """Two took 4 s together, so a third makes 6 s: CHECKPOINT_SHARE of 6 s / CHECKPOINT_SHARE."""
    trained = trainer(settings(small_file, tiny_gpt2))
    first = 12 * sum(p.numel() for p in trained.model.parameters()) / GUESSED_RATE  # the linear path's 8 · 37 apart
    trained.began = time.perf_counter()
    assert not trained._due()
    trained.began -= 1.01 * first / CHECKPOINT_SHARE
    assert trained._due()
    trained.spent["checkpoints"], trained.checkpoints = 4.0, 2
    trained.began = time.perf_counter() - 6 / CHECKPOINT_SHARE + 5
    assert not trained._due()
    trained.began -= 10
    assert trained._due()


def test_the_log_says_how_fast_it_was(left_alone):
    log = (left_alone / "log.txt").read_text()
    speeds = re.findall(r"(\d+) windows/s; (.*)% of the time went into waiting for data, (.*)% into (\d+) chec", log)
    assert len(speeds) == 2  # of both trainings
    for rate, data, saving, checkpoints in speeds:
        assert int(rate) > 10
        assert float(data) < 50
        assert float(saving) < 50
        assert int(checkpoints) >= 2


# ---- loss -----------------------------------------------------------------------------------------------------


def test_the_loss_of_an_epoch_is_the_mean_over_its_windows_weighted_by_class(small_file, tiny_gpt2):
    """Nothing is learned and nothing is random, so the saved model gives every window's loss again."""
    still = {"LR": 1e-30, "DROPOUT": 0, "NOISE": 0, "ROTATION": 0, "TOKENS": "covariance", "NUM_EPOCHS": 1}
    chosen = settings(small_file, tiny_gpt2, **still, BATCH_SIZE=10**6)
    trained = fit(chosen)
    rows = trained.split.train
    target = torch.from_numpy(trained.windows.targets[rows])
    batch = trained.feed.read(rows)
    with torch.no_grad():
        logits = trained.model(emg=batch.emg, reference=trained.references.of(batch.rows)).logits
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    weight = 1 / torch.bincount(target).double()[target]
    row = trained.history[0]
    assert row["train_loss"] == pytest.approx(float((weight * losses).sum() / weight.sum()), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(float((logits.argmax(1) == target).double().mean()))


def test_frozen_blocks_have_no_gradients_and_no_state(small_file, tiny_gpt2):
    """Of two blocks one is trained: below it only the norms, each twice 32 · 2 numbers, and AdamW keeps two of each."""
    whole, last = (fit(settings(small_file, tiny_gpt2, NUM_LAYERS=layers, NUM_EPOCHS=1)) for layers in (-2, -1))
    sizes = []
    for trained in (whole, last):
        state = trained.optimizer.state_dict()["state"]
        sizes.append(sum(one["exp_avg"].numel() + one["exp_avg_sq"].numel() for one in state.values()))
        frozen = [p for p in trained.model.parameters() if not p.requires_grad]
        assert all(p.grad is None for p in frozen)
    assert sizes[0] - sizes[1] == 2 * (12 * 32**2 + 9 * 32)  # the block's matrices and their biases


@pytest.mark.parametrize("layers", [-1, 0])
def test_what_is_computed_once_is_what_the_samples_give(layers, small_file, tiny_gpt2):
    trained = fit(settings(small_file, tiny_gpt2, NUM_LAYERS=layers, FREEZE=True, ROTATION=0))
    model, rows = trained.bare_model.eval(), trained.split.validation
    batch, own = trained.samples.read(rows), trained.feed.read(rows)
    with torch.no_grad():
        expected = model(emg=batch.emg, reference=trained.references.of(batch.rows)).logits
        found = trained._logits(trained.model, own)
    assert own.emg.shape == (len(rows), 6, 32)
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_freezing_leaves_all_below_the_trained_blocks_as_it_was(small_file, tiny_gpt2):
    chosen = settings(small_file, tiny_gpt2, NUM_LAYERS=-1, FREEZE=True, ROTATION=0)
    before, after = weights(trainer(chosen)), weights(fit(chosen))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    trains = ("backbone.h.1.", "backbone.ln_f.", "head.", "residual_weight")
    assert changed == {name for name in before if name.startswith(trains)}


def test_frozen_tokenisers_have_the_norms_of_the_training_part(small_file, tiny_gpt2):
    """With them the log powers of the training part have mean 0 and deviation 1, almost: two batches count the same."""
    trained = trainer(settings(small_file, tiny_gpt2, FREEZE=True, ROTATION=0, TOKENS="power", SAMPLING_RATIO=1))
    batch, seen, norm = trained.samples.read(trained.split.train), [], trained.bare_model.tokenisers["power"].norm
    norm.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        trained.bare_model.eval()(emg=batch.emg, reference=trained.references.of(batch.rows))
    assert seen[0].mean((0, 2)).abs().max() < 0.2
    assert (seen[0].std((0, 2)) - 1).abs().max() < 0.2


def test_windows_that_are_computed_once_cannot_be_turned():
    with pytest.raises(ValidationError, match="FREEZE with ROTATION = 1"):
        Settings(FREEZE=True, ROTATION=1)


def test_frozen_blocks_are_not_compiled():
    with pytest.raises(ValidationError, match="FREEZE with COMPILE"):
        Settings(FREEZE=True, COMPILE=True)


# ---- what is no finite number ---------------------------------------------------------------------------------


def plant(trained: Trainer, rows: list[int], value: float = np.nan) -> None:
    """One sample of each of these windows, on their way to the model."""
    emg = trained.windows.emg.astype(np.float32)
    emg[rows, 7, 2] = value
    trained.windows = replace(trained.windows, emg=emg)
    trained.feed = trained.samples = Feed(trained.windows, trained.device)


def rows_of_step(trained: Trainer, epoch: int, step: int) -> np.ndarray:
    order = np.random.default_rng([trained.settings.SEED, epoch - 1]).permutation(trained.split.train)
    return cut_rows(order, trained.settings.BATCH_SIZE)[step - 1]


def stopped(trained: Trainer, folder: Path | None) -> str:
    with pytest.raises(NotFiniteError) as caught:
        trained.fit(Console(file=io.StringIO()), folder)
    return str(caught.value)


def before_epoch(trained: Trainer, number: int, act: Callable[[], None]) -> None:
    """`act` when the epoch `number` begins."""
    really = trained._train_epoch

    def train(*given):
        if len(trained.history) + 1 == number:
            act()
        really(*given)

    trained._train_epoch = train


@pytest.mark.parametrize("tokens", ["covariance", "covariance,power", "raw"])
def test_a_window_that_is_no_number_stops_the_training_and_is_named(tokens, small_file, tiny_gpt2, tmp_path):
    trained = trainer(settings(small_file, tiny_gpt2, TOKENS=tokens))
    rows = rows_of_step(trained, 2, 3)
    before_epoch(trained, 2, lambda: plant(trained, [rows[5]]))
    said = stopped(trained, tmp_path)
    window = trained.windows.table.iloc[rows[5]]
    assert said == (
        f"the loss is nan in epoch 2, step 3, with samples that are no finite numbers in the window at "
        f"{window['start']:.3f} s of {window['recording']}, row {rows[5]} ({tmp_path / 'bad_batch.csv'} lists the "
        f"batch); lower LR or look at them; the best model so far, of epoch 1, is in {tmp_path / 'best_model'}"
    )
    batch = pd.read_csv(tmp_path / "bad_batch.csv", dtype={"subject": str})
    assert batch["row"].tolist() == rows.tolist()
    assert batch["start"].tolist() == trained.windows.table["start"].iloc[rows].tolist()
    assert np.flatnonzero(batch["largest_sample"].isna()).tolist() == [5]
    assert batch["loss"].isna()[5]
    if tokens != "covariance,power":  # whose norm is over the batch
        assert batch["loss"].notna().sum() == len(rows) - 1


def test_the_best_model_so_far_is_kept_and_the_state_is_from_before(small_file, tiny_gpt2, tmp_path):
    """The epochs before are those of an undisturbed training, and a resumed run meets the same batch."""
    chosen = settings(small_file, tiny_gpt2)
    alone = trainer(chosen)
    alone.fit(Console(file=io.StringIO()), tmp_path / "alone", stop_after=1)
    folder, trained = tmp_path / "run", trainer(chosen)
    row = rows_of_step(trained, 2, 2)[0]
    trained._due = lambda: trained.epoch.step == 1  # a checkpoint after the first step of every epoch
    before_epoch(trained, 2, lambda: plant(trained, [row]))
    said = stopped(trained, folder)
    saved = load_file(folder / "best_model" / "model.safetensors")
    assert same(saved, load_file(tmp_path / "alone" / "best_model" / "model.safetensors"))
    assert all(tensor.isfinite().all() for tensor in load_model(folder / "best_model").state_dict().values())
    assert history(folder)["epoch"].tolist() == [1]
    assert read(folder / "last", "epoch.json")["step"] == 1
    resumed = trainer(chosen)
    plant(resumed, [row])
    assert stopped(resumed, folder) == said


def test_before_the_end_of_the_first_epoch_there_is_no_model(small_file, tiny_gpt2, tmp_path):
    trained = trainer(settings(small_file, tiny_gpt2))
    plant(trained, [rows_of_step(trained, 1, 1)[0]])
    assert stopped(trained, tmp_path).endswith("; no epoch was finished, so there is no model yet")
    assert {path.name for path in tmp_path.iterdir()} == {"bad_batch.csv"}


def test_a_step_is_named_that_nobody_looked_at(small_file, tiny_gpt2, tmp_path):
    """As on a GPU, where several steps go by before their losses are looked at."""
    trained = trainer(settings(small_file, tiny_gpt2, BATCH_SIZE=8))
    row, check = rows_of_step(trained, 1, 2)[1], trained._check_steps
    trained._due = lambda: False
    trained._check_steps = lambda run: check(run) if trained.epoch.step == trained.steps else None
    plant(trained, [row])
    assert "epoch 1, step 2, with samples that are no finite numbers in" in (said := stopped(trained, tmp_path))
    assert f"row {row} " in said
    assert pd.read_csv(tmp_path / "bad_batch.csv")["row"].tolist() == rows_of_step(trained, 1, 2).tolist()


def test_steps_that_are_too_long_stop_the_training(small_file, tiny_gpt2, tmp_path):
    """The weights are no numbers after the first step, which the second one tells by the losses of all its windows."""
    chosen = settings(small_file, tiny_gpt2, WARMUP=0).model_copy(update={"LR": 1e30})
    said = stopped(trained := trainer(chosen), tmp_path)
    assert re.match(r"the loss is (nan|inf) in epoch 1, step 2, with losses that are no finite numbers in the ", said)
    assert f"and {len(rows_of_step(trained, 1, 2)) - 1} more of its batch" in said


def test_weights_that_the_last_step_spoilt_are_never_kept(small_file, tiny_gpt2, tmp_path):
    """A single step an epoch, and no validation part whose loss would tell."""
    chosen = settings(small_file, tiny_gpt2, WARMUP=0, BATCH_SIZE=10_000).model_copy(update={"LR": 1e39})
    split = split_windows(load_windows(chosen), chosen).with_validation()
    said = stopped(trainer(chosen, split), tmp_path)
    assert said.startswith("the weights are no finite numbers after epoch 1, step 1; lower LR; no epoch was finished")
    assert not any(tmp_path.iterdir())


def test_a_gradient_that_is_no_number_stops_the_training(small_file, tiny_gpt2, tmp_path):
    trained = trainer(settings(small_file, tiny_gpt2))

    def spoil() -> None:
        trained.bare_model.head.weight.register_hook(lambda gradient: gradient * torch.inf)

    before_epoch(trained, 3, spoil)
    said = stopped(trained, tmp_path)
    assert re.match(
        r"the gradient of a loss of \d\S+ is (nan|inf) in epoch 3, step 1, with the largest loss in the ", said
    )
    losses = pd.read_csv(tmp_path / "bad_batch.csv").set_index("row")["loss"]
    assert f", row {losses.idxmax()} (" in said


def test_validation_windows_that_are_no_numbers_are_named_and_choose_no_epoch(small_file, tiny_gpt2, tmp_path):
    trained = trainer(settings(small_file, tiny_gpt2))
    bad = trained.split.validation[[3, 5]].tolist()
    before_epoch(trained, 2, lambda: plant(trained, bad))
    said = stopped(trained, tmp_path)
    assert said.startswith(
        f"the loss on the validation part is nan in epoch 2, step {trained.steps}, with samples that"
    )
    assert f"row {bad[0]} and 1 more" in said
    assert said.endswith(f"the best model so far, of epoch 1, is in {tmp_path / 'best_model'}")
    assert pd.read_csv(tmp_path / "bad_batch.csv")["row"].tolist() == bad
    assert len(history(tmp_path)) == 1


def test_a_refit_that_stops_leaves_the_first_model(small_file, tiny_gpt2, tmp_path, monkeypatch):
    chosen = settings(small_file, tiny_gpt2, NUM_EPOCHS=2)
    first = fit(chosen, tmp_path)
    best = load_file(tmp_path / "best_model" / "model.safetensors")
    monkeypatch.setattr(
        Trainer, "_check_steps", lambda self, run: self._stop("the loss is nan", spare_batch(self), run)
    )
    with pytest.raises(EMGError, match=r"training anew: the loss is nan.*that of the first training is in .*best_mo"):
        refit(first.windows, first.split, chosen, 2, Console(file=io.StringIO()), tmp_path)
    assert same(load_file(tmp_path / "best_model" / "model.safetensors"), best)


def spare_batch(trained: Trainer) -> pd.DataFrame:
    return trained.windows.table.iloc[:2].assign(row=[0, 1], largest_sample=[1.0, 2.0], loss=[0.5, 0.25])


def test_one_window_that_is_no_number_leaves_the_log_covariances_of_the_others():
    signal = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))
    spoilt = signal.clone()
    spoilt[2, 7, 1] = torch.nan
    found = log_covariance(spoilt)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], log_covariance(signal)[[0, 1, 3]])


# ---- the same result ------------------------------------------------------------------------------------------


def test_deterministic_algorithms_train_as_the_others_do_here(small_file, tiny_gpt2):
    plain = fit(settings(small_file, tiny_gpt2, NUM_EPOCHS=1))
    strict = fit(settings(small_file, tiny_gpt2, NUM_EPOCHS=1, DETERMINISTIC=True))
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert same(weights(strict), weights(plain))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_backbone_is_compiled_once_and_learns_the_same(small_file, tiny_gpt2):
    """The last batch of an epoch is smaller, and validation is another mode: all of that in the first epoch."""
    still = {"DROPOUT": 0, "NUM_EPOCHS": 3, "BLOCKS": 1}
    plain = fit(settings(small_file, tiny_gpt2, **still))
    compiled, graphs = trainer(settings(small_file, tiny_gpt2, **still, COMPILE=True)), []
    compiled.fit(Console(file=io.StringIO()), after_epoch=lambda _: graphs.append(counters["stats"]["unique_graphs"]))
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


def test_two_processes_train_like_one(one_and_two):
    one, two = (history(folder) for folder in one_and_two)
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-3)
    first, second = (read(folder, "metrics.json") for folder in one_and_two)
    assert (first["processes"], second["processes"]) == (1, 2)
    assert second["balanced_accuracy"] == pytest.approx(first["balanced_accuracy"], abs=5e-3)


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
from stress.numbers import spoil_training
if main.join_processes().process_index == 1:
    spoil_training(2, 1, "sample")
sys.exit(main.main())
"""


def test_a_batch_of_which_one_process_sees_the_fault_is_listed_whole(together_flags, tmp_path):
    (tmp_path / "spoil.py").write_text(SPOIL_ONE)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tmp_path / "spoil.py"]
    small = flags(RUN_DIR=tmp_path / "run", BATCH_SIZE=25, TOKENS="covariance")
    done = run(*command, *together_flags, *small, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("main.py")]
    assert len(said) == 2, done.stderr
    assert all("the loss is nan in epoch 2, step 1, with losses that are no finite" in line for line in said)
    batch = pd.read_csv(tmp_path / "run" / "bad_batch.csv")
    assert (len(batch), batch["row"].nunique(), batch["loss"].isna().sum()) == (25, 25, 1)
    assert batch["loss"].isna()[13]  # of 25 windows the first process has 13
    assert (tmp_path / "run" / "best_model" / "model.safetensors").is_file()
    assert len(history(tmp_path / "run")) == 1


def test_one_of_two_processes_writes(one_and_two):
    one, two = one_and_two
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in two.iterdir()} == names
    log = (two / "log.txt").read_text()
    assert log.count("cpu:0, 2 processes") == 1
    assert log.count("epoch 1/8") == 1


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


def test_accelerate_launches_it_too(together_flags, tmp_path):
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "main.py", *together_flags]
    done = run(*command, *flags(RUN_DIR=tmp_path / "run", NUM_EPOCHS=1))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


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
