"""How threshold and drop rate move with training: seven shapes, two presets, and refusals that name the key."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

SHAPES = ("constant", "linear", "cosine", "sigmoid", "exponential", "step", "table")
UNITS = ("quantile", "nats")

PRESETS: dict[str, dict[str, Any]] = {
    # Strong first, then easing.
    "ease": {
        "threshold": {"quantile": 0.5},
        "drop_rate": {"shape": "linear", "start": 0.8, "end": 0.0},
    },
    # Weak first, then stronger.
    "ramp": {
        "threshold": {"quantile": 0.5},
        "drop_rate": {"shape": "sigmoid", "start": 0.0, "end": 0.8},
    },
    "constant": {"threshold": {"quantile": 0.5}, "drop_rate": 0.5},
}


@dataclass(frozen=True)
class Schedule:
    """A value as a function of progress in [0, 1].

    Attributes:
        shape: one of :data:`SHAPES`.
        start, end: values at progress 0 and 1 (every shape but ``table`` meets them exactly; ``constant`` uses start).
        steepness: of ``sigmoid`` (slope at the middle) and ``exponential`` (how early the change happens).
        at: where ``step`` jumps from start to end.
        points: for ``table``, (progress, value) pairs, linear in between, flat outside.
    """

    shape: str = "constant"
    start: float = 0.0
    end: float | None = None
    steepness: float | None = None
    at: float | None = None
    points: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f'shape = "{self.shape}": choose from {", ".join(SHAPES)}')
        if self.shape == "table":
            _check_points(self.points)
        elif self.shape != "constant" and self.end is None:
            raise ValueError(f'end: is required for shape "{self.shape}"')
        needs = {"steepness": ("sigmoid", "exponential"), "at": ("step",), "points": ("table",)}
        for name, shapes in needs.items():
            if getattr(self, name) is not None and self.shape not in shapes:
                raise ValueError(f'{name}: belongs to shape {" or ".join(shapes)}, not "{self.shape}"')
        if self.steepness is not None and not 0 < self.steepness <= 100:
            raise ValueError(f"steepness = {self.steepness}: must be in (0, 100]")
        if self.at is not None and not 0 <= self.at <= 1:
            raise ValueError(f"at = {self.at}: must be in [0, 1]")

    def __call__(self, progress: float) -> float:
        """The value at ``progress``, clamped to [0, 1]."""
        x = min(max(progress, 0.0), 1.0)
        if self.shape == "constant":
            return self.start
        if self.shape == "table":
            return _interpolate(self.points or (), x)
        assert self.end is not None
        if x == 1.0:
            return self.end
        return self.start + (self.end - self.start) * self._fraction(x)

    def _fraction(self, x: float) -> float:
        """The part of the way from start to end: 0 at x = 0, 1 at x = 1."""
        if self.shape == "linear":
            return x
        if self.shape == "cosine":
            return (1 - math.cos(math.pi * x)) / 2
        if self.shape == "step":
            return 1.0 if x >= (0.5 if self.at is None else self.at) else 0.0
        if self.shape == "exponential":
            rate = self.steepness or 5.0
            return math.expm1(-rate * x) / math.expm1(-rate)
        # The logistic curve around the middle, stretched so that it meets both ends.
        rate = self.steepness or 10.0
        low, value = math.tanh(-rate / 4), math.tanh(rate * (x - 0.5) / 2)
        return (value - low) / (-2 * low)

    def values(self) -> tuple[float, ...]:
        """The extreme values, for range checks: every shape stays between them."""
        if self.shape == "table":
            return tuple(value for _, value in self.points or ())
        return (self.start,) if self.end is None or self.shape == "constant" else (self.start, self.end)

    @classmethod
    def from_config(cls, config: "float | Mapping[str, Any] | Schedule") -> "Schedule":
        """A number (constant) or a mapping of this class's fields; ``points`` may be lists.

        Raises:
            ValueError: starting with the name of the wrong key.
        """
        if isinstance(config, Schedule):
            return config
        if isinstance(config, bool) or not isinstance(config, int | float | Mapping):
            raise ValueError(
                f"= {config!r}: must be a number or a schedule such as {{shape: linear, start: 0, end: 1}}"
            )
        if not isinstance(config, Mapping):
            return cls(start=_number("", config))
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for name, value in config.items():
            if name not in names:
                raise ValueError(f"{name}: unknown key, choose from {', '.join(names)}")
            if value is None:
                continue
            if name == "points":
                value = _points(value)
            elif name != "shape":
                value = _number(name, value)
            values[name] = value
        if "start" not in values and values.get("shape") != "table":
            raise ValueError("start: is required")
        return cls(**values)

    def to_config(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class CurriculumPoint(NamedTuple):
    """What holds at one moment: ``threshold`` in the curriculum's unit, and the drop rate."""

    threshold: float
    drop_rate: float


@dataclass(frozen=True)
class Curriculum:
    """Threshold and drop rate over training.

    Attributes:
        threshold: tokens below it are candidates: an entropy in nats, or a quantile of the model's own entropies.
        drop_rate: probability with which a candidate is dropped.
        unit: of the threshold, ``"quantile"`` or ``"nats"``.
        per: whether values change once an epoch or every optimizer step.
    """

    threshold: Schedule
    drop_rate: Schedule
    unit: Literal["quantile", "nats"] = "quantile"
    per: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f'threshold: needs one of the keys {", ".join(UNITS)}, not "{self.unit}"')
        if self.per not in ("epoch", "step"):
            raise ValueError(f'per = "{self.per}": choose from epoch, step')
        _check_range("drop_rate", self.drop_rate, 1.0)
        _check_range(f"threshold.{self.unit}", self.threshold, 1.0 if self.unit == "quantile" else math.inf)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Curriculum":
        """Build from ``{"preset", "threshold": {"quantile" | "nats": schedule}, "drop_rate": schedule, "per"}``.

        ``preset`` (one of :data:`PRESETS`) gives what the other keys leave open, within a drop rate too
        (``{"end": 0.6}``); without it, both are required.

        Raises:
            ValueError: starting with the dotted name of the wrong key.
        """
        unknown = set(config) - {"preset", "threshold", "drop_rate", "per"}
        if unknown:
            raise ValueError(f"{min(unknown)}: unknown key, choose from preset, threshold, drop_rate, per")
        preset = config.get("preset")
        if preset is not None and preset not in PRESETS:
            raise ValueError(f'preset = "{preset}": choose from {", ".join(PRESETS)}')
        merged = {
            **PRESETS.get(preset or "", {}),
            **{key: value for key, value in config.items() if key != "preset" and value is not None},
        }
        given, usual = config.get("drop_rate"), PRESETS.get(preset or "", {}).get("drop_rate")
        if isinstance(given, Mapping) and isinstance(usual, Mapping):
            merged["drop_rate"] = {**usual, **given}
        for key in ("threshold", "drop_rate"):
            if key not in merged:
                raise ValueError(f"{key}: is required (or name a preset: {', '.join(PRESETS)})")
        threshold = merged["threshold"]
        given = {k: v for k, v in threshold.items() if v is not None} if isinstance(threshold, Mapping) else {}
        if len(given) != 1 or next(iter(given)) not in UNITS:
            raise ValueError(f"threshold = {threshold!r}: give exactly one of {{quantile: ...}} or {{nats: ...}}")
        unit, schedule = next(iter(given.items()))
        return cls(
            threshold=_schedule(f"threshold.{unit}", schedule),
            drop_rate=_schedule("drop_rate", merged["drop_rate"]),
            unit=unit,
            per=merged.get("per", "epoch"),
        )

    def at(self, progress: float) -> CurriculumPoint:
        """Values at ``progress`` in [0, 1] (see :meth:`progress`)."""
        return CurriculumPoint(self.threshold(progress), self.drop_rate(progress))

    def strength(self, point: CurriculumPoint) -> tuple[float, float]:
        """What orders points by how much they drop.

        That is the expected share of tokens for quantiles. How many tokens lie below a threshold in nats depends on
        the model, so there the drop rate decides, and the threshold between equal rates.
        """
        first = point.threshold if self.unit == "quantile" else 1.0
        return first * point.drop_rate, point.threshold

    def progress(self, *, epoch: int, epochs: int, step: int, steps: int) -> float:
        """Progress in [0, 1] for :meth:`at`: 0 in the first epoch (or step) and 1 in the last, counted from 0."""
        done, total = (epoch, epochs) if self.per == "epoch" else (step, steps)
        return done / (total - 1) if total > 1 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The curriculum as plain config: ``Curriculum.from_config(c.state_dict()) == c``."""
        return {
            "threshold": {self.unit: self.threshold.to_config()},
            "drop_rate": self.drop_rate.to_config(),
            "per": self.per,
        }


def _schedule(key: str, config: Any) -> Schedule:
    try:
        return Schedule.from_config(config)
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{key} {text}" if text.startswith("=") else f"{key}.{text}") from None


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} = {value!r}: must be a finite number".lstrip())
    return float(value)


def _points(value: Any) -> tuple[tuple[float, ...], ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"points = {value!r}: must be a list of [progress, value] pairs")
    if any(isinstance(point, str) or not isinstance(point, Sequence) for point in value):
        raise ValueError(f"points = {value!r}: must be a list of [progress, value] pairs")
    return tuple(tuple(_number("points", v) for v in point) for point in value)


def _check_range(key: str, schedule: Schedule, high: float) -> None:
    for value in schedule.values():
        if not 0.0 <= value <= high:
            limits = f"in [0, {high:g}]" if math.isfinite(high) else "0 or more"
            raise ValueError(f"{key} = {value:g}: must be {limits}")


def _check_points(points: tuple[tuple[float, float], ...] | None) -> None:
    if not points or any(len(point) != 2 for point in points):
        raise ValueError("points: must be [progress, value] pairs, at least one")
    places = [place for place, _ in points]
    if places != sorted(set(places)) or not 0 <= places[0] <= places[-1] <= 1:
        raise ValueError(f"points: progress must increase strictly within [0, 1], got {places}")


def _interpolate(points: tuple[tuple[float, float], ...], x: float) -> float:
    index = bisect.bisect_right([place for place, _ in points], x)
    if index == 0:
        return points[0][1]
    if index == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
