"""Settings of the measurements of training and prediction: those of ENV.py, and some of their own."""

from typing import Literal

from pydantic import Field, field_validator

from emg_gpt2.settings import AnySettings, Settings

FEWER = {  # of each measurement with --quick
    "train": {"STEPS": 2, "ROUNDS": 2, "BATCH_SIZES": [64]},
    "predict": {"PREDICTIONS": 100, "BATCH_SIZES": [1, 64], "BLOCKS_TO_TRY": [12]},
}
LEFT_OUT = {  # with --quick, in words
    "preprocess": "one run counts, not three, and two copies are processed, not eight",
    "storage": "one run counts, not three",
    "train": "2 steps in 2 rounds at batch size 64, not 4 in 3 at three sizes; nothing about frozen blocks, windows "
    "computed once, a mapped file, checkpoints and numbers as text",
    "predict": "100 predictions, not 1000, at batch sizes 1 and 64, with 12 blocks alone",
}


def quick(what: str, given: AnySettings) -> AnySettings:
    """The settings with fewer repetitions; what flags and variables set stays."""
    return given.model_copy(update={name: n for name, n in FEWER[what].items() if name not in given.given})


class SpeedSettings(Settings):
    BLOCKS: int = Field(12, ge=0)
    """Number of the backbone's blocks to keep, from the first; 0: no backbone (more than it has: all); x ≥ 0."""

    NUM_LAYERS: int = Field(-12, le=0)
    """−n trains the last n blocks, the others stay frozen but for their layer norms; 0 trains none; x ≤ 0."""

    PRETRAINED: Literal["auto", "require", "never"] = "never"
    """Language-model weights, as in ENV.py: random ones are as fast, and need no download."""

    BESIDE: list[str] = []
    """Other backbones to measure beside MODEL_NAME, as NAME:BLOCKS: smollm2:4 has as many parameters as gpt2:2."""

    @property
    def beside(self) -> dict[str, dict]:
        """NAME:BLOCKS → the settings that it changes."""
        return {
            one: {"MODEL_NAME": one.rpartition(":")[0], "BLOCKS": int(one.rpartition(":")[2])} for one in self.BESIDE
        }

    @field_validator("BESIDE")
    @classmethod
    def _are_backbones(cls, names):
        for name in names:
            if not name.rpartition(":")[0] or not name.rpartition(":")[2].isdecimal():
                raise ValueError("should be written smollm2:4,gpt2:2")
        return names

    @field_validator("BATCH_SIZES", "BLOCKS_TO_TRY", check_fields=False)
    @classmethod
    def _are_different(cls, numbers):
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 1:
            raise ValueError("should be one number or more, each at least 1 and given once")
        return numbers


class TrainSettings(SpeedSettings):
    """Measure how fast the model trains, beside transformers.Trainer and the original project's way: windows/s,
    share of the time waiting for data and in checkpoints, share of the machine's matrix-multiply rate, memory."""

    STEPS: int = Field(4, ge=1)
    """Steps of an epoch that is measured; x ≥ 1."""

    QUICK: bool = Field(False, description=f"Rough figures in less time: {LEFT_OUT['train']}.")

    ROUNDS: int = Field(3, ge=1)
    """Epochs of each row that count, after one that warms up; x ≥ 1."""

    BATCH_SIZES: list[int] = [64, 256, 512]
    """Numbers of windows per step to try, each x ≥ 1; the other comparisons are made at BATCH_SIZE."""


class PredictSettings(SpeedSettings):
    """Measure how fast the model predicts: time of one window from samples to probabilities, windows/s by batch size,
    and the same of the original project's way."""

    PREDICTIONS: int = Field(1000, ge=1)
    """Windows to predict at every batch size, in at least five batches after some that warm up; x ≥ 1."""

    QUICK: bool = Field(False, description=f"Rough figures in less time: {LEFT_OUT['predict']}.")

    BATCH_SIZES: list[int] = [1, 8, 64, 256]
    """Windows per prediction besides a single one, each x ≥ 1."""

    BLOCKS_TO_TRY: list[int] = [12, 4]
    """Values of BLOCKS to try, each x ≥ 1; the original's way has as many as the first."""
