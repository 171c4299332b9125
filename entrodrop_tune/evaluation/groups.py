"""Mean change of a group of tasks, on one scale, with an interval that knows which tasks share their rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrodrop_tune.evaluation.results import EvalResults
from entrodrop_tune.evaluation.statistics import Interval

if TYPE_CHECKING:
    from entrodrop_tune.evaluation.comparison import Row


@dataclass(frozen=True)
class GroupSummary:
    """Mean delta of a group's primary metrics, each turned so that positive is better and put on one scale.

    ``delta`` is in percentage points for accuracies and in per cent of the base's value for bits per byte, so
    tasks of the two kinds are summarised apart (``kind``: ``accuracy`` or ``likelihood``).
    """

    group: str
    kind: str
    tasks: tuple[str, ...]
    delta: float
    ci_low: float
    ci_high: float


def group_summaries(rows: Sequence["Row"], base: EvalResults) -> list[GroupSummary]:
    """A summary for each group and kind among the primary ``rows``; ``base`` tells which tasks share rows."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.primary:
            kind = "likelihood" if row.metric == "bits_per_byte" else "accuracy"
            kinds.setdefault((row.group, kind), []).append(row)
    return [_summary(group, kind, members, base) for (group, kind), members in sorted(kinds.items())]


def _summary(group: str, kind: str, rows: Sequence["Row"], base: EvalResults) -> GroupSummary:
    """Unweighted mean over tasks. Half-widths add in squares between independent tasks, and fully between tasks over
    the same rows (GSM8K in two prompts), whose errors may go together."""
    below, above, delta = [], [], 0.0
    for family in _families(rows, base):
        scaled = [_scaled(row) for row in family]
        delta += sum(interval.value for interval in scaled) / len(rows)
        below.append(sum(interval.value - interval.low for interval in scaled) / len(rows))
        above.append(sum(interval.high - interval.value for interval in scaled) / len(rows))
    tasks = tuple(row.task for row in rows)
    return GroupSummary(group, kind, tasks, delta, delta - math.hypot(*below), delta + math.hypot(*above))


def _families(rows: Sequence["Row"], base: EvalResults) -> list[list["Row"]]:
    """Rows in families: tasks that share an item, directly or through others, are in one."""
    families: list[tuple[set[str], list[Row]]] = []
    for row in rows:
        items, members = {item.doc_hash for item in base.items_of(row.task)}, [row]
        for family in [family for family in families if family[0] & items]:
            families.remove(family)
            items |= family[0]
            members = family[1] + members
        families.append((items, members))
    return [members for _, members in families]


def _scaled(row: "Row") -> Interval:
    factor = 100.0 if row.metric != "bits_per_byte" else 100.0 / row.base
    if row.higher_is_better:
        return Interval(row.delta * factor, row.ci_low * factor, row.ci_high * factor)
    return Interval(-row.delta * factor, -row.ci_high * factor, -row.ci_low * factor)
