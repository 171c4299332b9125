"""RMSNorm in fp32 whatever the dtype of input and weight."""

import torch.nn.functional as F
from torch import Tensor
from torchtune import modules


class RMSNorm(modules.RMSNorm):
    """torchtune's norm with the weight raised to fp32 too: torch has no fused kernel for mixed dtypes."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` → ``[..., D]``."""
        return F.rms_norm(x.float(), self.normalized_shape, self.scale.float(), self.eps).to(x.dtype)
