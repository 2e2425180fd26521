"""The model card: README.md beside a saved model, as the Hugging Face hub reads it.

First YAML for the hub, then what a user has to know: use, data and their licence, protocol, figures, limits.
"""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from EMG_DATA_LOADER import CROSSED, Split
from emg_gpt2.base.command_line import as_written, flag
from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.shapes import FAMILIES
from emg_gpt2.settings import Settings
from emg_gpt2.windows.reading import WindowSet

METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
TRANSDUCTIVE = (
    "The figures are **transductive**: each test window was measured against the signal of its whole session, later "
    "windows included, which nobody has in use."
)
METRIC_TYPES = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "macro_f1": "f1"}  # the hub's names
PUTEMG_RECORDING = r"emg_gestures-\d\d-\w+-\d{4}(-\d\d){5}-\d{3}"


class DataLicence(NamedTuple):
    """The licence of training data: the hub's key, a short name, and what it means for the model's user."""

    key: str
    name: str
    words: str


SIMULATED = DataLicence(
    "mit",
    "simulated",
    "The data are **simulated**: no person was recorded, and the figures say nothing about real people. They and this "
    "model are under this project's MIT License.",
)
PUTEMG = DataLicence(
    "cc-by-nc-4.0",
    "putEMG",
    "putEMG is licensed **CC BY-NC 4.0**: name its authors (below), and make **no commercial use** of it, nor of this "
    "model, which was learnt from it.",
)
MYO = DataLicence(
    "mit",
    "myo-readings-dataset",
    "The data are **real**: people of aljazfrancic/myo-readings-dataset, Copyright (c) 2021 Aljaž, MIT License. This "
    "model, which was learnt from them, may be used under the same terms; keep the notice.",
)
UNKNOWN = DataLicence(
    "other",
    "unknown",
    "**The licence of the data is not known** to the program that wrote this card. Find out before you share the model "
    "or use it for anything but a look: it was learnt from these data, and their terms may bind it.",
)
MAYBE_PUTEMG = UNKNOWN._replace(
    words=f"{UNKNOWN.words} The recordings are named as putEMG's are; if they are putEMG, CC BY-NC 4.0 holds: name its "
    "authors (below), no commercial use."
)
STRICTEST_FIRST = (PUTEMG, MAYBE_PUTEMG, UNKNOWN, MYO, SIMULATED)


def data_licence(notes: Iterable[str], recordings: Iterable[str]) -> DataLicence:
    """The strictest licence that the notes on the data's origin (DATA_NOTE) and the recordings' names allow for."""
    unknown = MAYBE_PUTEMG if all(re.fullmatch(PUTEMG_RECORDING, name) for name in recordings) else UNKNOWN
    found = {_licence_of(note.lower(), unknown) for note in notes}
    return min(found, key=STRICTEST_FIRST.index)


def _licence_of(note: str, unknown: DataLicence) -> DataLicence:
    if "simulated" in note:
        return SIMULATED
    if MYO.name in note:
        return MYO
    return PUTEMG if "putemg" in note else unknown


class Facts(NamedTuple):
    """What a card says that the model's config does not.

    figures: of EMG_utils.compute_metrics, and `versions`
    parts: name of a part of the data → its `count_part`
    protocol: sentences
    notes: on the origin of the data
    warnings: to be read before the figures
    base: the backbone's name on the hub, where its weights came from there
    session: subject and session whose reference the model has; None: it has the training part's
    """

    figures: dict
    parts: dict[str, dict]
    protocol: list[str]
    notes: list[str]
    licence: DataLicence
    warnings: list[str]
    base: str | None = None
    session: tuple[str, str] | None = None


def facts_of_run(windows: WindowSet, split: Split, metrics: dict, settings: Settings) -> Facts:
    """The facts of a finished run; metrics: the content of metrics.json."""
    note = windows.metadata["note"]
    parts = {"training": split.train, "validation": split.validation, "test": split.test}
    licence = data_licence([note], windows.table["recording"].unique())
    leak = [
        "The split is **leaky**: the model was trained on neighbours of the test windows, so the figures are too good."
    ]
    hub_name = metrics["weights"] == "pretrained" and not Path(settings.MODEL_NAME).is_dir()
    return Facts(
        figures=metrics,
        parts={name: count_part(windows, rows) for name, rows in parts.items()},
        protocol=_protocol(metrics),
        notes=[note],
        licence=licence,
        warnings=leak * (split.name == "random") + [TRANSDUCTIVE] * metrics["transductive"],
        base=settings.MODEL_NAME if hub_name else None,
    )


def _protocol(metrics: dict) -> list[str]:
    contexts = metrics.get("context", {})
    reached = [f"{one['balanced_accuracy']:.3f} from {one['what']}" for one in contexts.values()]
    again = "Then a new model was trained on training and validation part together, for the same number of epochs."
    return [
        f"Split: {metrics['split_description']}.",
        *([f"{CROSSED[0].upper()}{CROSSED[1:]}."] if metrics.get("filter_crosses_split") else []),
        f"The validation part chose epoch {metrics['best_epoch']} of {metrics['epochs']} by its loss.",
        *([again] if metrics["refit"] else ["The validation part was not trained on."]),
        "The test part was read once, after the last choice.",
        *([f"Balanced accuracy by what was read before a window: {'; '.join(reached)}."] if contexts else []),
    ]


def count_part(windows: WindowSet, rows: np.ndarray) -> dict[str, int]:
    """Numbers of people, days, recordings and windows in a part of the data."""
    table = windows.table.iloc[rows]
    days = len(table[["subject", "session"]].drop_duplicates())
    counts = {"people": table["subject"].nunique(), "days": days, "recordings": table["recording"].nunique()}
    return counts | {"windows": len(rows)}


def model_card(config: EMGConfig, facts: Facts) -> ModelCard:
    """The card of a model; `save_card` of model/files.py puts it beside the model."""
    pages = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    pages.filters |= {"figure": "{:.3f}".format, "literal": repr}
    content = pages.from_string(TEMPLATE).render(
        card_data=card_data(config, facts).to_yaml(),
        config=config,
        family=FAMILIES.get(config.shape.model_type),
        facts=facts,
        warnings=[*facts.warnings, *([SIMULATED.words] if facts.licence is SIMULATED else [])],
        metrics=METRICS,
        versions=", ".join(f"{name} {version}" for name, version in facts.figures["versions"].items()),
        own_reference=bool(facts.session) or config.scale == "training",
        chance=1 / len(config.class_names),
        rate=f"{config.sampling_rate:.4g}",
        milliseconds=f"{1000 * config.window / config.sampling_rate:.4g}",
        made_with=preprocessing_flags(config),
        notes=" ".join(filter(None, dict.fromkeys(facts.notes))) or "No note on their origin was given (`DATA_NOTE`).",
    )
    return ModelCard(content)


def preprocessing_flags(config: EMGConfig) -> str:
    """The flags with which Preprocessing.py makes windows like those of the training."""
    names = dict(zip(config.class_codes, config.class_names, strict=True))
    given = {name: as_written(value) for name, value in (config.preprocessing | {"CLASS_NAMES": names}).items()}
    return " ".join(f"{flag(name)} {shlex.quote(text)}" for name, text in given.items() if text)


def card_data(config: EMGConfig, facts: Facts) -> ModelCardData:
    """The YAML at the top of the card."""
    licence, dataset = facts.licence, facts.licence.name
    results = [
        EvalResult(
            task_type="other",
            task_name="gesture classification",
            dataset_type=dataset,
            dataset_name=facts.notes[-1] or dataset,
            metric_type=METRIC_TYPES[name],
            metric_name=words + ", transductive" * facts.figures.get("transductive", False),
            metric_value=round(facts.figures[name], 4),
        )
        for name, words in METRICS.items()
    ]
    unknown = {"license_name": "unknown"} if licence.key == "other" else {}
    kinds = ["emg", "semg", "surface-emg", "gesture-recognition", "time-series", config.model_type]
    return ModelCardData(
        license=licence.key,
        **unknown,
        library_name="transformers",
        pipeline_tag="other",
        tags=[*kinds, *([dataset] if dataset != "unknown" else [])],
        metrics=list(METRIC_TYPES.values()),
        base_model=facts.base,
        model_name="EMG-GPT2",
        eval_results=results,
    )


TEMPLATE = """---
{{ card_data }}
---

# EMG-GPT2: hand gestures from surface EMG

{% for warning in warnings %}
> {{ warning }}

{% endfor %}
It recognises {{ config.class_names | length }} gestures ({{ config.class_names | join(", ") }}), in windows of
{{ milliseconds }} ms from {{ config.channels | length }} surface electrodes ({{ rate }} Hz).
{% if config.shape.num_hidden_layers %}
{{ config.shape.num_hidden_layers }} blocks of {{ family }}, width {{ config.width }}, read the window as tokens
{% else %}
Without a language model, the head reads the window as tokens of width {{ config.width }}
{% endif %}
({{ config.tokens | join(", ") }}){% if config.linear_path %} beside a linear path on log covariances{% endif %}.

{% if config.weights == "pretrained" %}
**Pretrained weights:** the backbone started from a language model's weights
({{ facts.base or family }}{% if family == "GPT-2" %}; OpenAI's GPT-2 is under the MIT License{% endif %}).
{% elif config.weights == "shuffled" %}
**Shuffled weights:** the backbone started from a language model's weights in a random order, as a control.
{% elif config.weights == "random" %}
**Random weights:** the backbone started from random weights, not from those of a language model.
{% endif %}

## Use

Install the package (`pip install .` in a copy of the EMG-GPT2 project). No code is loaded from the hub, and only
safetensors are read.

```python
import torch
{% if own_reference %}
from emg_gpt2 import EMGForSequenceClassification, Settings, load_windows, read_emg
{% else %}
from emg_gpt2 import EMGForSequenceClassification, Settings, load_windows, measure_reference, read_emg
{% endif %}

model = EMGForSequenceClassification.from_pretrained("best_model")  # this folder, or its name on the hub
windows = load_windows(Settings(DATA_LOCATION="windows.parquet"))  # of Preprocessing.py, see below
{% if facts.session %}
subject, session = {{ facts.session | literal }}
{% else %}
subject, session = windows.table[["subject", "session"]].iloc[0]  # one person and day
{% endif %}
day = (windows.table["subject"] == subject) & (windows.table["session"] == session)
emg = read_emg(windows, day.to_numpy().nonzero()[0])  # (B, T, C), {{ config.unit }}
with torch.inference_mode():
{% if own_reference %}
    logits = model(emg=emg).logits  # (B, K); measured against the model's own reference
{% else %}
    logits = model(emg=emg, reference=measure_reference(emg)).logits  # (B, K)
{% endif %}
print([model.config.class_names[index] for index in logits.argmax(1)[:5]])
```

{% if facts.session %}
The model's own reference is that of subject {{ facts.session[0] }}, session {{ facts.session[1] }}: it predicts for
that person and day alone.
{% elif own_reference %}
The model's own reference is that of its training part: nothing of a new session has to be known.
{% else %}
`measure_reference` measures a person's day on its own windows, without labels. These windows should hold all gestures,
in shares like those of the training. Without `reference` the windows are measured against the training part, which
costs accuracy.
{% endif %}

After `from emg_gpt2 import EMGForSequenceClassification`, `AutoModelForSequenceClassification.from_pretrained` works
too.

Make the windows as those of the training were made:

```sh
python Preprocessing.py RECORDINGS --data-location windows.parquet {{ made_with }}
```

## Data

{{ notes }}
{% if facts.licence.name != "simulated" %}

{{ facts.licence.words }}
{% endif %}

| part | people | days | recordings | windows |
|---|---|---|---|---|
{% for name, part in facts.parts.items() %}
| {{ name }} | {{ part.people }} | {{ part.days }} | {{ part.recordings }} | {{ part.windows }} |
{% endfor %}

Windows of {{ config.window }} samples ({{ config.unit }}) of {{ config.channels | length }} channels,
{{ config.channels[0] }} to {{ config.channels[-1] }}, at {{ rate }} Hz.

## Protocol

{% for sentence in facts.protocol %}
* {{ sentence }}
{% endfor %}

## Figures

Test part, {{ facts.figures.windows }} windows.

{% for name, words in metrics.items() %}
* {{ words }}: **{{ facts.figures[name] | figure }}**
{% endfor %}
* chance, balanced: {{ chance | figure }}

| gesture | precision | recall | F1 | windows |
|---|---|---|---|---|
{% for name, one in facts.figures.per_class.items() %}
| {{ name }} | {{ one.precision | figure }} | {{ one.recall | figure }} | {{ one.f1 | figure }} | {{ one.support }} |
{% endfor %}

| person | balanced accuracy | accuracy | windows |
|---|---|---|---|
{% for name, one in facts.figures.per_subject.items() %}
| {{ name }} | {{ one.balanced_accuracy | figure }} | {{ one.accuracy | figure }} | {{ one.windows }} |
{% endfor %}

Compare only figures of the same protocol, and never accuracy with balanced accuracy.

## Limits

* People it was tested on: {{ facts.parts.test.people }}. Its accuracy for others is not known. What is learned from one
  person seldom fits another.
{% if facts.session %}
* A window is measured against the session's calibration part, in the figures above too.
{% elif own_reference %}
* A window is measured against the training part, in the figures above too. Another gain or unit makes poor predictions.
{% else %}
* A window is measured against the reference of its person and day. A poor reference (few windows, one gesture) makes
  poor predictions.
{% endif %}
* The electrodes must be where they were in training, in the same order. A shift around the arm costs accuracy
{% if config.rotation %}
  (turns of up to ± {{ config.rotation }} electrodes were trained for).
{% else %}
  (it was trained for none).
{% endif %}
* It takes unknown gestures for one of its own. Its confidence is not calibrated.
* It is **not a medical device**, and not tested for control of a prosthesis or a machine.

## Versions

{{ versions }}.

## Licence and citation

The code is under the MIT License. {{ facts.licence.words }}

Cite EMG-GPT2 (CITATION.cff of the project){% if facts.licence.key != "mit" %} and the data{% endif %}. The data set of
this file layout is putEMG: Kaczmarek, Mańkowski and Tomczyński, *putEMG – A Surface Electromyography Hand Gesture
Recognition Dataset*, Sensors 2019, 19(16), 3548.
"""
