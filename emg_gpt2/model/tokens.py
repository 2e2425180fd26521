"""Tokenisers: normalised windows → tokens of the backbone's width.

A new kind of tokens is a class derived from Tokeniser; here, with its name in base/registry.py, or in another package
(docs/extend.md).
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from emg_gpt2.model.config import EMGConfig
from emg_gpt2.model.layers import BatchNorm
from emg_gpt2.model.normalise import POWER_FLOOR

BAND_EDGES_HZ = (20, 40, 60, 90, 140, 250, 500)  # of the fixed bands; those above Nyquist are left out


class Tokeniser(nn.Module):
    """signal (B, T, C), where T is a whole number of patches, and log covariance (B, C(C+1)/2), both normalised
    → tokens (B, P, D). As a rule there is one token per patch."""

    @staticmethod
    def count(config: EMGConfig) -> int:
        """P, the number of tokens of a window."""
        return config.window // config.patch

    def forward(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class CovarianceToken(Tokeniser):
    """A linear map of the whole window's log covariance: one token."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        channels = len(config.channels)
        self.linear = nn.Linear(channels * (channels + 1) // 2, config.width)

    @staticmethod
    def count(config: EMGConfig) -> int:
        return 1

    def forward(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        return self.linear(covariance)[:, None]  # (B, 1, D)


class PowerTokens(Tokeniser):
    """Log power per channel, patch and learned filter, then a linear map.

    One bank of FIR filters is shared by all channels.
    """

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.patch = config.patch
        self.filters = nn.Parameter(spread_filters(config.filters, config.filter_taps))  # (F, taps)
        self.norm = BatchNorm(len(config.channels) * config.filters)
        self.linear = nn.Linear(len(config.channels) * config.filters, config.width)

    def forward(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        batch, time, channels = signal.shape
        count, taps = self.filters.shape
        correlation = autocorrelation(signal.transpose(1, 2).reshape(batch * channels, time), self.patch, taps)
        squares = (self.filters[:, :, None] * self.filters[:, None]).flatten(1)  # (F, taps²)
        power = (correlation.flatten(2) @ squares.T).clamp(min=0) / self.patch  # (B·C, P, F); rounding may be below 0
        log_power = torch.log(power + POWER_FLOOR).reshape(batch, channels, time // self.patch, count)  # (B, C, P, F)
        log_power = log_power.transpose(2, 3).flatten(1, 2)  # (B, C·F, P)
        return self.linear(self.norm(log_power).transpose(1, 2))  # (B, P, D)


def spread_filters(count: int, taps: int) -> torch.Tensor:
    """(count, taps): Hann-windowed cosines from 0 to Nyquist, of norm 1."""
    time = torch.arange(taps) - (taps - 1) / 2
    cycles = 0.5 * (torch.arange(count) + 0.5)[:, None] / count  # per sample, up to Nyquist
    waves = torch.cos(2 * torch.pi * cycles * time) * torch.hann_window(taps + 2, periodic=False)[1:-1]
    return waves / waves.norm(dim=1, keepdim=True)


@torch.no_grad()
def autocorrelation(signals: torch.Tensor, patch: int, taps: int) -> torch.Tensor:
    """signals (N, T) → (N, P, taps, taps): sums over every patch of the products of samples under a filter's taps.

    The signal is padded with zeros. A filter h has the power h'Rh with this R, which needs no gradient. That saves 9 to
    22 % of a training step against a convolution.
    """
    count, time = signals.shape
    before = (taps - 1) // 2
    heard = F.pad(signals, (before, taps - 1 - before)).unfold(1, taps, 1)  # (N, T, taps)
    heard = heard.reshape(count * time // patch, patch, taps)  # (N·P, p, taps)
    return torch.bmm(heard.mT, heard).reshape(count, time // patch, taps, taps)


class BandTokens(Tokeniser):
    """Log power in fixed frequency bands per channel and patch, then a linear map."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.patch, self.rate = config.patch, config.sampling_rate
        size = len(config.channels) * len(self.bands())
        self.norm = BatchNorm(size)
        self.linear = nn.Linear(size, config.width)

    def bands(self) -> list[range]:
        """FFT bins of each band, for a patch padded to twice its length; a band without a bin is left out."""
        edges = [round(edge * 2 * self.patch / self.rate) for edge in BAND_EDGES_HZ]
        bands = [range(low, min(high, self.patch + 1)) for low, high in pairwise(edges)]
        return [band for band in bands if band] or [range(1, self.patch + 1)]

    def forward(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        batch, time, channels = signal.shape
        patches = signal.reshape(batch, time // self.patch, self.patch, channels)  # (B, P, p, C)
        spectrum = torch.fft.rfft(patches.float(), n=2 * self.patch, dim=2).abs().square() / self.patch  # (B, P, f, C)
        powers = [spectrum[:, :, band.start : band.stop].mean(2) for band in self.bands()]
        power = torch.stack(powers, -1)  # (B, P, C, bands)
        log_power = torch.log(power + POWER_FLOOR).flatten(2)  # (B, P, C·bands)
        return self.linear(self.norm(log_power.transpose(1, 2)).transpose(1, 2))  # (B, P, D)


class RawTokens(Tokeniser):
    """A linear map of the raw patch. This is the plain baseline: it cannot express the power of a signal."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.patch = config.patch
        self.linear = nn.Linear(config.patch * len(config.channels), config.width)

    def forward(self, signal: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        batch, time, channels = signal.shape
        return self.linear(signal.reshape(batch, time // self.patch, self.patch * channels))  # (B, P, D)
