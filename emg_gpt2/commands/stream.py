"""Decisions of a trained model as samples arrive.

    python -m tools.stream SOURCE --model RUN/best_model [--rate 5124] [--reference DAY.hdf5] [--reject-below 0.6]

SOURCE is

  FILE               a raw recording, replayed at its own speed (`--speed`)
  -                  standard input: a line per sample, numbers with commas or blanks between them; binary samples
                     with `--encoding`
  udp://HOST:PORT    packets of the number of their first sample (64 bits) and samples, channel after channel, of
                     float32 (`--encoding int16`), all little-endian
  lsl://NAME         a stream of the Lab Streaming Layer (pip install pylsl)

The samples are the amplifier's, in the unit that the model was trained in. They go through the causal filter, whatever
the model was trained with, and every HOP_MS a window is classified and a line written: those of tools.predict with
`--filter causal --reference running`. By default windows are measured against the session so far (`running`), beginning
with the training part.

What goes wrong does not end the stream; it is counted in the summary, and said, once a second for each kind. Lost
samples are filled with the last one that came; a packet that comes late, when its place was filled, is dropped. After
a gap of more than a second, or where the samples are numbered anew, the signal begins anew. Samples that are no
numbers take the last value of their channel. When this machine falls behind by more than a second, decisions are
skipped (not those of standard input, which waits). At the end (of the source, after `--seconds`, or by Ctrl-C) a
summary says what was seen; `--summary FILE` keeps it as JSON. Latency is the time from the arrival of the last sample
of a window to the written decision; the resampler, which looks ten of its samples ahead, is part of it.
Exit status: 0 the source or the time ended, 1 something that the user can put right, 130 interrupted.
"""

import argparse
import csv
import logging
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from emg_gpt2.base.command_line import Parser, between, with_status
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.files import replace_file, write_json
from emg_gpt2.commands.predict import add_decision_flags, hop_of, known_reference, smoother, start_log
from emg_gpt2.live.decisions import CausalPath, Classifier, RunningReference, load_for_decisions, probabilities
from emg_gpt2.live.sources import ENCODINGS, Packet, Source, Trouble, open_source
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.windows.cut import LARGEST_SAMPLE

GROUP = "use"

logger = logging.getLogger("stream")

STALL_S = 0.5  # without a packet
STILL_S = 1.0  # a channel that holds one value for so long is lost
LONGEST_GAP_S = 1.0  # is filled; after a longer one the signal begins anew
BEHIND_S = 1.0  # decisions that are older are skipped
QUIET_S = 1.0  # between two reports of the same kind


# ---- samples --------------------------------------------------------------------------------------------------


class Reader:
    """Reads a source in a thread of its own, so that arrival is noted while a window is being classified."""

    def __init__(self, source: Source):
        self.waiting = queue.Queue(100 if source.waits else 0)
        self.patience = STALL_S if source.live else None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(source,), daemon=True)
        self.thread.start()

    def _read(self, source: Source) -> None:
        try:
            for item in source.packets(self.ended.is_set):
                self.waiting.put(item)
            self.waiting.put(None)
        except Exception as error:  # handed to the main thread, which knows what to say
            self.waiting.put(error)

    def __iter__(self) -> Iterator[list[Packet | Trouble]]:
        """All that has come since, at least one; an empty list where nothing came for STALL_S."""
        while True:
            try:
                items = [self.waiting.get(timeout=self.patience)]
            except queue.Empty:
                yield []
                continue
            while not self.waiting.empty():
                items.append(self.waiting.get())
            *before, last = items
            if isinstance(last, Packet | Trouble):
                yield items
                continue
            if before:
                yield before
            if last is not None:
                raise last
            return


class Troubles:
    """Counts what goes wrong by its kind, and says so: once in QUIET_S for each kind."""

    def __init__(self):
        self.counts, self.said = Counter(), {}

    def __call__(self, kind: str, words: str, count: int = 1) -> None:
        self.counts[kind] += count
        now = time.perf_counter()
        if now - self.said.get(kind, -np.inf) >= QUIET_S:
            self.said[kind] = now
            logger.warning(f"{kind}: {words}")


class Joiner:
    """Packets → samples (n, C) without gaps, all of them numbers."""

    def __init__(self, channels: list[str], rate: float, troubles: Troubles):
        self.channels, self.rate, self.troubles = channels, rate, troubles
        self.next, self.last = None, np.zeros(len(channels), np.float32)  # number of the next sample; the last one
        self.still = np.zeros(len(channels), int)  # samples for which each channel has held its value

    def __call__(self, packet: Packet) -> tuple[np.ndarray, bool]:
        """The samples, with those before that fill a gap, and whether the signal begins anew with them."""
        anew, missing = self.next is None, 0 if self.next is None else packet.first - self.next
        if abs(missing) > LONGEST_GAP_S * self.rate:
            self.troubles("began anew", f"sample {packet.first} follows sample {self.next - 1}")
            anew, missing = True, 0
        if missing < 0:
            self.troubles("late or twice", f"a packet from sample {packet.first} on, {-missing} samples late; dropped")
            return np.empty((0, len(self.channels)), np.float32), False
        if missing:
            self.troubles("lost samples", f"{missing} after {self.next / self.rate:.2f} s; filled", missing)
        emg = self._numbers(packet.emg)
        self._look_for_lost_channels(emg)
        filled = np.repeat(self.last[None], missing, axis=0)
        self.next, self.last = packet.first + len(emg), emg[-1]
        return np.concatenate([filled, emg]), anew

    def _numbers(self, emg: np.ndarray) -> np.ndarray:
        wrong = ~(np.abs(emg) < LARGEST_SAMPLE)  # NaN too
        if not wrong.any():
            return emg
        names = ", ".join(np.array(self.channels)[wrong.any(0)][:3])
        self.troubles("no number", f"{wrong.sum()} values in {names}; the last ones are taken", int(wrong.sum()))
        known = pd.DataFrame(np.where(wrong, np.nan, emg)).ffill()
        return known.fillna(dict(enumerate(self.last))).to_numpy(np.float32)

    def _look_for_lost_channels(self, emg: np.ndarray) -> None:
        changes = np.diff(emg, axis=0, prepend=self.last[None]) != 0
        since = np.where(changes.any(0), changes[::-1].argmax(0), len(emg) + self.still)
        limit = STILL_S * self.rate
        for channel in np.flatnonzero((self.still < limit) & (since >= limit)):
            self.troubles("lost channel", f"{self.channels[channel]} has held {emg[-1, channel]:g} for {STILL_S:g} s")
        for channel in np.flatnonzero((self.still >= limit) & (since < limit)):
            logger.warning(f"{self.channels[channel]} is back")
        self.still = since


# ---- decisions ------------------------------------------------------------------------------------------------


class Decision(NamedTuple):
    """start, end: of the window, s; probabilities (K,); arrived: when its last sample came, of time.perf_counter."""

    start: float
    end: float
    gesture: str
    confidence: float
    probabilities: np.ndarray
    arrived: float


class Decider:
    """Packets in, decisions out; `seconds` of signal, `busy` seconds of computing so far."""

    def __init__(self, model: EMGForSequenceClassification, source: Source, args: argparse.Namespace):
        config = model.config
        self.model, self.source, self.args, self.troubles = model, source, args, Troubles()
        self.names = np.array([*config.class_names, "rejected"])  # REJECTED, −1, is the last one
        self.joiner = Joiner(config.channels, source.rate, self.troubles)
        self.hop = hop_of(args, model)
        self.measure = known_reference(model, args) or RunningReference(model, self.hop)
        self.most = max(1, round(1000 * BEHIND_S / args.hop_ms)) if not source.waits else None
        self.origin, self.arrivals = 0, deque()  # sample that the signal began with; (samples so far, when) of packets
        self.seconds = self.busy = 0.0
        self._begin()

    def _begin(self) -> None:
        self.path = CausalPath(self.model, self.source.rate)
        self.classifier = Classifier(self.model, self.hop, self.measure)
        self.smoother = smoother(self.args)
        self.arrivals.clear()

    def __call__(self, items: list[Packet | Trouble]) -> list[Decision]:
        """Those on the windows that are complete with these packets."""
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
        emg = np.concatenate(pieces)
        self.seconds += len(emg) / self.source.rate
        before = self.classifier.skipped
        first, values = self.classifier(self.path(emg), self.most)
        if skipped := self.classifier.skipped - before:
            self.troubles("behind", f"{skipped} decisions skipped: this machine is slower than the signal", skipped)
        classes, confidence = self.smoother(values)
        start = self.source.start + self.origin / self.source.rate + first / self.path.rate
        end = start + self.model.config.window / self.path.rate
        arrived = [self._arrival(one + self.model.config.window - 1) for one in first]
        return list(map(Decision, start, end, self.names[classes], confidence, values, arrived))

    def _arrival(self, sample: int) -> float:
        """When the raw sample came that is at the place of a filtered one."""
        place = sample * self.source.rate / self.path.rate
        while len(self.arrivals) > 1 and self.arrivals[0][0] <= place:
            self.arrivals.popleft()
        return self.arrivals[0][1]

    def use_the_pause(self) -> None:
        """Measure the reference anew if it is time, now that the decision is out."""
        began = time.perf_counter()
        self.measure.reference  # noqa: B018
        self.busy += time.perf_counter() - began


# ---- what comes out -------------------------------------------------------------------------------------------


class Writer:
    """A line of CSV per decision, or on a terminal one per change of the gesture; `latencies` in s of them all."""

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
            print(
                f"{end:9.2f} s  {gesture:<16} {confidence:.2f}   after {1000 * latency:.0f} ms",
                file=self.file,
                flush=True,
            )
        self.gesture = gesture

    def _line(self, cells: list[str]) -> None:
        csv.writer(self.file, lineterminator="\n").writerow(cells)
        self.file.flush()


def main(argv: list[str] | None = None) -> int:
    """Decide as the command line says; returns the exit status."""
    work = lambda: stream(parse(argv), Console(stderr=True, highlight=False))  # noqa: E731
    return with_status(
        "stream",
        work,
        "it had not begun, start it again",
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Decisions of a trained model as samples arrive."
    parser = Parser(prog="python -m tools.stream", description=about, epilog="Defaults are in brackets.")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a recording, - (standard input), udp://HOST:PORT, or lsl://NAME")
    add("--rate", type=between(float, 10, 1e6), metavar="HZ", help="sampling rate of standard input or UDP (Hz)")
    add("--encoding", choices=("csv", *ENCODINGS), help="of standard input (csv) or UDP (float32)")
    add(
        "--speed", type=between(float, 0, 1000), default=1.0, metavar="X", help="of a file; 0: no waiting (%(default)s)"
    )
    add("--seconds", type=between(float, 0.1, 1e9), metavar="X", help="stop after so much signal (s; never)")
    add("--out", type=Path, metavar="FILE", help="write the lines (CSV) to this file, not to standard output")
    add("--summary", type=Path, metavar="FILE", help="also keep the summary, as JSON")
    add_decision_flags(parser)
    parser.set_defaults(filter="causal")
    args = parser.parse_args(argv)
    if args.reference == "session":
        raise EMGError("--reference session: a stream does not know its session beforehand; choose running or a file")
    return args


def stream(args: argparse.Namespace, console: Console) -> int:
    """Source and model → lines as samples arrive, then the summary; returns the exit status. Raises EMGError."""
    start_log(console)
    model = load_for_decisions(args.model)
    source = open_source(args.source, model.config.channels, args.rate, args.encoding, args.speed)
    decider, status = Decider(model, source, args), 0
    if model.config.preprocessing["FILTER"] == "putemg":
        logger.warning("the model was trained with FILTER = putemg, which looks ahead; here the causal filter is used")
    with ExitStack() as stack:
        file = stack.enter_context(args.out.open("w", newline="")) if args.out else sys.stdout
        writer = Writer(model.config.class_codes, file)
        warm_up(model)
        try:
            decide_all(Reader(source), decider, writer, args.seconds)
        except KeyboardInterrupt:
            status = 130
    summary = summarise(decider, writer, args)
    print_summary(summary)
    if args.summary:
        replace_file(args.summary, lambda path: write_json(path, summary))
    return status


def decide_all(reader: Reader, decider: Decider, writer: Writer, seconds: float | None) -> None:
    """Until the source ends, or so many seconds of signal have come."""
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
    """The first predictions take longer than all others; and threads take longer than one, as soon as others work too.

    A single window is bound by reading the weights from memory.
    """
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).normal(size=(1, model.config.window, len(model.config.channels)))
    for _ in range(5):
        probabilities(model, noise.astype(np.float32))


def summarise(decider: Decider, writer: Writer, args: argparse.Namespace) -> dict:
    """Latencies in ms; real_time_factor: seconds of computing per second of signal."""
    latencies = 1000 * np.array(writer.latencies)
    told = decider.source.live and len(latencies)  # samples that wait to be read say nothing about it
    middle, late, most = np.quantile(latencies, (0.5, 0.99, 1)) if told else (None, None, None)
    return {
        "source": args.source,
        "model": str(args.model),
        "weights": decider.model.config.weights,
        "data_note": decider.model.config.data_note,
        "signal_s": decider.seconds,
        "decisions": len(latencies),
        "latency_ms": {"median": middle, "p99": late, "max": most},
        "later_than_a_hop": int((latencies > args.hop_ms).sum()) if told else None,
        "real_time_factor": decider.busy / decider.seconds if decider.seconds else None,
        "troubles": dict(decider.troubles.counts),
    }


def print_summary(summary: dict) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
