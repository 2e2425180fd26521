"""TODO emg_gpt2.model.augment."""

from typing import NamedTuple

import torch
from torch import nn

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.config import EMGConfig


class Draws(NamedTuple):
    """What chance does to B windows: turn (B,), index of the turn of their rings; noise (B, C(C+1)/2)."""

    turn: torch.Tensor
    noise: torch.Tensor

    def of(self, windows: torch.Tensor) -> "Draws":
        """Those of the windows at the places `windows`."""
        return Draws(self.turn[windows], self.noise[windows])

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.turn.to(device), self.noise.to(device))


class Augmentation(nn.Module):
    """In training, every window's electrode rings are turned by a random number of electrodes up to ± `rotation`,
    and its log covariances get noise."""

    def __init__(self, config: EMGConfig):
        super().__init__()
        self.noise, self.turns = config.noise, range(-config.rotation, config.rotation + 1)
        self.of_rings = len(config.channels), config.ring
        for name, orders in self.orders().items():
            self.register_buffer(name, orders, persistent=False)

    def orders(self) -> dict[str, torch.Tensor]:
        """channels (turns, C) and pairs (turns, C(C+1)/2): what takes the place of each one, turn by turn."""
        turned = zip(*(turn_rings(*self.of_rings, turn) for turn in self.turns), strict=True)
        return {name: torch.stack(orders) for name, orders in zip(("channels", "pairs"), turned, strict=True)}

    def draw(self, count: int, seed: int) -> Draws:
        """The chances of a batch of `count` windows: a function of the seed, whichever device or process asks."""
        chance = torch.Generator().manual_seed(seed)
        turn = torch.randint(len(self.turns), (count,), generator=chance)
        return Draws(turn, self.noise * torch.randn(count, self.pairs.shape[1], generator=chance))

    def forward(
        self, signal: torch.Tensor, covariance: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """signal (B, T, C), covariance (B, C(C+1)/2), both normalised."""
        if len(self.turns) > 1:
            signal = signal.gather(2, self.channels[draws.turn][:, None].expand_as(signal))
            covariance = covariance.gather(1, self.pairs[draws.turn])
        return signal, covariance + draws.noise


def turn_rings(channels: int, ring: int, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders of the channels (C,) and of their pairs (C(C+1)/2,) when each ring is turned by `turn` electrodes.

    Channel order[c] takes the place of channel c. Raises EMGError where the channels are no whole number of rings.
    """
    if turn == 0:
        return torch.arange(channels), torch.arange(channels * (channels + 1) // 2)
    if channels % ring:
        raise EMGError(f"ROTATION = {abs(turn)} turns rings of RING = {ring} electrodes, not {channels}; set RING")
    order = torch.arange(channels).reshape(-1, ring).roll(turn, 1).flatten()
    rows, columns = torch.triu_indices(channels, channels)
    number = torch.empty(channels, channels, dtype=torch.long)
    number[rows, columns] = number[columns, rows] = torch.arange(len(rows))
    return order, number[order[rows], order[columns]]
