"""SwiGLU feed-forward layer that keeps one activation less."""

from torch import Tensor
from torchtune import modules

from entrodrop_tune.models.recompute import recomputed


class FeedForward(modules.FeedForward):
    """torchtune's, with a gate always: ``down(activation(gate(x)) * up(x))``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` → ``[..., D]``."""
        return self.w2(recomputed(self._gated, self.w1(x), self.w3(x)))

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.activation(gate) * up
