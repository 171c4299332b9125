"""SIGKILL training runs and evaluations at random moments, resume them, and count what was lost.

    python -m tests.faults.kills --json benchmarks/results/sigkill.json

Each attempt is a process of its own, forked from a server that has imported torch once; it writes real files and is
killed without warning. Where the kill lands is drawn from a seeded generator.
"""

import argparse
import json
import os
import platform
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.processes import PROCESSES
from tests.tiny import tiny_dataset, tiny_model_dir
from tests.training.runs import ADAPTER, TINY, overrides

EVERY = 3
"""Optimizer steps between checkpoints: the most a kill may cost."""
SETTINGS = ["epochs=6", f"checkpoint.every_n_steps={EVERY}", "entrodrop.drop_rate=0.7", "optimizer.lr=0.01"]
RECIPES = {
    "full": ("full_finetune", ["entrodrop.site=both", "model.hidden_dropout=0.1"]),
    "lora": ("lora_finetune", [*ADAPTER, "adapter.dropout=0.2", "entrodrop.site=loss", "dtype=bf16-mixed"]),
}
TASKS = "entrodrop_piqa,entrodrop_gsm8k_nll,entrodrop_mmlu,entrodrop_hellaswag,entrodrop_gsm8k_chat"


@dataclass
class Kill:
    """One kill.

    Attributes:
        what: ``full``, ``lora`` or ``evaluation``.
        moment: ``writing`` a checkpoint, or ``any``.
        done: steps in the journal (evaluation: tasks in the cache) when it came.
        lost: steps that are done again; None for an evaluation.
    """

    what: str
    moment: str
    done: int
    lost: int | None


def train(recipe: str, arguments: list[str], ready: Any) -> None:
    from entrodrop_tune.training.launch import load_config, run_training

    ready.set()
    run_training(recipe, load_config(TINY, [*arguments, "resume=true"]))


def evaluate(model: Path, output: Path, cache: Path, ready: Any) -> None:
    from entrodrop_tune.evaluation.cache import TaskCache
    from entrodrop_tune.evaluation.harness import Settings
    from entrodrop_tune.evaluation.models import resolve_model
    from entrodrop_tune.evaluation.results import save_results
    from entrodrop_tune.evaluation.runner import evaluate
    from entrodrop_tune.evaluation.suites import suite_tasks

    ready.set()
    settings = Settings(dtype="fp32", device="cpu", batch_size="2")
    results = evaluate(resolve_model(model), TASKS, suite_tasks(TASKS, 4), settings, TaskCache(cache))
    assert results is not None
    save_results(results, output)


def to_the_end(target: Callable, *arguments: Any) -> float:
    """Run ``target`` in a process; returns its seconds after importing."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=target, args=(*arguments, ready))
    process.start()
    ready.wait()
    started = time.perf_counter()
    process.join()
    assert process.exitcode == 0, f"{target.__name__} ended with {process.exitcode}"
    return time.perf_counter() - started


def killed(target: Callable, *arguments: Any, delay: float, when: Callable[[], bool] = lambda: True) -> bool:
    """Run ``target`` in a process and SIGKILL it ``delay`` seconds after ``when`` first holds; False if it was done."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=target, args=(*arguments, ready))
    process.start()
    ready.wait()
    while not when() and process.is_alive():
        time.sleep(0.0002)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def newest_step(run: Path) -> int:
    """The step of the newest whole checkpoint, 0 if there is none."""
    from entrodrop_tune.training.checkpoint import CheckpointStore

    return CheckpointStore(run).newest_good(warn=print) or 0


def journal_steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def writing(run: Path, after: int) -> Callable[[], bool]:
    """Whether a checkpoint past step ``after`` is being written right now."""
    return lambda: journal_steps(run) > after and any((run / "checkpoints").glob(".step_*.tmp"))


def kill_training(case: str, root: Path, model: Path, data: Path, kills: int, seed: int) -> list[Kill]:
    """A run killed again and again, every other time while it writes a checkpoint; once it ends, another is begun.

    ``root/reference`` is the run that nothing happened to; ``root/killed-N`` the others, each resumed to its end.
    """
    recipe, more = RECIPES[case]

    def settings(run: Path) -> list[str]:
        return overrides(model, data, run, *SETTINGS, *more)

    seconds = to_the_end(train, recipe, settings(root / "reference"))
    run, draw, found = root / "killed-0", random.Random(seed), []
    while len(found) < kills:
        save = len(found) % 2 == 1
        # A checkpoint takes about 20 ms here, so that some of these fall just after its rename.
        delay = draw.random() * (0.02 if save else 0.35 * seconds)
        when = writing(run, newest_step(run)) if save else lambda: True
        if killed(train, recipe, settings(run), delay=delay, when=when):
            done = journal_steps(run)
            found.append(Kill(case, "writing" if save else "any", done, done - newest_step(run)))
        else:
            run = root / f"killed-{len(found)}"
    to_the_end(train, recipe, settings(run))
    return found


def kill_evaluation(root: Path, model: Path, kills: int, seed: int) -> list[Kill]:
    """The same for an evaluation, which goes on from its cache."""
    seconds = to_the_end(evaluate, model, root / "reference", root / "reference-cache")
    name, draw, found = "killed-0", random.Random(seed), []
    while len(found) < kills:
        cache = root / f"cache-{name}"
        if killed(evaluate, model, root / name, cache, delay=draw.random() * 0.7 * seconds):
            found.append(Kill("evaluation", "any", len(list(cache.glob("*/*.json"))), None))
        else:
            name = f"killed-{len(found)}"
    to_the_end(evaluate, model, root / name, root / f"cache-{name}")
    return found


def steps_lost(kills: list[Kill]) -> list[int]:
    return [kill.lost for kill in kills if kill.lost is not None]


def figures(kills: list[Kill]) -> dict[str, Any]:
    return {
        "kills": len(kills),
        "while_writing_a_checkpoint": sum(kill.moment == "writing" for kill in kills),
        "steps_between_checkpoints": EVERY,
        "most_steps_lost": max(steps_lost(kills)),
        "steps_lost": sum(steps_lost(kills)),
        "each": [asdict(kill) for kill in kills],
    }


def prepared(root: Path) -> tuple[Path, Path]:
    """A tiny model and data to train it on, in ``root``."""
    tiny_dataset(root / "train.jsonl", 12)
    tiny_dataset(root / "validation.jsonl", 4, offset=100)
    return tiny_model_dir(root / "model", initializer_range=0.4, max_position_embeddings=8192), root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from tests.faults.test_sigkill import kill_everything

        content = {
            **figures(kill_everything(Path(folder), arguments.seed)),
            "seed": arguments.seed,
            "python": platform.python_version(),
            "torch": version("torch"),
            "cpus": os.cpu_count(),
        }
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
