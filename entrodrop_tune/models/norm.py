"""RMSNorm in fp32 whatever the dtype of input and weight."""

import torch.nn.functional as F
from torch import Tensor
from torchtune import modules

from entrodrop_tune.models.recompute import recomputed


class RMSNorm(modules.RMSNorm):
    """torchtune's norm with the weight raised to fp32 too: torch has no fused kernel for mixed dtypes."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` → ``[..., D]``."""
        return recomputed(self._norm, x, self.scale)

    def _norm(self, x: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, scale.float(), self.eps).to(x.dtype)
