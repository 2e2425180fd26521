"""Windows → reference → tokens → GPT-2 → logits."""

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import TOKENISERS
from emg_gpt2.model.augment import Augmentation, turn_rings
from emg_gpt2.model.build import build_model
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.layers import Dropout
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import POWER_FLOOR, SPREAD_FLOOR, Reference, log_covariance, measure_reference
from emg_gpt2.settings import Settings
from emg_gpt2.training.adapt import choose_trained

CHANNELS, WINDOW, PATCH, RATE = ["a", "b", "c"], 250, 25, 1000.0
MATRICES = {f"{layer}.{kind}" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj") for kind in
            ("weight", "bias")}  # fmt: skip


def config(**changes) -> EMGConfig:
    described = {
        "backbone": {"n_embd": 32, "n_head": 2, "n_layer": 2},
        "class_codes": [0, 1, 6, 9],
        "class_names": ["idle", "fist", "pinch index", "pinch small"],
        "channels": CHANNELS,
        "preprocessing": {"FILTER": "putemg", "BAND_HZ": [20.0, 700.0]},
        "unit": "count",
    }
    return EMGConfig(**described | {"window": WINDOW, "patch": PATCH, "sampling_rate": RATE} | changes)


def model(*tokens: str, **changes) -> EMGForSequenceClassification:
    """A ready model from random weights of the shape of `config`, in evaluation mode."""
    torch.manual_seed(0)
    return EMGForSequenceClassification(config(tokens=tokens or ["power"], **changes)).eval()


def noise(amplitude=100.0, windows=5) -> torch.Tensor:
    """(B, T, C)"""
    return amplitude * torch.randn(windows, WINDOW, len(CHANNELS), generator=torch.Generator().manual_seed(1))


def tone(hertz: float, channel: int, amplitude=100.0) -> torch.Tensor:
    """(1, T, C): a sine in one channel, silence in the others."""
    emg = torch.zeros(1, WINDOW, len(CHANNELS))
    emg[0, :, channel] = amplitude * torch.sin(2 * math.pi * hertz * torch.arange(WINDOW) / RATE + 0.3)
    return emg


@torch.no_grad()
def log_power(made: EMGForSequenceClassification, emg: torch.Tensor) -> torch.Tensor:
    """(B, C, features, P): what the tokeniser hands to its norm."""
    seen = []
    (tokeniser,) = made.tokenisers.values()
    hook = tokeniser.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(emg=emg)
    hook.remove()
    return seen[0].unflatten(1, (len(CHANNELS), -1))


# ---- shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "count"),
    [(["power"], 10), (["bands"], 10), (["raw"], 10), (["covariance"], 1), (["covariance", "power"], 11),
     (["raw", "power"], 20)],
)  # fmt: skip
def test_a_window_is_a_token_per_patch_and_one_of_covariances(tokens, count):
    made = model(*tokens)
    assert made.tokenise(*made.normalise(noise(), made.reference)).shape == (5, count, 32)
    output = made(emg=noise(), labels=torch.tensor([0, 1, 2, 3, 0]))
    assert output.logits.shape == (5, 4)
    assert output.logits.isfinite().all()
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 3, 0]))
    assert output.loss.item() == pytest.approx(expected.item())
    assert made(emg=noise()).loss is None


def test_the_tokens_stand_in_the_order_of_their_kinds():
    """The raw patches first, then the covariance: the eleventh token alone follows the covariance."""
    made, emg = model("raw", "covariance"), noise()
    signal, covariance = made.normalise(emg, made.reference)
    changed = made.tokenise(signal, covariance + 1) != made.tokenise(signal, covariance)
    assert changed.any(2).all(0).tolist() == [False] * 10 + [True]


def test_the_first_samples_are_left_out_where_patches_do_not_fit():
    """250 samples are 8 patches of 30, from sample 10 on; the covariance is of the whole window."""
    made, emg = model("raw", patch=30), noise(1.0)
    signal, covariance = made.normalise(emg, made.reference)
    assert torch.allclose(
        made.tokenise(signal, covariance)[:, 0], made.tokenisers["raw"](signal[:, 10:40], covariance)[:, 0], atol=1e-6
    )


@pytest.mark.parametrize("tokens", TOKENISERS.built_in)
def test_each_window_is_classified_alone(tokens):
    made, emg = model(tokens), noise()
    together, alone = made(emg=emg).logits, torch.cat([made(emg=one[None]).logits for one in emg])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize(("p", "kept"), [(0.1, 230 / 256), (0.5, 0.5), (0.0, 1.0), (0.999, 1 / 256)])
def test_dropout_drops_its_share_and_keeps_the_mean(p, kept):
    """p = 0.1 is 26/256: what is kept is divided by 230/256. The largest share is 255/256."""
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(1001, 999))
    assert torch.allclose(out[out > 0], torch.tensor(1 / kept))
    assert (out > 0).float().mean().item() == pytest.approx(kept, abs=2e-3)
    by_place = (out.flatten()[: 8 * 124_000].view(-1, 8) > 0).float().mean(0)  # of the eight bytes of a random number
    assert torch.allclose(by_place, torch.tensor(kept), atol=5e-3)
    assert torch.equal(Dropout(p).eval()(out), out)


def test_dropped_values_have_no_gradient_and_the_others_their_scale():
    values = torch.ones(5, 7, requires_grad=True)
    out = Dropout(0.5)(values)
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())


# ---- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [5, 6])
def test_the_power_is_that_behind_the_filters(taps):
    """The mean square over each patch of the convolution with each filter, as torch computes it."""
    made, emg = model("power", filter_taps=taps, filters=4), noise(1.0)
    filters = torch.randn(4, taps, generator=torch.Generator().manual_seed(2))
    made.tokenisers["power"].filters.data.copy_(filters)
    signals = made.normalise(emg, made.reference)[0].transpose(1, 2).reshape(-1, 1, WINDOW)
    padded = torch.nn.functional.pad(signals, ((taps - 1) // 2, taps // 2))
    filtered = torch.nn.functional.conv1d(padded, filters[:, None])
    power = filtered.square().reshape(len(emg), len(CHANNELS), 4, -1, PATCH).mean(4)
    assert torch.allclose(log_power(made, emg), torch.log(power + POWER_FLOOR), atol=1e-3)


@pytest.mark.parametrize("tokens", ["power", "bands"])
def test_twice_the_amplitude_adds_log_4_to_every_log_power(tokens):
    """Power goes with the square: log(4 x) − log(x). Noise of 100 is far above the floor of 1e-4."""
    made = model(tokens)
    change = log_power(made, noise(200.0)) - log_power(made, noise(100.0))
    assert torch.allclose(change, torch.full_like(change, math.log(4)), atol=1e-3)


@pytest.mark.parametrize("tokens", ["power", "bands"])
def test_a_silent_channel_is_at_the_floor_and_no_other(tokens):
    powers = log_power(model(tokens), noise() * torch.tensor([0.0, 1, 0]))
    floor = math.log(POWER_FLOOR)
    assert torch.allclose(powers[:, [0, 2]], torch.tensor(floor), atol=1e-4)
    assert (powers[:, 1] > floor + 5).all()


def test_the_raw_tokens_are_linear_in_the_patch():
    """And so cannot express power: the part of a token that depends on the signal doubles with it."""
    made, emg = model("raw"), noise(1.0)
    bias = made.tokenisers["raw"].linear.bias
    once, twice = (made.tokenisers["raw"](signal, None) - bias for signal in (emg, 2 * emg))
    assert torch.allclose(twice, 2 * once, atol=1e-5)


@pytest.mark.parametrize(("hertz", "band"), [(20, 0), (40, 1), (60, 2), (100, 3), (180, 4), (360, 5)])
def test_a_tone_lights_up_its_band(hertz, band):
    """A patch of 25 samples padded to 50 has bins of 20 Hz, and 20, 40, 60, 90, 140, 250, 500 Hz fall on bins
    1, 2, 3, 4, 7, 12, 25: the bands hold the bins 1, 2, 3, 4-6, 7-11 and 12-24."""
    made = model("bands")
    assert made.tokenisers["bands"].bands() == [
        range(1, 2),
        range(2, 3),
        range(3, 4),
        range(4, 7),
        range(7, 12),
        range(12, 25),
    ]
    powers = log_power(made, tone(hertz, channel=2))[0, 2]  # (bands, P)
    # a tone of few cycles has a spectrum that depends on its phase in the patch, so the mean over patches decides
    assert powers.exp().mean(1).argmax() == band


def test_the_power_in_a_bin_is_that_of_the_sine():
    """100 Hz is bin 5 of 50 and 2.5 cycles a patch: |X|² / 25 = (A · 25 / 2)² / 25 = 6.25 A²; for A = 2, 25.

    Bins 4 and 6 are half a cycle off: (2/π)² of it, as the transform of 25 samples is a sinc of zeros 40 Hz apart.
    The mean of the band's three bins is 25 · (1 + 2 · 4/π²) / 3, less what the negative frequencies leave.
    """
    powers = log_power(model("bands"), tone(100, channel=0, amplitude=2.0))[0, 0].exp()
    assert powers[3].mean().item() == pytest.approx(25 * (1 + 8 / math.pi**2) / 3, rel=0.1)


@pytest.mark.parametrize("filter_index", [1, 3, 7, 12, 14])
def test_a_tone_lights_up_the_filter_around_it(filter_index):
    """Sixteen filters start at (i + 1/2) / 16 of 500 Hz."""
    made = model("power")
    assert torch.allclose(made.tokenisers["power"].filters.norm(dim=1), torch.tensor(1.0), atol=1e-5)
    powers = log_power(made, tone((filter_index + 0.5) / 16 * 500, channel=0))[0, 0]  # (F, P)
    assert (powers[:, 1:-1].argmax(0) == filter_index).all()


@pytest.mark.parametrize("tokens", ["bands", "raw"])
def test_a_patch_makes_its_own_token_alone(tokens):
    made, emg = model(tokens), noise()
    altered = emg.clone()
    altered[:, 3 * PATCH : 4 * PATCH] *= 3
    changed = (made.tokenisers[tokens](altered, None) != made.tokenisers[tokens](emg, None)).any(2).any(0)
    assert changed.tolist() == [patch == 3 for patch in range(10)]


def test_a_burst_raises_the_power_of_its_patch():
    emg = noise(1.0)
    emg[:, 6 * PATCH : 7 * PATCH] *= 30
    assert (log_power(model("power"), emg).argmax(3) == 6).all()


# ---- covariance -----------------------------------------------------------------------------------------------


def test_the_log_covariance_of_two_equal_channels_is_that_worked_out_by_hand():
    """Channels of variance 1 with correlation r have the eigenvalues 1 + r and 1 − r along (1, 1) and (1, −1), so the
    logarithm holds (log(1 + r) ± log(1 − r)) / 2; r = 0.6 gives −0.223144 and 0.693147. SHRINKAGE adds 0.002.
    """
    time = torch.arange(250) / 250
    first, other = (math.sqrt(2) * f(2 * math.pi * 5 * time) for f in (torch.sin, torch.cos))  # variance 1, apart
    signal = torch.stack([first, 0.6 * first + 0.8 * other], 1)[None] + torch.tensor([3.0, -4])  # offsets are nothing
    diagonal, beside = -0.223144, 0.693147
    assert log_covariance(signal)[0].tolist() == pytest.approx([diagonal, beside, diagonal], abs=5e-3)


def test_twice_the_amplitude_adds_log_4_to_the_diagonal_alone():
    change = log_covariance(noise(200.0)) - log_covariance(noise(100.0))
    expected = torch.tensor([1.0, 0, 0, 1, 0, 1]) * math.log(4)  # pairs aa, ab, ac, bb, bc, cc
    assert torch.allclose(change, expected.expand_as(change), atol=1e-4)


def test_silence_has_a_finite_log_covariance():
    assert log_covariance(torch.zeros(2, WINDOW, 3)).isfinite().all()


def test_the_linear_path_is_added_to_the_backbone():
    made, emg = model("power"), noise()
    both = made(emg=emg).logits
    with torch.no_grad():
        made.residual_weight.zero_()
    covariance = made.normalise(emg, made.reference)[1]
    assert torch.allclose(made(emg=emg).logits, covariance @ made.linear.weight.T + made.linear.bias, atol=1e-5)
    assert not torch.allclose(both, made(emg=emg).logits, atol=1e-3)


def test_without_the_linear_path_the_logits_are_the_heads():
    made, emg = model("power", linear_path=False), noise()
    seen = []
    made.head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    assert torch.allclose(made(emg=emg).logits, seen[0])
    assert made.linear is None


def test_without_blocks_there_is_no_attention():
    made = model(backbone={"n_embd": 32, "n_head": 2, "n_layer": 0})
    assert made(emg=noise()).logits.isfinite().all()
    assert not [name for name in made.state_dict() if "attn" in name]


# ---- rings ----------------------------------------------------------------------------------------------------


def test_a_turned_ring_moves_every_electrode_by_one():
    """Two rings of three: what electrode 0 measured is now found at 1, and the last of a ring at its first."""
    order, _ = turn_rings(6, 3, 1)
    assert order.tolist() == [2, 0, 1, 5, 3, 4]


@pytest.mark.parametrize("turn", [-2, -1, 1, 3])
def test_the_covariance_turns_with_the_channels(turn):
    signal = torch.randn(4, 100, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7)
    channels, pairs = turn_rings(6, 3, turn)
    turned = log_covariance(signal[:, :, channels])
    assert torch.allclose(turned, log_covariance(signal)[:, pairs], atol=1e-4)
    assert turn % 3 == 0 or not torch.allclose(turned, log_covariance(signal), atol=1e-1)


def test_every_window_is_turned_by_itself_within_the_range():
    rings = Augmentation(config(channels=list("abcdef"), ring=6, rotation=1))
    signal = torch.arange(6.0).expand(200, 10, 6)
    turned, covariance = rings(signal, torch.arange(21.0).expand(200, 21), rings.sample(200, seed=0))
    kinds = {tuple(window[0].int().tolist()) for window in turned}
    assert kinds == {(1, 2, 3, 4, 5, 0), (0, 1, 2, 3, 4, 5), (5, 0, 1, 2, 3, 4)}
    moved = covariance[:, 0].int()  # of the pair of channel 0 with itself; pairs 0, 6 and 20 are those of a, b and f
    assert set(zip(turned[:, 0, 0].int().tolist(), moved.tolist(), strict=True)) == {(0, 0), (1, 6), (5, 20)}


def test_noise_has_the_standard_deviation_that_was_set():
    signal, covariance = torch.zeros(2000, 10, 3), torch.zeros(2000, 6)
    augment = Augmentation(config(noise=0.5))
    same, noisy = augment(signal, covariance, augment.sample(2000, seed=0))
    assert torch.equal(same, signal)
    assert noisy.std().item() == pytest.approx(0.5, rel=0.05)


def test_rings_that_do_not_fit_are_refused():
    with pytest.raises(EMGError, match="ROTATION = 1 turns rings of RING = 8 electrodes, not 3; set RING"):
        Augmentation(config(rotation=1))


def test_so_many_turns_that_they_fill_the_memory_are_refused():
    """20,001 turns of 100 channels are 10^8 pairs, 0.8 GB. The model alone has no need of them."""
    large = config(rotation=10_000, ring=100, channels=[f"E{number}" for number in range(100)])
    with pytest.raises(EMGError, match="ROTATION = 10000 takes too much memory for 100 channels"):
        Augmentation(large)
    EMGForSequenceClassification(large)


def test_chance_is_a_function_of_the_seed_and_comes_in_shares():
    augment = Augmentation(config(channels=list("abcdef"), ring=6, rotation=2, noise=1.0))
    drawn, again, other = (augment.sample(20, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one, same) for one, same in zip(drawn, again, strict=True))
    assert not torch.equal(drawn.noise, other.noise)
    half = drawn.of(torch.arange(10, 20))
    assert torch.equal(half.noise, drawn.noise[10:])
    assert torch.equal(half.turn, drawn.turn[10:])


# ---- reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", TOKENISERS.built_in)
def test_two_sessions_that_differ_in_scale_and_offset_are_classified_alike(tokens):
    made, emg = model(tokens, linear_path=False), noise(1.0, windows=20)
    other = emg * torch.tensor([10.0, 0.5, 2]) + torch.tensor([5.0, -3, 0])
    apart = (made(emg=emg).logits - made(emg=other).logits).abs().max()
    first, second = (made(emg=one, reference=measure_reference(one)).logits for one in (emg, other))
    assert (first - second).abs().max() < 0.1 * apart


def test_a_reference_is_that_of_its_windows():
    """Channel scales of 2, 3 and 4; measured against itself a session has mean 0 and standard deviation 1."""
    emg = noise(1.0, windows=400) * torch.tensor([2.0, 3, 4])
    reference = measure_reference(emg)
    assert reference.scale[0].tolist() == pytest.approx([2, 3, 4], rel=0.02)
    signal, covariance = model().normalise(emg, reference)
    assert torch.allclose(signal.square().mean((0, 1)), torch.ones(3), atol=1e-3)
    assert torch.allclose(covariance.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(covariance.std(0, correction=0), torch.ones(6), atol=1e-2)


def test_each_window_is_measured_against_its_own_session():
    first, second = noise(1.0, windows=20), noise(50.0, windows=20)
    references = Reference(*map(torch.cat, zip(measure_reference(first), measure_reference(second), strict=True)))
    made, mixed = model(), torch.stack([first[0], second[1]])
    logits = made(emg=mixed, reference=references.of(torch.tensor([0, 1]))).logits
    assert torch.allclose(logits[0], made(emg=first[:1], reference=measure_reference(first)).logits[0], atol=1e-4)
    assert torch.allclose(logits[1], made(emg=second[1:2], reference=measure_reference(second)).logits[0], atol=1e-4)


def test_a_silent_channel_divides_by_nothing():
    emg = noise() * torch.tensor([1.0, 0, 1])
    reference = measure_reference(emg)
    assert reference.scale[0, 1] == 1
    assert reference.spread.min() == pytest.approx(SPREAD_FLOOR)
    assert model("covariance", "power")(emg=emg, reference=reference).logits.isfinite().all()


# ---- parameters -----------------------------------------------------------------------------------------------


def test_gpt2_with_four_blocks_has_this_many_parameters():
    """Per block of width D: norms 4 D; attention D·3D + 3D and D·D + D; MLP D·4D + 4D and 4D·D + D; together
    12 D² + 13 D. Then the last norm 2 D, the positions 1024 D, and of our own 16 filters of 25 taps, the norm of
    3 · 16 powers, their linear map to D, that of the 6 log covariances, the head and the linear path of 4 classes and
    the weight between them. No token embedding.
    """
    made = build_model(config(tokens=["covariance", "power"]), "gpt2", "never", blocks=4)
    width, powers, pairs = 768, 3 * 16, 6
    backbone = 4 * (12 * width**2 + 13 * width) + 2 * width + 1024 * width
    own = 16 * 25 + 2 * powers + powers * width + width + pairs * width + width + width * 4 + 4 + pairs * 4 + 4 + 1
    assert made.num_parameters() == backbone + own == 29_186_065
    assert made.config.weights == "random"
    assert not [name for name in [*made.state_dict(), *dict(made.named_parameters())] if "wte" in name]


def trained(made: EMGForSequenceClassification) -> set[str]:
    return {name for name, parameter in made.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("blocks", "frozen"), [(0, [0, 1, 2]), (1, [0, 1]), (2, [0]), (3, []), (9, [])])
def test_the_last_blocks_train_and_below_them_the_norms_alone(blocks, frozen):
    made = model(backbone={"n_embd": 32, "n_head": 2, "n_layer": 3})
    every = set(dict(made.named_parameters()))
    choose_trained(made, Settings(NUM_LAYERS=-blocks))
    fixed = {f"backbone.h.{block}.{name}" for block in frozen for name in MATRICES}
    assert every - trained(made) == fixed | {"linear.weight", "linear.bias"}
    choose_trained(made, Settings(NUM_LAYERS=-3))
    assert every - trained(made) == {"linear.weight", "linear.bias"}


# ---- transformers' own training ---------------------------------------------------------------------------------


def test_the_trainer_of_transformers_trains_it(tmp_path):
    """Two steps of two half batches: the loss of a step is the mean over its four windows."""
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    made = model("covariance", dropout=0.0, backbone={"n_embd": 32, "n_head": 2, "n_layer": 1} | still)
    labels = torch.tensor([0, 1, 2, 3])
    windows = [{"emg": emg, "labels": label} for emg, label in zip(noise(windows=4), labels, strict=True)]
    expected = made(emg=noise(windows=4), labels=labels).loss.item()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "logging_steps": 1}
    arguments = TrainingArguments(tmp_path, **options, use_cpu=True, report_to="none", save_strategy="no")
    before = made.head.weight.detach().clone()
    trainer = Trainer(made, arguments, train_dataset=windows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert not torch.equal(made.head.weight, before)
