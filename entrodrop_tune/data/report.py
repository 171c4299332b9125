"""What was read and what was left out: nothing is dropped without a count."""

from dataclasses import asdict, dataclass, field
from typing import Any

_WORDS = {"malformed": "are malformed", "empty": "are empty", "too_long": "are longer than max_length"}


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

    def findings(self) -> list[str]:
        """A line for each kind of row that was not taken as it is."""
        return [
            f"{getattr(self, kind)} of {self.rows} rows of {self.path} {words}; the first: {self.first[kind]}"
            for kind, words in _WORDS.items()
            if getattr(self, kind)
        ]


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
        """As plain data, for run.json; ``findings`` are the problems in words."""
        return {**asdict(self), "findings": self.findings()}

    def findings(self) -> list[str]:
        """What a user should know of: rows not taken as they are, repeats, leaks. One line each."""
        out = [line for source in (*self.train, *self.validation, *self.replay) for line in source.findings()]
        if self.leaks:
            out.append(f"{self.leaks} of {self.validation_samples} validation samples are also in the training data")
        if self.duplicates:
            out.append(f"{self.duplicates} of {self.train_samples} training samples are exact repeats")
        return out

    def lines(self) -> list[str]:
        """The findings and a summary, for people."""
        summary = (
            f"{self.train_samples} training samples ({self.train_tokens} tokens, {self.train_target_tokens} of them "
            f"learned), {self.validation_samples} for validation"
        )
        if self.replay_samples:
            summary += f", {self.replay_samples} for replay"
        return [*self.findings(), summary]
