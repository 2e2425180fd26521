"""Random changes of the windows in training: turned electrode rings, and noise on the log covariances."""

from typing import NamedTuple

import torch
from torch import nn

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.config import EMGConfig

LARGEST_ORDERS = 3e7  # indices of channel pairs over all turns, 0.25 GB


class Draws(NamedTuple):
    """The random numbers of B windows: turn (B,), index of the turn of their rings; noise (B, C(C+1)/2)."""

    turn: torch.Tensor
    noise: torch.Tensor

    def of(self, windows: torch.Tensor) -> "Draws":
        """Those of the windows at the places `windows`."""
        return Draws(self.turn[windows], self.noise[windows])

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.turn.to(device), self.noise.to(device))


class Augmentation(nn.Module):
    """Turns the electrode rings of each window by a random number of electrodes, up to ± `rotation`, and adds noise of
    standard deviation `noise` to its normalised log covariance."""

    def __init__(self, config: EMGConfig):
        """Raises EMGError where the channels are not whole rings, or the orders would take too much memory."""
        super().__init__()
        self.noise, turns = config.noise, range(-config.rotation, config.rotation + 1)
        channels = len(config.channels)
        if len(turns) * channels * (channels + 1) // 2 > LARGEST_ORDERS:
            raise EMGError(f"ROTATION = {config.rotation} takes too much memory for {channels} channels; lower it")
        orders = [turn_rings(channels, config.ring, turn) for turn in turns]
        self.register_buffer("channels", torch.stack([order for order, _ in orders]), persistent=False)  # (turns, C)
        self.register_buffer("pairs", torch.stack([order for _, order in orders]), persistent=False)  # (…, C(C+1)/2)

    def sample(self, sentences: int, seed: int, length: int = 1) -> Draws:
        """Random numbers for sentences of `length` windows, whose rings are turned together.

        The seed decides them, whatever the device or the process.
        """
        generator = torch.Generator().manual_seed(seed)
        turns, pairs = self.pairs.shape
        turn = torch.randint(turns, (sentences,), generator=generator).repeat_interleave(length)
        return Draws(turn, self.noise * torch.randn(sentences * length, pairs, generator=generator))

    def forward(
        self, signal: torch.Tensor, covariance: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """signal (B, T, C) and log covariance (B, C(C+1)/2), both normalised → the same, changed."""
        if len(self.channels) > 1:
            signal = signal.gather(2, self.channels[draws.turn][:, None].expand_as(signal))
            covariance = covariance.gather(1, self.pairs[draws.turn])
        return signal, covariance + draws.noise


def turn_rings(channels: int, ring: int, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders of the channels (C,) and of their pairs (C(C+1)/2,) when each ring is turned by `turn` electrodes.

    Channel order[c] takes the place of channel c. Raises EMGError where the channels are not whole rings.
    """
    if turn == 0:
        return torch.arange(channels), torch.arange(channels * (channels + 1) // 2)
    if channels % ring:
        raise EMGError(f"ROTATION = {abs(turn)} turns rings of RING = {ring} electrodes, not {channels}; set RING")
    order = torch.arange(channels).reshape(-1, ring).roll(turn, 1).flatten()  # (C,) from (rings, ring)
    rows, columns = torch.triu_indices(channels, channels)
    number = torch.empty(channels, channels, dtype=torch.long)  # of each pair
    number[rows, columns] = number[columns, rows] = torch.arange(len(rows))
    return order, number[order[rows], order[columns]]
