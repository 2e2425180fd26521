"""The protocols of the putEMG literature, and the figures that others report for them.

Figures of different protocols must not be compared: a model that knows the person's day has the easier task. Nothing
heavy is imported here, because --help shows the protocols.
"""

from dataclasses import dataclass

START = {  # of the recordings that are simulated: trajectory → its time of day, one that putEMG has
    "repeats_long": "11-05-00-595",
    "sequential": "11-10-52-120",
    "repeats_short": "11-15-26-340",
}
LEAKY = " (LEAKY: neighbours of a test window are trained on)"


@dataclass(frozen=True)
class Protocol:
    """What is held out, the settings that say so, where the protocol comes from, and what is reported on putEMG."""

    title: str
    changes: dict[str, str]
    source: str
    figures: tuple[str, ...]


PROTOCOLS = {
    "A": Protocol(
        "within a person's day, one trajectory held out",
        {"SPLIT": "trajectory"},
        "Kaczmarek, Mańkowski and Tomczyński, Sensors 2019, 19, 3548",
        (
            "about 90 % accuracy: SVM on RMS, LDA on Hudgins or Du features (8 classes, 24 channels, windows of 2500 "
            "samples, stride 1250, 88 days × 3 trajectories; Sensors 2019, 19, 3548)",
        ),
    ),
    "B": Protocol(
        "per person, the first days → the later day",
        {"SPLIT": "session"},
        "no published study is known; a public notebook does it for two people",
        ("0.65 to 0.66 for subject 03, 0.18 for subject 11: random forest, 7 gestures (a public notebook)",),
    ),
    "C": Protocol(
        "unseen people",
        {"SPLIT": "subject"},
        "TabPFN study: tested on people 08, 24, 34 and 39, trained on the other 40; folds of people in other files",
        (
            "accuracy 84.69 %, macro-F1 0.737, macro-recall 0.731: TabPFN on Du features (40 people → 4; its own "
            "filter and windows)",
            "accuracy 82.06 %, macro-F1 0.684, macro-recall 0.695: LDA on Du features (the same study)",
            "accuracy 77.80 %, macro-F1 0.622, macro-recall 0.604: SVM on RMS (the same study)",
        ),
    ),
    "D": Protocol(
        f"random windows, balanced training part{LEAKY}",
        {"SPLIT": "random", "BALANCE": "undersample"},
        "the original of this project",
        (
            "accuracy 71.28 %: GPT-2 on number strings (rows were drawn with replacement, so that every class had the "
            "same number, and then split: the same window can be in both parts)",
        ),
    ),
}
