"""Counter-based random numbers: a token's coin is a hash of who it is, not of when it is drawn."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 2**64


def uniform_coins(seed: int, epoch: int, sample_ids: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), a pure function of (seed, epoch, sample id, position).

    The same on every device, whatever the batch order, the microbatch size, the packing or the world size; nothing
    has to be saved to resume. SplitMix64's finaliser (Steele, Lea, Flood 2014) chained over the four keys.

    Args:
        seed, epoch: any integers.
        sample_ids, positions: int64 tensors that broadcast against each other.

    Returns:
        fp32, multiples of 2**-24, in the broadcast shape.
    """
    key = _mix_int(_mix_int(seed) + epoch)
    words = _mix(sample_ids.to(torch.int64) + _signed(key))
    words = _mix(words + positions.to(torch.int64) * _signed(_GOLDEN))
    return _shift_right(words, 40).to(torch.float32) * 2.0**-24


def _mix(words: Tensor) -> Tensor:
    # int64 products wrap modulo 2**64 on every device torch supports.
    words = (words ^ _shift_right(words, 30)) * _signed(_MULTIPLIERS[0])
    words = (words ^ _shift_right(words, 27)) * _signed(_MULTIPLIERS[1])
    return words ^ _shift_right(words, 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it the logical shift of the unsigned algorithm.
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(word: int) -> int:
    word = (word + _GOLDEN) % _WORD
    word = (word ^ (word >> 30)) * _MULTIPLIERS[0] % _WORD
    word = (word ^ (word >> 27)) * _MULTIPLIERS[1] % _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
