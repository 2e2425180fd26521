"""`ablate`: what the arms consist of, that all else is the same, what the sentence says and when."""

import contextlib
import io
import itertools
import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from EMG_DATA_LOADER import read_emg, split_windows
from emg_gpt2.commands.ablate import main
from emg_gpt2.model.build import load_model
from emg_gpt2.model.normalise import log_covariance
from emg_gpt2.settings import Settings
from emg_gpt2.study.ablation import plan, rate_beyond
from emg_gpt2.study.arms import ARMS
from emg_gpt2.study.differences import (
    ALWAYS,
    AT_TEST,
    IN_ORDER,
    paired_differences,
    results_of_ablation,
    verdict,
)
from emg_gpt2.study.options import AblationSettings
from emg_gpt2.study.people import METRICS
from emg_gpt2.study.shuffling import shuffle_patches
from emg_gpt2.training.task import fitted_split, make_task
from emg_gpt2.windows.reading import WindowSet, load_windows
from EMG_utils import evaluate

TINY = ["--precision", "fp32", "--tokens", "bands", "--num-epochs", "1", "--num-epochs-for-validation", "1"]
ADAPTED = {  # 8 channels × 6 bands, width 32, 1024 positions, two blocks, 8 classes
    "frozen": 1_929,  # tokens 96 + 1568, head 264, residual weight 1
    "norms": 35_017,  # and positions 32768, norms 64 + 2·128
    "lora": 43_209,  # and of rank 8 in each block 8·(32 + 96), 8·(32 + 32) and twice 8·(32 + 128)
    "full": 60_169,  # and the rest of the blocks: each is 12·32² + 13·32 = 12704 in all
}
WEIGHTS = ("pretrained", "random", "shuffled")
TRAINED = {f"{weights}-{adapt}": count for weights in WEIGHTS for adapt, count in ADAPTED.items()} | {
    "small": 36_119,  # 24w² + 1109w + 105 is 31885, 36119, 40545 at w = 20, 22, 24
    "one-block": 47_465,
    "no-backbone": 1_929,
    "linear": 0,
}
NEEDING = [name for name in TRAINED if not name.startswith("random") and "-" in name and name.split("-")[1] in ADAPTED]


pytestmark = pytest.mark.usefixtures("one_thread")


def flags(data: Path, backbone: Path, out: Path, *more: str) -> list[str]:
    return [*map(str, ["--data-location", data, "--model-name", backbone, "--out", out]), *TINY, *more]


def read(folder: Path) -> dict:
    return json.loads((folder / "ablation.json").read_text())


def environment(run_folder: Path) -> dict:
    return json.loads((run_folder / "env.json").read_text())


GIVEN = ["--seeds", "0", "--shares", "1", "--rates", "1e-4,1e-3,1e-2", "--shuffle"]


@pytest.fixture(scope="module")
def ablated(small_file, tiny_gpt2, tmp_path_factory) -> tuple[Path, str]:
    """Every arm, for the folder that transformers saved has weights; one seed, one share, two rates; what was said."""
    out = tmp_path_factory.mktemp("ablated")
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as stdout:
        assert main(flags(small_file, tiny_gpt2, out, *GIVEN)) == 0
        stdout.flush()
        said = stdout.buffer.getvalue().decode()
    return out, said


# ---- the arms -------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_trained_parameters_of_every_arm(ablated):
    arms = {arm["name"]: arm for arm in read(ablated[0])["arms"]}
    assert {name: arm["trainable_parameters"] for name, arm in arms.items()} == TRAINED
    assert json.loads((ablated[0] / "small" / "config.json").read_text())["n_embd"] == 22
    assert arms["linear"]["parameters"] == 36 * 8 + 8


SAME_VALUES = {f"{start}-{adapt}" for start in ("pretrained", "shuffled") for adapt in ("frozen", "norms")}


@pytest.mark.nightly
def test_pretrained_arms_start_from_the_weights_and_frozen_ones_keep_them(ablated, tiny_gpt2):
    weights = GPT2Model.from_pretrained(tiny_gpt2).h[0].attn.c_attn.weight
    kept = {}
    for name in TRAINED.keys() - {"linear", "no-backbone", "small"}:
        model = load_model(ablated[0] / "runs" / f"{name}-share1-seed0" / "best_model")
        kept[name] = model.backbone.h[0].attn.c_attn.weight
        assert model.config.weights == name.partition("-")[0].replace("one", "random")
        assert (sorted(kept[name].flatten()) == sorted(weights.flatten())) == (name in SAME_VALUES)
        assert len(model.backbone.h) == (1 if name == "one-block" else 2)
    assert torch.equal(kept["pretrained-norms"], weights)
    assert 0 < (kept["pretrained-full"] - weights).abs().max() < 0.1  # of 0.1 each, after few steps
    assert (kept["random-norms"] - weights).abs().max() > 0.1
    assert not torch.equal(kept["random-norms"], kept["random-full"])


@pytest.mark.nightly
def test_the_linear_path_alone_is_that_of_the_other_arms(ablated, small_file):
    folder = ablated[0] / "runs" / "no-backbone-share1-seed0"
    settings, model = Settings(**environment(folder)), load_model(folder / "best_model")
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    task = make_task(windows, fitted_split(split, settings), settings)
    reference = task.references.of(torch.from_numpy(split.test))
    with torch.inference_mode():
        logits = model.linear_logits(model.normalise(read_emg(windows, split.test), reference)[1])
    predictions = pd.read_parquet(ablated[0] / "runs" / "linear-share1-seed0" / "predictions.parquet")
    assert np.array_equal(predictions["predicted"], np.array(windows.classes)[logits.argmax(1)])
    columns = [f"p_{code}" for code in windows.classes]
    np.testing.assert_allclose(predictions[columns], logits.softmax(1), atol=1e-5)


@pytest.mark.nightly
def test_all_arms_have_the_same_split(ablated):
    splits = {folder.name: (folder / "split.csv").read_bytes() for folder in (ablated[0] / "runs").iterdir()}
    assert len(splits) == 16 + 15  # the trained arms shuffled, too
    assert len(set(splits.values())) == 1


def test_every_arm_share_and_seed_is_planned(small_file):
    """The arms of a seed and share have the same training windows, and smaller shares the same other parts."""
    settings = Settings(DATA_LOCATION=small_file)
    given = AblationSettings(SEEDS=[3], SHARES=[1, 0.5], SHUFFLE=True, OUT=Path("out"))
    runs = plan(list(ARMS), dict.fromkeys(TRAINED, 0.01), given, settings)
    assert len({run.folder for run in runs}) == len(runs) == 2 * 16 + 15
    assert {(run.share, run.seed) for run in runs if run.shuffled} == {(1, 3)}
    varied = {"PRETRAINED", "NUM_LAYERS", "ADAPT", "BLOCKS", "LINEAR_PATH", "SAMPLING_RATIO", "SEED", "RUN_DIR"}
    assert len({run.settings.model_dump_json(exclude=varied) for run in runs}) == 1
    windows, parts = load_windows(settings), {}
    for run_ in runs:
        split = split_windows(windows, run_.settings)
        parts.setdefault((run_.share, run_.seed), set()).add(split.train.tobytes())
        parts.setdefault("others", set()).add((split.validation.tobytes(), split.test.tobytes()))
    assert {key: len(found) for key, found in parts.items()} == dict.fromkeys(parts, 1)
    whole, half = (len(next(iter(parts[share, 3]))) for share in (1, 0.5))
    assert half == pytest.approx(whole / 2, rel=0.05)


@pytest.mark.nightly
def test_the_learning_rate_is_chosen_per_arm_on_validation(ablated):
    differ = False
    for arm in read(ablated[0])["arms"]:
        if arm["name"] == "linear":
            assert arm["lr"] is None
            continue
        places = sorted((ablated[0] / "rates" / arm["name"]).rglob("sweep.csv"))
        trials = pd.concat([pd.read_csv(place) for place in places], ignore_index=True)
        assert {1e-4, 1e-3, 1e-2} <= set(trials["LR"])
        best = trials.loc[trials["validation_balanced_accuracy"].idxmax(), "LR"]
        inside = min(trials["LR"]) < best < max(trials["LR"])
        assert inside or arm["lr_at_the_edge"] or best * 10 > 1
        differ |= trials["validation_balanced_accuracy"].nunique() > 1
        assert arm["lr"] == best
        for which in ("share1", "shuffled-share1"):
            made = environment(ablated[0] / "runs" / f"{arm['name']}-{which}-seed0")
            assert made["LR"] == best
            assert made["NUM_EPOCHS"] == 1
    assert differ  # so there was something to choose


@pytest.mark.parametrize(
    ("tried", "further"),
    [
        ({1e-3: 0.5, 3e-3: 0.6}, 9e-3),
        ({1e-3: 0.6, 3e-3: 0.5}, 3.3e-4),
        ({1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.55}, None),
        ({0.1: 0.5, 0.5: 0.6}, None),  # 2.5 is no learning rate
        ({1e-3: 0.6, 3e-3: 0.0}, 3.3e-4),  # one that failed counts as 0
    ],
)
def test_where_the_best_rate_lies_at_the_edge_one_beyond_it_is_tried(tried, further):
    assert rate_beyond(tried) == further


# ---- shuffled patches -----------------------------------------------------------------------------------------


def hand_made(count: int = 200) -> WindowSet:
    """Windows of seven samples and two channels: with patches of two, one sample before three patches."""
    emg = np.random.default_rng(3).integers(-99, 99, (count, 7, 2)).astype(np.int16)
    return WindowSet(emg, pd.DataFrame({"TRAJ_GT": [0] * count}), {"note": "By hand.", "scale": 0.25})


def test_shuffling_permutes_the_patches_of_every_window_and_nothing_else():
    windows = hand_made()
    shuffled, rows = shuffle_patches(windows, patch=2, seed=0), np.arange(200)
    before, after = windows.emg, shuffled.emg[rows]
    assert after.dtype == before.dtype
    assert np.array_equal(after[:, 0], before[:, 0])
    orders = set()
    for one, other in zip(before[:, 1:].reshape(-1, 3, 4), after[:, 1:].reshape(-1, 3, 4), strict=True):
        order = tuple(int(np.flatnonzero((one == patch).all(1))[0]) for patch in other)
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
    assert len(orders) == 6  # every order is met
    covariances = [log_covariance(read_emg(which, rows)) for which in (windows, shuffled)]
    torch.testing.assert_close(covariances[0], covariances[1])
    assert shuffled.table is windows.table
    assert shuffled.metadata == {"note": "By hand. The patches of every window are shuffled.", "scale": 0.25}


def test_a_window_keeps_its_order_however_it_is_read():
    shuffled = shuffle_patches(hand_made(), patch=2, seed=0).emg
    assert np.array_equal(shuffled[np.array([5, 3])], shuffled[np.arange(200)][[5, 3]])
    other = shuffle_patches(hand_made(), patch=2, seed=1).emg
    assert not np.array_equal(shuffled[np.arange(200)], other[np.arange(200)])


@pytest.mark.nightly
def test_models_are_tested_in_order_and_shuffled(ablated, small_file):
    """The figures in order are those of the run itself; the shuffled ones are recomputed window by window."""
    folder = ablated[0] / "runs" / "random-full-share1-seed0"
    settings, model = Settings(**environment(folder)), load_model(folder / "best_model")
    windows = load_windows(settings)
    split = split_windows(windows, settings)
    fitted = fitted_split(split, settings)
    columns = [f"p_{code}" for code in windows.classes]
    kept = pd.read_parquet(folder / "predictions.parquet")
    found = evaluate(model, make_task(windows, fitted, settings), settings).probabilities
    np.testing.assert_allclose(found, kept[columns], atol=1e-6)

    shuffled = shuffle_patches(windows, patch=50, seed=0)
    emg = shuffled.emg[np.arange(len(windows.table))]
    assert not np.array_equal(emg, windows.emg)
    task = make_task(WindowSet(emg, windows.table, windows.metadata), fitted, settings)
    probabilities = evaluate(model, task, settings).probabilities
    right = probabilities.argmax(1) == windows.targets[split.test]
    found = json.loads((folder / "shuffled_at_test.json").read_text())
    assert found["accuracy"] == pytest.approx(right.mean())
    metrics = json.loads((ablated[0] / "runs" / "random-full-shuffled-share1-seed0/metrics.json").read_text())
    assert metrics["data_note"].endswith("The patches of every window are shuffled.")


# ---- results --------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_results_are_printed_and_written(ablated):
    out, said = ablated
    found, words = read(out), " ".join(said.split())
    assert {path.name for path in out.iterdir()} == {
        *("ablation.json", "ablation.csv", "ablation.png", "rates", "runs", "small", "settings.json")
    }
    assert found["sentence"] in words
    assert found["sentence"] == " ".join(found["statements"])
    assert found["sentence"].startswith("With fewer than three seeds no difference can be told from chance")
    for arm in found["arms"]:
        assert f"{arm['trainable_parameters']:,}" in said
        shuffled = set() if arm["name"] == "linear" else {AT_TEST, ALWAYS}
        assert {one["order"] for one in arm["results"]} == {IN_ORDER} | shuffled
        for one in arm["results"]:
            assert f"{one['mean']:.3f}" in said or one["order"] != IN_ORDER
    table = pd.read_csv(out / "ablation.csv")
    assert len(table) == 16 + 15 + 15  # of the 16 runs in order, 7 are tested shuffled too
    row = table[(table["arm"] == "small") & (table["order"] == ALWAYS)].iloc[0]
    metrics = json.loads((out / "runs" / "small-shuffled-share1-seed0" / "metrics.json").read_text())
    assert row["balanced_accuracy"] == pytest.approx(metrics["balanced_accuracy"])
    image = matplotlib.image.imread(out / "ablation.png")[:, :, :3]
    assert 0.005 < (image.min(2) < 0.9).mean() < 0.5


@pytest.fixture(scope="session")
def without_weights(tmp_path_factory) -> Path:
    """A folder with the shape of a GPT-2 alone."""
    folder = tmp_path_factory.mktemp("shape")
    GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64).save_pretrained(folder)
    return folder


@pytest.mark.nightly
def test_arms_without_weights_say_so_and_the_others_run(small_file, without_weights, tmp_path, capsys):
    """Beside, a share of the training part that is too small fails by itself."""
    given = ["--seeds", "0", "--shares", "0.01,0.5", "--rates", "1e-3"]
    assert main(flags(small_file, without_weights, tmp_path, *given)) == 3
    said, found = capsys.readouterr(), read(tmp_path)
    out = " ".join(said.out.split())
    for arm in [one for one in found["arms"] if one["name"] in NEEDING]:
        assert arm["why_not"].startswith("weights not available here (MODEL_NAME = ")
        assert f"{arm['name']} is left out: weights not available here" in said.err
    assert out.count("available here") == len(NEEDING) + 1  # in the table, and once in the sentence
    assert "Pretrained weights were not available here: these numbers say nothing on them." in out
    assert [arm["name"] for arm in found["arms"] if "results" in arm] == [
        name for name in TRAINED if name not in NEEDING
    ]
    assert len(found["failed"]) == len(TRAINED) - len(NEEDING)
    assert "FAILED, and missing above: random-norms-share0.01-seed0: class" in out
    assert not (tmp_path / "rates").exists()  # a single rate leaves no choice


# ---- going on -------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.nightly
def test_the_same_command_goes_on(ablated, small_file, tiny_gpt2, tmp_path, capsys):
    """One run is gone, one lacks its test, one its test on shuffled patches, one rate lacks its trials."""
    out = shutil.copytree(ablated[0], tmp_path / "out")
    settings = json.loads((out / "settings.json").read_text())
    shutil.rmtree(out / "runs" / "small-shuffled-share1-seed0")
    (out / "runs" / "one-block-share1-seed0" / "report.html").unlink()
    (out / "runs" / "random-norms-share1-seed0" / "shuffled_at_test.json").unlink()
    shutil.rmtree(out / "rates" / "no-backbone")
    before = snapshot(out / "runs")
    assert main(flags(small_file, tiny_gpt2, out, *GIVEN)) == 0
    after, said = snapshot(out / "runs"), capsys.readouterr().err
    assert json.loads((out / "settings.json").read_text()) == settings
    again = "one-block-share1-seed0"
    assert all(after[path] == content for path, content in before.items() if again not in str(path))
    assert "going on after epoch 1" in said
    first, second = read(ablated[0]), read(out)
    assert first["arms"] == second["arms"]
    assert first["sentence"] == second["sentence"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--batch-size", "32"], "its runs were made with BATCH_SIZE = 64, not 32; name another --out"),
        (["--seeds", "1,0"], "its runs were made with first of SEEDS = 0, not 1; name another --out"),
        (["--rates", "1e-3"], "its runs were made with RATES = [0.0001, 0.001, 0.01], not [0.001]; name another --out"),
    ],
)
@pytest.mark.nightly
def test_other_settings_than_those_of_the_folder_are_refused(ablated, small_file, tiny_gpt2, capsys, more, reason):
    given = dict(zip(GIVEN[::2], GIVEN[1::2], strict=True)) | {more[0]: more[1]}
    assert main(flags(small_file, tiny_gpt2, ablated[0], *itertools.chain(*given.items()))) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert said.startswith("ablate: ")
    assert said.count("\n") == 1


# ---- what the numbers support ---------------------------------------------------------------------------------


def differences(*people: list[float]) -> pd.Series:
    """One row of differences per person, one per seed."""
    index = ["03", "04", "05", "06"][: len(people)]
    return pd.DataFrame(people, index=index).rename_axis("subject").rename_axis("seed", axis=1).stack()


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ([[0.010, 0.012, 0.014]], "ahead"),  # 0.012 ± 4.303 · 0.002/√3 = 0.007 to 0.017
        ([[-0.010, -0.012, -0.014]], "behind"),
        ([[0.001, 0.012, 0.023]], "open"),  # 0.012 ± 0.027
        ([[0.012, 0.012, 0.012]], "ahead"),
        ([[0.0, 0.0, 0.0]], "open"),
        ([[0.012, 0.012]], "open"),  # two seeds are too few
        ([[0.9, -0.88, 0.1], [-0.88, 0.904, -0.072]], "ahead"),  # seeds' means 0.010, 0.012, 0.014
        ([[0.01] * 3, [0.02] * 3, [0.03] * 3], "ahead"),
        ([[0.01] * 3, [-0.02] * 3, [0.03] * 3], "open"),  # a resample of the second alone is below zero
        ([[0.03, -0.01, 0.01]] * 3, "open"),  # the second seed disagrees
        ([[-0.01] * 3, [-0.02] * 3, [-0.03] * 3], "behind"),
    ],
)
def test_verdict(people, expected):
    assert verdict(differences(*people)) == expected


SEEDS = (-0.001, 0.0, 0.001)


def found_for(
    means: dict[str, float],
    people: int = 2,
    seeds: tuple = SEEDS,
    shuffled: dict | None = None,
    tenth: dict | None = None,
) -> dict:
    """An ablation whose arms have these means; a person is 0.01 above the one before, and seeds move the arms apart.

    tenth: the means with a tenth of the windows
    """
    rows = []
    for share, order, arms in ((0.1, IN_ORDER, tenth or {}), (1.0, IN_ORDER, means), (1.0, ALWAYS, shuffled or {})):
        for place, (arm, mean) in enumerate(arms.items()):
            for seed, moved in enumerate(seeds):
                for person in range(people):
                    value = mean + 0.01 * person + moved * (1 if place % 2 else -1) / 2
                    about = {"arm": arm, "share": share, "seed": seed, "order": order, "subject": f"{person:02d}"}
                    about |= {"lr": 1e-3, "weights": "random", "parameters": 9, "trainable_parameters": 9, "epochs": 1}
                    rows.append(about | dict.fromkeys(METRICS, value) | {"windows": 100})
    missing = {name: "weights not available here (MODEL_NAME = x: none)" for name in TRAINED if name not in means}
    described = {
        "shares": [0.1, 1.0] if tenth else [1.0],
        "seeds": list(range(len(seeds))),
        "rates_tried": [1e-3],
        "at_the_edge": [],
        "failed": {},
    }
    described |= {"missing": missing, "rates": dict.fromkeys(TRAINED, 1e-3)}
    return results_of_ablation(pd.DataFrame(rows), ARMS, described)[0]


PLAIN = {"random-norms": 0.80, "random-full": 0.82, "small": 0.80, "one-block": 0.81, "no-backbone": 0.80}
PLAIN |= {"linear": 0.70}


def test_the_language_model_helps():
    means = {"pretrained-norms": 0.80, "pretrained-full": 0.84, "shuffled-norms": 0.8, "shuffled-full": 0.83}
    said = found_for(means | PLAIN)["sentence"]
    assert said.startswith(
        "For these 2 people and 3 seeds (balanced accuracy, in pairs, every comparison by itself; ± over seeds), and "
        "for nobody else: the language model helps. Pretrained, norms trained is "
    )
    assert (
        "Pretrained, fully trained is ahead of random, fully trained (+0.020 ± 0.000), shuffled, fully trained (+0.010"
        in said
    )


def test_the_language_model_does_not_help():
    """Ahead of its own shape from random weights, which is not enough: no backbone is better still."""
    weak = PLAIN | {"random-norms": 0.75, "random-full": 0.76}
    said = found_for({"pretrained-norms": 0.77, "pretrained-full": 0.78} | weak)["sentence"]
    assert "the language model does not help. Pretrained, norms trained is ahead of random, norms trained" in said
    assert "behind small transformer" in said


def test_it_cannot_be_told_whether_the_language_model_helps():
    means = {"pretrained-norms": 0.8205, "pretrained-full": 0.8205} | PLAIN
    said = found_for(means, seeds=(-0.02, 0.0, 0.02))["sentence"]
    assert "whether the language model helps cannot be told. " in said
    few = found_for({"pretrained-norms": 0.9, "pretrained-full": 0.9} | PLAIN, seeds=(0.0, 0.001))["sentence"]
    assert few == "With fewer than three seeds no difference can be told from chance: nothing is said."
    few = found_for(PLAIN, seeds=(0.0,))["sentence"]
    assert few.endswith(
        "nothing is said. Pretrained weights were not available here: these numbers say nothing on them."
    )


def test_without_weights_the_numbers_say_nothing_on_them():
    """+0.020 between the blocks and no backbone, seeds 0.001 apart."""
    said = found_for(PLAIN)["sentence"]
    assert "Pretrained weights were not available here: these numbers say nothing on them." in said
    assert "Random, fully trained is ahead of small transformer (+0.020 ± 0.001), one block (+0.010 ± 0.000)" in said
    assert "he language model" not in said


def test_smaller_shares_are_compared_with_the_twins_alone():
    means = {"pretrained-full": 0.82, "shuffled-full": 0.82} | PLAIN
    said = found_for(means, tenth=means | {"pretrained-full": 0.84})["sentence"]
    assert "cannot be told. Pretrained, fully trained is ahead of small transformer" in said
    assert said.endswith(
        "With 10 % of the training windows: Pretrained, fully trained is ahead of random, fully trained "
        "(+0.020 ± 0.001) and shuffled, fully trained (+0.020 ± 0.001)."
    )


def test_with_three_people_the_interval_is_theirs():
    found = found_for(PLAIN, people=4)
    said = found["sentence"]
    assert said.startswith(
        "Over 4 people and 3 seeds (balanced accuracy, in pairs, every comparison by itself; 95 % intervals over "
        "people): "
    )
    assert "ahead of small transformer (+0.020, +0.020 to +0.020)" in said
    row = next(row for row in found["differences"] if (row["of"], row["from"]) == ("random-full", "small"))
    assert (row["people"], row["seeds"]) == (4, 3)


def test_time_order():
    """Only what shuffling costs beyond the arm without a backbone, which has no use for order, tells of order."""
    means = {"random-norms": 0.80, "random-full": 0.82, "no-backbone": 0.80}
    shuffled = {"random-norms": 0.80, "random-full": 0.79, "no-backbone": 0.799}
    said = found_for(means, seeds=(0.0, 0.0, 0.0), shuffled=shuffled)["sentence"]
    assert said.endswith(
        "With shuffled patches in training and test, the order of the patches is used by random, fully trained "
        "(−0.030 ± 0.000); no use of their order can be told for random, norms trained (+0.000 ± 0.000); "
        "no backbone changes by −0.001 ± 0.000, from the cuts alone."
    )
    cut = {"random-norms": 0.80, "random-full": 0.79, "no-backbone": 0.77}
    said = found_for(means, seeds=(0.0, 0.0, 0.0), shuffled=cut)["sentence"]
    assert "is used by" not in said
    assert "random, fully trained (−0.030 ± 0.000); no backbone changes by −0.030 ± 0.000" in said


def test_only_the_same_people_and_seeds_are_compared():
    """Seed 1 of the one arm and seed 2 of the other have no partner."""
    rows = [("one-block", 0, 0.5), ("one-block", 1, 0.9), ("no-backbone", 0, 0.4), ("no-backbone", 2, 0.0)]
    rows += [("linear", 0, 0.4)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "balanced_accuracy"]).assign(
        share=1.0, order=IN_ORDER, windows=9
    )
    [only] = paired_differences(table.assign(subject="03", accuracy=0.0, macro_f1=0.0), 1.0)
    assert (only["of"], only["from"], only["seeds"]) == ("no-backbone", "linear", 1)
    assert only["mean"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--pretrained", "never"], "ablate sets PRETRAINED itself; leave out --pretrained"),
        (["--sampling-ratio", "0.5"], "ablate sets SAMPLING_RATIO itself; leave out --sampling-ratio"),
        (["--blocks", "0"], "BLOCKS = 0: there is no language model to ask about; set BLOCKS to 1 or more"),
        (["--shares", "0,1"], "SHARES = 0,1: should be one number or more, each 0 < x ≤ 1"),
        (["--shares", "0.001", "--rates", "1e-3"], "class 0 (idle) has 2 windows in the training part"),
    ],
)
def test_refused(small_file, tiny_gpt2, tmp_path, capsys, more, reason):
    assert main(flags(small_file, tiny_gpt2, tmp_path, *more)) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert said.splitlines()[-1].startswith("ablate: ")
