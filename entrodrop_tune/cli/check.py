"""``entrodrop check``: a dry run."""

import json
from typing import Annotated, Any

import typer


def check(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")] = None,
    config: Annotated[str, typer.Option("--config", help="Config file, or a short name from `entrodrop ls`.")] = ...,  # type: ignore[assignment]
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a config without training: every key, the data, memory, steps and time, and what would be masked.

    **Examples**

        entrodrop check --config my.yaml

        entrodrop check --config smollm2/135m_lora data.train=my.jsonl epochs=5
    """
    from entrodrop_tune.cli.catalog import configs, find
    from entrodrop_tune.training.launch import load_config
    from entrodrop_tune.training.preflight import preflight

    plan = preflight(load_config(find(config, configs(), "config"), overrides or []))
    if as_json:
        print(json.dumps(plan, indent=2))
    else:
        _print(plan)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _print(plan: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    data, steps, memory = plan["data"], plan["steps"], plan["memory_bytes"]
    summary = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in (
        ("training", f"{data['train_samples']} samples, {data['train_target_tokens']:,} target tokens an epoch"),
        ("validation", f"{data['validation_samples']} samples, {data['validation_target_tokens']:,} target tokens"),
        ("parameters", f"{plan['parameters']['total']:,}, of which {plan['parameters']['trainable']:,} are trained"),
        ("steps", f"{steps['total']} ({steps['per_epoch']} an epoch, {steps['sequences_per_step']} sequences each)"),
        ("time", f"about {plan['seconds']['total'] / 60:.1f} minutes ({plan['seconds']['per_step']:.1f} s a step)"),
        ("memory", ", ".join(f"{name.removesuffix('_estimate')} {_gib(size)}" for name, size in memory.items())),
    ):
        summary.add_row(name, value)
    console.print(summary)
    for finding in data["findings"]:
        console.print(f"note: {finding}", markup=False)
    curriculum = Table(title="Curriculum", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in plan["curriculum"][0]:
        curriculum.add_column(heading.replace("_", " "), justify="right")
    for row in plan["curriculum"]:
        curriculum.add_row(*(f"{value:g}" for value in row.values()))
    console.print(curriculum)
    for sample in plan["preview"]:
        text = Text()
        for token in sample["tokens"]:
            text.append(token["text"], style="strike red" if token["weight"] == 0 else "")
        threshold = "none yet" if sample["threshold"] is None else f"{sample['threshold']:.3f} nats"
        console.rule(f"epoch {sample['epoch']}: threshold {threshold}, drop rate {sample['drop_rate']:g}", align="left")
        console.print(text)
