"""Entropy-guided token dropout: usable alone in any training loop, needs torch and nothing else."""

from entrodrop_tune.method.coins import uniform_coins
from entrodrop_tune.method.constants import IGNORE_INDEX
from entrodrop_tune.method.curriculum import PRESETS, SHAPES, Curriculum, CurriculumPoint, Schedule
from entrodrop_tune.method.entropy import token_entropy
from entrodrop_tune.method.input_site import EntropyCache, corrupt_tokens
from entrodrop_tune.method.linear_cross_entropy import LossOutput, Select, linear_cross_entropy
from entrodrop_tune.method.loss import EntroDropLoss
from entrodrop_tune.method.quantile import QuantileSketch
from entrodrop_tune.method.selection import DROP_MODES, SELECTION_MODES, BoundSelector, StepSelector, TokenSelector

__all__ = [
    "DROP_MODES",
    "IGNORE_INDEX",
    "PRESETS",
    "SELECTION_MODES",
    "SHAPES",
    "BoundSelector",
    "Curriculum",
    "CurriculumPoint",
    "EntroDropLoss",
    "EntropyCache",
    "LossOutput",
    "QuantileSketch",
    "Schedule",
    "Select",
    "StepSelector",
    "TokenSelector",
    "corrupt_tokens",
    "linear_cross_entropy",
    "token_entropy",
    "uniform_coins",
]
