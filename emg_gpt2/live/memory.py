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


class Memory:
    """Judges the windows of a session one after the other, each from those before it.

    The backbone's keys and values of what was read are kept, so a decision costs the same whatever was said before.
    When `context` windows have been read, the older half of those after the calibration is forgotten.

    hop: samples from one window to the next; so that windows are as far apart as in training, some are not kept.
    """

    def __init__(self, model: EMGForSequenceClassification, hop: int, calibration: Calibration | None = None):
        self.model = model
        made, rate = model.config.preprocessing, model.config.sampling_rate
        self.spacing = math.ceil(round(made["STRIDE_MS"] * rate / 1000) / hop)
        self.judged, self.kept, self.calibrated = 0, [], 0
        self.cache = DynamicCache()
        self.covariance = torch.empty(0, model.centre.shape[1], device=model.device)
        self.told = torch.empty(0, dtype=torch.long, device=model.device)
        if calibration is not None:
            told = torch.from_numpy(calibration.gestures).to(model.device)
            windows = torch.from_numpy(calibration.windows).to(model.device)
            tokens, self.covariance = model.window_tokens(windows, model.reference)
            self.kept, self.told = list(model.kept(tokens, told)), told
            self.calibrated = len(self.kept)
            self._read(self.kept)

    def __call__(self, windows: torch.Tensor, reference: Reference | None) -> torch.Tensor:
        """The next windows (n, T, C) → their logits (n, K)."""
        tokens, covariance = self.model.window_tokens(windows, reference or self.model.reference)
        hidden = torch.stack([self._judge(token) for token in tokens])  # (n, 1, D)
        told = torch.cat([self.told, self.told.new_full((len(windows),), UNTOLD)])
        linear = self.model.linear_logits(torch.cat([self.covariance, covariance]), told[None])
        return self.model.classify_hidden(hidden, linear[self.calibrated :])

    def _judge(self, token: torch.Tensor) -> torch.Tensor:
        """The hidden state (1, D) of a window's token (D,), which is then kept."""
        hidden = self._read([self.model.asked(token)])
        self.cache.crop(-1)  # nobody sees what was asked
        if self.judged % self.spacing == 0:
            self._keep(self.model.kept(token, torch.tensor(UNTOLD, device=token.device)))
        self.judged += 1
        return hidden

    def _keep(self, token: torch.Tensor) -> None:
        if len(self.kept) == self.model.config.context:
            first, latest = self.kept[: self.calibrated], self.kept[self.calibrated :]
            self.kept, self.cache = first + latest[len(latest) // 2 + 1 :], DynamicCache()
            self._read(self.kept)
        self._read([token])
        self.kept.append(token)

    def _read(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        """Add tokens (D,) to what was read; returns the hidden state (1, D) of the last one."""
        if not tokens:
            return torch.empty(0)
        return read_on(self.model.backbone, torch.stack(tokens)[None], self.cache)[0, -1:]
