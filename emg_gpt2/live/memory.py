"""What a model with context has read of a session: a calibration, which stays, and the latest windows."""

import math
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from emg_gpt2.model.backbone import read_on
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference
from emg_gpt2.windows.sentences import UNTOLD


class Calibration(NamedTuple):
    """Windows (n, T, C) of a session, and the gesture of each, (n,) class indices."""

    windows: np.ndarray
    gestures: np.ndarray


class Kept(NamedTuple):
    """A window as it is read: its token (D,), its log covariance (C(C+1)/2,) and its gesture, or UNTOLD."""

    token: torch.Tensor
    covariance: torch.Tensor
    told: int


class Memory:
    """Judges the windows of a session one after the other, each from those before it.

    The backbone's keys and values of what was read are kept, and the means of the closed-form path, so a decision costs
    the same whatever was said before. When `context` windows have been read, the older half of those after the
    calibration is forgotten.

    hop: samples from one window to the next; so that windows are as far apart as in training, some are not kept.
    """

    def __init__(self, model: EMGForSequenceClassification, hop: int, calibration: Calibration | None = None):
        self.model = model
        made, rate = model.config.preprocessing, model.config.sampling_rate
        self.spacing = math.ceil(round(made["STRIDE_MS"] * rate / 1000) / hop)
        self.judged, self.kept, self.calibrated, self.cache, self.known = 0, [], 0, DynamicCache(), -1
        if calibration is not None:
            told = torch.from_numpy(calibration.gestures).to(model.device)
            windows = torch.from_numpy(calibration.windows).to(model.device)
            tokens, covariance = model.window_tokens(windows, model.reference)
            self.kept = list(map(Kept, model.kept(tokens, told), covariance, told.tolist()))
            self.calibrated = len(self.kept)
        self._read(self.kept)

    def __call__(self, windows: torch.Tensor, reference: Reference | None) -> torch.Tensor:
        """The next windows (n, T, C) → their logits (n, K)."""
        tokens, covariances = self.model.window_tokens(windows, reference or self.model.reference)
        return torch.cat([self._judge(*one) for one in zip(tokens, covariances, strict=True)])

    def _judge(self, token: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """The logits (1, K) of a window's token (D,) and log covariance (C(C+1)/2,), which are then kept."""
        hidden = self._attend([self.model.asked(token)])
        self.cache.crop(-1)  # nobody sees what was asked
        logits = self.model.classify_hidden(hidden[None], self.model.state_logits(covariance[None], self.state))
        if self.judged % self.spacing == 0:
            kept = self.model.kept(token, torch.tensor(UNTOLD, device=token.device))
            self._keep(Kept(kept, covariance, UNTOLD))
        self.judged += 1
        return logits

    def _keep(self, window: Kept) -> None:
        if len(self.kept) == self.model.config.context:
            first, latest = self.kept[: self.calibrated], self.kept[self.calibrated :]
            self.kept, self.cache, self.known = first + latest[len(latest) // 2 + 1 :], DynamicCache(), -1
            self._read(self.kept)
        self.kept.append(window)
        self._read([window])

    def _read(self, windows: list[Kept]) -> None:
        """Let the backbone read windows; after each block of them the closed-form path too."""
        self._attend([window.token for window in windows])
        block = self.model.linear.block if self.model.linear is not None else self.model.config.context
        known = self.calibrated + (len(self.kept) - self.calibrated) // block * block
        if known != self.known:
            read = self.kept[:known]
            covariance = torch.cat([self.model.centre[:0], *(window.covariance[None] for window in read)])
            told = torch.tensor([window.told for window in read], dtype=torch.long, device=covariance.device)
            self.known, self.state = known, self.model.session_state(covariance, told)

    def _attend(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        """Add tokens (D,) to what was read; returns the hidden state (1, D) of the last one."""
        if not tokens:
            return torch.empty(0)
        return read_on(self.model.backbone, torch.stack(tokens)[None], self.cache)[0, -1:]
