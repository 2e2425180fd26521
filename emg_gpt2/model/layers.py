"""The linear head; layers of torch with another implementation: quick dropout, batch norm over several processes."""

import torch
from torch import distributed, nn

from emg_gpt2.model.config import EMGConfig


class Dropout(nn.Dropout):
    """nn.Dropout from eight random bits a value on a CPU: p is rounded to 1/256, below 1.

    It saves about 5 % of a training step. It stays because results on the sample depend on its random numbers.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values of any shape."""
        if not self.training or values.device.type != "cpu":
            return super().forward(values)
        dropped = min(round(256 * self.p), 255)
        bits = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
        return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


class LinearHead(nn.Linear):
    """Mean over the tokens, dropout, a linear map: hidden (B, P, D) → logits (B, K)."""

    def __init__(self, config: EMGConfig):
        super().__init__(config.width, len(config.class_codes))
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(hidden.mean(1)))


def use_quick_dropout(module: nn.Module) -> None:
    """Replace every nn.Dropout in the module."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, Dropout(child.p))
        use_quick_dropout(child)


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d that normalises over the whole batch where several processes share it (nn.SyncBatchNorm needs a
    GPU)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, features, P), of this process → the same, normalised."""
        if not self.training or not (distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(tokens)
        mean, variance, count = self._moments(tokens)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (tokens - mean[:, None]) * scale[:, None] + self.bias[:, None]

    def _moments(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and variance (features,) over all processes, and the number of values (1,) that they are of."""
        count = torch.full((1,), tokens.shape[0] * tokens.shape[2], dtype=tokens.dtype, device=tokens.device)
        sums = torch.cat([tokens.sum((0, 2)), tokens.square().sum((0, 2)), count])
        total, squares, count = SumOverProcesses.apply(sums).split([*2 * [self.num_features], 1])
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0), count


class SumOverProcesses(torch.autograd.Function):
    """The sum of each process's tensor, on all of them; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_, gradient: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.forward(_, gradient)
