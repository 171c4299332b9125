"""Values shared by the whole package."""

IGNORE_INDEX = -100
"""Label of a position that is not to be predicted (PyTorch's default)."""
