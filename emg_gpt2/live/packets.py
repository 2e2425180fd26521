"""Packets of a stream → samples without gaps, and a count of what goes wrong."""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from emg_gpt2.live.sources import Packet, Source, Trouble
from emg_gpt2.windows.cut import LARGEST_SAMPLE

logger = logging.getLogger(__name__)

STALL_S = 0.5  # without a packet
STILL_S = 1.0  # a channel that holds one value for so long is lost
LONGEST_GAP_S = 1.0  # is filled; after a longer one a new signal begins
QUIET_S = 1.0  # between two messages of the same kind


class Reader:
    """Reads a source in a thread of its own, so that arrival times are right while a window is classified."""

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
        except Exception as error:  # raised in the main thread
            self.waiting.put(error)

    def __iter__(self) -> Iterator[list[Packet | Trouble]]:
        """Yield all that has arrived since, at least one item; an empty list where nothing came for STALL_S."""
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
    """Counts what goes wrong by its kind, and logs it, at most once in QUIET_S for each kind."""

    def __init__(self):
        self.counts, self.said = Counter(), {}

    def __call__(self, kind: str, words: str, count: int = 1) -> None:
        self.counts[kind] += count
        now = time.perf_counter()
        if now - self.said.get(kind, -np.inf) >= QUIET_S:
            self.said[kind] = now
            logger.warning(f"{kind}: {words}")


class Joiner:
    """Joins packets to one signal: gaps are filled, values that are not numbers are replaced."""

    def __init__(self, channels: list[str], rate: float, troubles: Troubles):
        self.channels, self.rate, self.troubles = channels, rate, troubles
        self.next, self.last = None, np.zeros(len(channels), np.float32)  # number of the next sample; the last one
        self.still = np.zeros(len(channels), int)  # samples for which each channel has held its value

    def __call__(self, packet: Packet) -> tuple[np.ndarray, bool]:
        """Return the samples (n, C), after those that fill a gap, and whether a new signal begins with them."""
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
        """Replace values that are not numbers, or too large, by the last value of their channel."""
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
