"""Which runs are one setting with several seeds, and what to call that setting."""

from collections.abc import Sequence
from typing import Any

from entrodrop_tune.analysis.runs import Run, flatten, run_names

SEED_KEYS = ("seed", "output_dir", "resume")


def group_names(runs: Sequence[Run]) -> list[str]:
    """A name a run, the same for runs that differ in nothing but their seed.

    Where every run is a group of its own, the folder's name; else what sets the group apart
    (``drop_rate.end=0.8, select=entropy``).
    """
    settings = [comparable(run) for run in runs]
    keys = [repr(sorted(one.items(), key=lambda item: item[0])) for one in settings]
    if len(set(keys)) == len(runs):
        return run_names(runs)
    if len(set(keys)) == 1:
        return ["all"] * len(runs)
    return [label(one) for one in distinguishing(settings)]


def comparable(run: Run) -> dict[str, Any]:
    """A run's recipe and config by dotted key, without its seed and where it writes."""
    flat = {"recipe": run.recipe, **flatten(run.config)}
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in SEED_KEYS}


def distinguishing(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the keys that are not the same in all; a key that is not set counts as None."""
    keys = dict.fromkeys(key for one in settings for key in one)
    varying = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    return [{key: one.get(key) for key in varying} for one in settings]


def config_difference(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted keys whose value is not the same in all runs, each with a value a run (None where it is not set).

    The recipe counts as a key, and so does the seed; where a run writes its files does not.
    """
    flat = [{"recipe": run.recipe, **flatten(run.config)} for run in runs]
    settings = [{key: value for key, value in one.items() if key.rpartition(".")[2] != "output_dir"} for one in flat]
    apart = distinguishing(settings)
    return {key: [one[key] for one in apart] for key in apart[0]}


def label(settings: dict[str, Any]) -> str:
    """``{"entrodrop.select": "random", "epochs": 3}`` -> ``select=random, epochs=3``, shortened where unambiguous."""
    short = [key.rpartition(".")[2] for key in settings]
    names = [
        name if short.count(name) == 1 else ".".join(key.split(".")[-2:])
        for key, name in zip(settings, short, strict=True)
    ]
    pairs = zip(names, settings.values(), strict=True)
    return ", ".join(f"{name}={'unset' if value is None else value}" for name, value in pairs)
