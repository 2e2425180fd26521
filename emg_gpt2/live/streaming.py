"""Decisions on a stream: packets in, a line per decision out, and a summary at the end."""

import argparse
import csv
import logging
import sys
import time
from collections import deque
from contextlib import ExitStack
from typing import NamedTuple, TextIO

import numpy as np
import torch

from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.live.decisions import Classifier, probabilities
from emg_gpt2.live.packets import STALL_S, Joiner, Reader, Troubles
from emg_gpt2.live.references import RunningReference
from emg_gpt2.live.setup import Setup
from emg_gpt2.live.signals import CausalPath
from emg_gpt2.live.sources import Packet, Source, Trouble, open_source
from emg_gpt2.model.model import EMGForSequenceClassification

logger = logging.getLogger(__name__)

BEHIND_S = 1.0  # decisions that are older are skipped


def stream(args: argparse.Namespace) -> int:
    """Write a line per decision as samples arrive, then the summary; returns the exit status. Raises EMGError."""
    setup = Setup(args)
    config = setup.model.config
    source = open_source(args.source, config.channels, args.rate, args.encoding, args.speed)
    decider, status = Decider(setup, source), 0
    if config.preprocessing["FILTER"] == "putemg":
        logger.warning("the model was trained with FILTER = putemg, which looks ahead; here the causal filter is used")
    with ExitStack() as stack:
        file = stack.enter_context(args.out.open("w", newline="")) if args.out else sys.stdout
        writer = Writer(config.class_codes, file)
        warm_up(setup.model)
        try:
            decide_all(Reader(source), decider, writer, args.seconds)
        except KeyboardInterrupt:
            status = 130
    if isinstance(decider.measure, RunningReference):
        decider.measure.warn_of_doubts(args.source)
    summary = summary_of(decider, writer)
    print_summary(summary)
    if args.summary:
        replace_file(args.summary, lambda path: write_json(path, summary))
    return status


def decide_all(reader: Reader, decider: "Decider", writer: "Writer", seconds: float | None) -> None:
    """Decide until the source ends, or until so many seconds of signal have come."""
    stalled = None
    for items in reader:
        now = time.perf_counter()
        if not items and stalled is None:
            stalled = now - STALL_S
            decider.troubles("stalled", f"nothing has come for {STALL_S:g} s; waiting")
        elif items and stalled is not None:
            logger.warning(f"going on after {now - stalled:.1f} s without a packet")
            stalled = None
        for decision in decider(items):
            writer(decision)
        decider.use_the_pause()
        if seconds and decider.seconds >= seconds:
            break
    reader.ended.set()


def warm_up(model: EMGForSequenceClassification) -> None:
    """Make the first predictions, which take longer than all others, before samples arrive.

    One thread: a single window is bound by reading the weights from memory, and several threads are slower as soon as
    other programs run.
    """
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).normal(size=(1, model.config.window, len(model.config.channels)))
    for _ in range(5):
        probabilities(model, noise.astype(np.float32))


# ---- decisions --------------------------------------------------------------------------------------------------


class Decision(NamedTuple):
    """start, end: of the window, s; probabilities (K,); arrived: when its last sample came (time.perf_counter)."""

    start: float
    end: float
    gesture: str
    confidence: float
    probabilities: np.ndarray
    arrived: float


class Decider:
    """Packets in, decisions out; `seconds` of signal and `busy` seconds of computing so far."""

    def __init__(self, setup: Setup, source: Source):
        config = setup.model.config
        self.setup, self.source, self.troubles = setup, source, Troubles()
        self.names = np.array([*config.class_names, "rejected"])  # REJECTED, −1, is the last one
        self.joiner = Joiner(config.channels, source.rate, self.troubles)
        self.measure = setup.new_measure()
        self.most = None if source.waits else max(1, round(1000 * BEHIND_S / setup.hop_ms))
        self.origin, self.arrivals = (
            0,
            deque(),
        )  # number of the signal's first sample; (samples so far, when) of packets
        self.seconds = self.busy = 0.0
        self._begin()

    def _begin(self) -> None:
        self.path = CausalPath(self.setup.model, self.source.rate)
        self.classifier = Classifier(self.setup.model, self.setup.hop, self.measure, self.setup.calibration)
        self.smoother = self.setup.new_smoother()
        self.arrivals.clear()

    def __call__(self, items: list[Packet | Trouble]) -> list[Decision]:
        """Return the decisions on the windows that are complete with these packets."""
        began, decisions, pieces = time.perf_counter(), [], []
        for item in items:
            if isinstance(item, Trouble):
                self.troubles(*item)
                continue
            emg, anew = self.joiner(item)
            if anew:
                decisions += self._decide(pieces)
                pieces, self.origin = [], item.first
                self._begin()
            if len(emg):
                pieces.append(emg)
                self.arrivals.append((self.joiner.next - self.origin, item.arrived))
        decisions += self._decide(pieces)
        self.busy += time.perf_counter() - began
        return decisions

    def _decide(self, pieces: list[np.ndarray]) -> list[Decision]:
        if not pieces:
            return []
        emg, length = np.concatenate(pieces), self.setup.model.config.window
        self.seconds += len(emg) / self.source.rate
        before = self.classifier.skipped
        first, values = self.classifier(self.path(emg), self.most)
        if skipped := self.classifier.skipped - before:
            self.troubles("behind", f"{skipped} decisions skipped: this machine is slower than the signal", skipped)
        classes, confidence = self.smoother(values)
        start = self.source.start + self.origin / self.source.rate + first / self.path.rate
        arrived = [self._arrival(one + length - 1) for one in first]
        end = start + length / self.path.rate
        return list(map(Decision, start, end, self.names[classes], confidence, values, arrived))

    def _arrival(self, sample: int) -> float:
        """Return when the raw sample came that is as late as a filtered one."""
        place = sample * self.source.rate / self.path.rate
        while len(self.arrivals) > 1 and self.arrivals[0][0] <= place:
            self.arrivals.popleft()
        return self.arrivals[0][1]

    def use_the_pause(self) -> None:
        """Measure the reference again if it is time, after the decision is out."""
        began = time.perf_counter()
        self.measure.reference  # noqa: B018
        self.busy += time.perf_counter() - began


# ---- output -----------------------------------------------------------------------------------------------------


class Writer:
    """Writes a line of CSV per decision; on a terminal, a line per change of the gesture. `latencies`: s, of all."""

    def __init__(self, codes: list[int], file: TextIO):
        self.file, self.latencies, self.gesture = file, [], None
        self.brief = file.isatty()
        if not self.brief:
            self._line(["start", "end", "gesture", "confidence", *(f"p_{code}" for code in codes), "latency_ms"])

    def __call__(self, decision: Decision) -> None:
        latency = time.perf_counter() - decision.arrived
        self.latencies.append(latency)
        start, end, gesture, confidence, shares, _ = decision
        if not self.brief:
            numbers = (f"{value:.7g}" for value in (confidence, *shares))
            self._line([f"{start:.4f}", f"{end:.4f}", gesture, *numbers, f"{1000 * latency:.1f}"])
        elif gesture != self.gesture:
            text = f"{end:9.2f} s  {gesture:<16} {confidence:.2f}   after {1000 * latency:.0f} ms"
            print(text, file=self.file, flush=True)
        self.gesture = gesture

    def _line(self, cells: list[str]) -> None:
        csv.writer(self.file, lineterminator="\n").writerow(cells)
        self.file.flush()


def summary_of(decider: Decider, writer: Writer) -> dict:
    """Return counts, latencies (ms) and real_time_factor: seconds of computing per second of signal."""
    setup, latencies = decider.setup, 1000 * np.array(writer.latencies)
    told = decider.source.live and len(latencies)  # samples that wait to be read have no latency
    middle, late, most = np.quantile(latencies, (0.5, 0.99, 1)) if told else (None, None, None)
    return {
        "source": setup.args.source,
        "model": str(setup.args.model),
        "weights": setup.model.config.weights,
        "data_note": setup.model.config.data_note,
        "signal_s": decider.seconds,
        "decisions": len(latencies),
        "latency_ms": {"median": middle, "p99": late, "max": most},
        "later_than_a_hop": int((latencies > setup.hop_ms).sum()) if told else None,
        "real_time_factor": decider.busy / decider.seconds if decider.seconds else None,
        "troubles": dict(decider.troubles.counts),
    }


def print_summary(summary: dict) -> None:
    """Print the summary to the error output, where it does not mix with the lines."""
    troubles = ", ".join(f"{kind} {count}" for kind, count in summary["troubles"].items()) or "none"
    lines = [f"{summary['decisions']} decisions on {summary['signal_s']:.1f} s of signal"]
    middle, late, most = summary["latency_ms"].values()
    if middle is not None:
        lines[0] += (
            f"; latency {middle:.1f} ms (median), {late:.1f} ms (p99), {most:.1f} ms at the most; "
            f"{summary['later_than_a_hop']} came later than a hop"
        )
    if summary["real_time_factor"] is not None:
        lines.append(f"{summary['real_time_factor']:.3f} s of computing per second of signal")
    print(*lines, f"troubles: {troubles}", sep="\n", file=sys.stderr)
