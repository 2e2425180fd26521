"""The ways of training and predicting that this project is measured against."""

import math
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2TokenizerFast,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.measure import (
    SHAPES_ONLY,
    Training,
    facts_of,
    model_of_shapes,
    now,
    peak_mb,
    rows_of_steps,
    training_flops,
)
from EMG_DATA_LOADER import read_emg, split_windows
from emg_gpt2.model.files import hub_answers
from emg_gpt2.settings import Settings
from emg_gpt2.training.new_model import new_model
from emg_gpt2.training.task import load_task
from emg_gpt2.windows.reading import WindowSet, load_windows

TEXT_BATCH = 4  # windows per step, of the original project
TEXT_TOKENS = 1024  # that it kept of a window: as many as a GPT-2 takes
VOCABULARY = 50257  # of GPT-2's tokenizer


# ---- the same model, trained by transformers.Trainer ----------------------------------------------------------


class TransformersTraining(Training):
    """This project's model as anyone would train it with transformers.Trainer: windows one by one from a Dataset."""

    def __init__(self, settings: Settings):
        task = load_task(settings)
        data = Windows(task.windows, rows_of_steps(task.split, settings.STEPS * settings.BATCH_SIZE, settings.SEED))
        self.precision, self.facts = settings.PRECISION, facts_of(task, settings)
        given = {"train_dataset": data, "data_collator": default_data_collator}
        self.trainer = Trainer(new_model(task, settings), arguments(settings, settings.BATCH_SIZE), **given)

    def epoch(self) -> dict:
        return timed_epoch(self.trainer)


class Windows(Dataset):
    """One window and its class per item."""

    def __init__(self, windows: WindowSet, rows: np.ndarray):
        self.windows, self.rows, self.targets = windows, rows, windows.targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict:
        row = self.rows[item]
        return {"emg": read_emg(self.windows, self.rows[item : item + 1])[0], "labels": int(self.targets[row])}


def arguments(settings: Settings, batch_size: int) -> TrainingArguments:
    """This project's recipe, as far as transformers.Trainer has it; nothing is written."""
    return TrainingArguments(
        output_dir=str(settings.RUN_DIR),
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=settings.LR,
        weight_decay=settings.WEIGHT_DECAY,
        adam_beta2=0.95,
        max_grad_norm=settings.CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=settings.WARMUP,
        seed=settings.SEED,
        bf16=settings.PRECISION == "bf16",
        use_cpu=PartialState().device.type == "cpu",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def timed_epoch(trainer: Trainer) -> dict:
    """`seconds` of one more epoch, without what surrounds it."""
    clock = EpochClock()
    trainer.remove_callback(PrinterCallback)  # it would write to the standard output
    trainer.add_callback(clock)
    trainer.train()
    trainer.remove_callback(clock)
    return {"seconds": clock.ended - clock.began}


class EpochClock(TrainerCallback):
    def on_epoch_begin(self, *_, **__) -> None:
        self.began = now()

    def on_epoch_end(self, *_, **__) -> None:
        self.ended = now()


# ---- the original project's way -------------------------------------------------------------------------------


class TextTraining(Training):
    """The numbers of each window, as text, through GPT-2's tokenizer into GPT2ForSequenceClassification.

    As the original project had it: batches of 4 windows of at most 1024 tokens, and transformers.Trainer. Here the
    text is written and tokenised in every step, the weights are random, and all of them are trained. A step takes as
    long as many of this project's, so that an epoch has a quarter of STEPS.
    """

    def __init__(self, settings: Settings):
        windows = load_windows(settings)
        split = split_windows(windows, settings)
        tokenizer, origin = find_tokenizer()
        rows = rows_of_steps(split, math.ceil(settings.STEPS / 4) * TEXT_BATCH, settings.SEED)
        config, dataset = text_config(windows, settings), Windows(windows, rows)
        collate = partial(tokenise, tokenizer=tokenizer, at_most=config.n_positions)
        tokens = collate([dataset[0]])["input_ids"].shape[1]
        self.precision = settings.PRECISION
        self.facts = text_facts(config, tokens) | {"tokenizer": origin}
        self.facts |= {"windows": len(rows), "training_windows": len(split.train)}
        torch.manual_seed(settings.SEED)
        self.trainer = Trainer(
            GPT2ForSequenceClassification(config),
            arguments(settings, TEXT_BATCH),
            train_dataset=dataset,
            data_collator=collate,
        )

    def epoch(self) -> dict:
        return timed_epoch(self.trainer)


class TextPrediction:
    """One window from its numbers to probabilities, by way of text; random weights."""

    def __init__(self, settings: Settings):
        windows = load_windows(settings)
        self.tokenizer, self.origin = find_tokenizer()
        self.model = GPT2ForSequenceClassification(text_config(windows, settings)).to(PartialState().device).eval()
        self.window, self.precision = {"emg": read_emg(windows, np.arange(1))[0]}, settings.PRECISION

    def seconds(self, batch_size: int, count: int) -> list[float]:
        """Of each of `count` predictions of one window, after one that warms up."""
        return [self._predict() for _ in range(count + 1)][1:]

    @torch.inference_mode()
    def _predict(self) -> float:
        began, device = now(), self.model.device
        inputs = tokenise([self.window], self.tokenizer, self.model.config.n_positions).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            self.model(**inputs).logits.softmax(1).float().cpu().numpy()
        return now() - began

    def described(self) -> dict:
        return {"blocks": self.model.config.n_layer, "tokenizer": self.origin, "peak_mb": peak_mb()}


def tokenise(items: list[dict], tokenizer: PreTrainedTokenizerBase, at_most: int):
    """Windows (T, C), in counts as Python writes them, sample after sample → input_ids and attention_mask (B, P)."""
    texts = [" ".join(map(str, item["emg"].flatten().tolist())) for item in items]
    inputs = tokenizer(texts, truncation=True, max_length=min(TEXT_TOKENS, at_most), padding=True, return_tensors="pt")
    if "labels" in items[0]:
        inputs["labels"] = torch.tensor([item["labels"] for item in items])
    return inputs


def text_config(windows: WindowSet, settings: Settings) -> GPT2Config:
    """A text classifier as wide and as deep as this project's model."""
    with SHAPES_ONLY:
        shape = model_of_shapes(windows, settings).config.shape
    classes = {"num_labels": len(windows.classes), "pad_token_id": VOCABULARY - 1}
    size = {"n_embd": shape.hidden_size, "n_layer": shape.num_hidden_layers, "n_head": shape.num_attention_heads}
    return GPT2Config(vocab_size=VOCABULARY, **classes, **size)


def text_facts(config: GPT2Config, tokens: int) -> dict:
    """As `facts_of`."""
    with SHAPES_ONLY:
        model = GPT2ForSequenceClassification(config).train()
    embedded = torch.zeros(1, tokens, config.n_embd)  # looking up the tokens costs none
    flops = training_flops(lambda: model(inputs_embeds=embedded).logits)
    blocks = {"blocks": config.n_layer, "trained_blocks": config.n_layer}
    blocks |= {"parameters": model.num_parameters()}
    return {"batch_size": TEXT_BATCH, **blocks, "tokens_per_window": tokens, "flops_per_window": flops}


def find_tokenizer() -> tuple[PreTrainedTokenizerBase, str]:
    """GPT-2's where cache or hub have it; else a byte-level BPE that also gives every number up to 999 one token."""
    with suppress(OSError, ValueError):
        found = GPT2TokenizerFast.from_pretrained("gpt2", local_files_only=not hub_answers())
        if found.vocab_size == VOCABULARY:  # it is empty where there was none to be had
            found.pad_token = found.eos_token
            return found, "GPT-2's tokenizer"
    numbers = [f"{before}{number}" for before in ("", " ") for number in range(1000)]
    empty = GPT2TokenizerFast(vocab={}, merges=[])
    trained = empty.train_new_from_iterator([numbers] * 2, VOCABULARY, show_progress=False)
    trained.pad_token = trained.eos_token
    return trained, "a byte-level BPE of the numbers 0 … 999, as GPT-2's tokenizer is not here"
