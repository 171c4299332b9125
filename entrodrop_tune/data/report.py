"""What was read and what was left out: nothing is dropped without a count."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SourceReport:
    """Counts for one source."""

    path: str
    sha256: str
    rows: int = 0
    samples: int = 0
    blank: int = 0
    malformed: int = 0
    empty: int = 0
    too_long: int = 0
    """Rows over ``max_length``, whether skipped, truncated or split."""
    longest: int = 0
    """Tokens of the longest row."""
    first: dict[str, str] = field(default_factory=dict)
    """The first row of each kind that was not taken as it is: ``{"malformed": "train.jsonl:17: not JSON (...)"}``."""

    def count(self, kind: str, where: str, reason: str) -> None:
        """Count a row of ``kind`` (malformed, empty or too_long)."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.first.setdefault(kind, f"{where}: {reason}")


@dataclass
class DataReport:
    """Counts for everything loaded."""

    train: list[SourceReport]
    validation: list[SourceReport]
    replay: list[SourceReport]
    train_samples: int = 0
    validation_samples: int = 0
    replay_samples: int = 0
    train_tokens: int = 0
    train_target_tokens: int = 0
    validation_target_tokens: int = 0
    duplicates: int = 0
    """Training samples that repeat an earlier one word for word."""
    leaks: int = 0
    """Validation samples that are also training samples."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for run.json."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A few lines for people; problems come first."""
        out = []
        for source in (*self.train, *self.validation, *self.replay):
            for kind in ("malformed", "empty", "too_long"):
                number = getattr(source, kind)
                if number:
                    out.append(
                        f"{number} of {source.rows} rows of {source.path} {_WORDS[kind]}; "
                        f"the first: {source.first[kind]}"
                    )
        if self.leaks:
            out.append(f"{self.leaks} of {self.validation_samples} validation samples are also in the training data")
        if self.duplicates:
            out.append(f"{self.duplicates} of {self.train_samples} training samples are exact repeats")
        out.append(
            f"{self.train_samples} training samples ({self.train_tokens} tokens, {self.train_target_tokens} of them "
            f"learned), {self.validation_samples} for validation"
            + (f", {self.replay_samples} for replay" if self.replay_samples else "")
        )
        return out


_WORDS = {"malformed": "are malformed", "empty": "are empty", "too_long": "are longer than max_length"}
