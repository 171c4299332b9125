"""DoRA (Liu et al. 2024) as PEFT computes it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchtune.modules import peft


class DoRALinear(peft.DoRALinear):
    """torchtune's DoRA with the bias outside the magnitude.

    torchtune scales the bias too, which differs from the paper and from PEFT on layers that have one (Qwen2's
    projections), so that an exported adapter would compute something else than what was trained.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` → ``[..., out]``: ``m (W + BA) x / ‖W + BA‖ + bias``, the norm taken as a constant."""
        update = self.lora_b(self.lora_a(self.dropout(x)))
        # The norm in the magnitude's dtype: a fresh bf16 magnitude then divides to exactly 1.
        scale = (self.magnitude / self._norm().to(self.magnitude.dtype)).to(x.dtype)
        out = (F.linear(x, self.weight) + self.scaling * update) * scale
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """Norm of each output channel's weight ``[out]``, in fp32 also under autocast."""
        with torch.autocast(self.weight.device.type, enabled=False):
            update = self.lora_b.weight.float() @ self.lora_a.weight.float()
            return torch.linalg.norm(self.weight.float() + self.scaling * update, dim=1)

    @torch.no_grad()
    def initialize_dora_magnitude(self) -> None:
        """Set the magnitude to the current norms, so that the layer starts as plain LoRA would."""
        self.magnitude.copy_(self._norm())
