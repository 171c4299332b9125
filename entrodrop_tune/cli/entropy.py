"""``entrodrop entropy``: which tokens of a data set are easy for a model, and what a threshold would drop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from entrodrop_tune.errors import UserError

if TYPE_CHECKING:
    from entrodrop_tune.analysis.entropy_profile import Setting
    from entrodrop_tune.training.config import RunConfig


def entropy(
    model: Annotated[Path, typer.Argument(help="Model directory, PEFT adapter directory, or a run's folder.")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Data files, or folders with train.jsonl.")],
    quantile: Annotated[
        float | None, typer.Option(min=0, max=1, help="Threshold as a quantile.  [default: 0.5]")
    ] = None,
    nats: Annotated[float | None, typer.Option(min=0, help="Threshold in nats, instead of a quantile.")] = None,
    drop_rate: Annotated[float | None, typer.Option(min=0, max=1, help="Drop rate.  [default: 0.8]")] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Training config, or a short name from `entrodrop ls`: columns, template and the strongest setting of"
            " its curriculum."
        ),
    ] = None,
    gradient: Annotated[
        Literal["none", "head", "model"],
        typer.Option(help="Gradient share: of the output layer (cheap), or of all trainable weights too (slow)."),
    ] = "head",
    samples: Annotated[int, typer.Option(min=1, help="Samples of each data set.")] = 64,
    gradient_samples: Annotated[int, typer.Option(min=1, help="Samples for the gradient share.")] = 16,
    epoch: Annotated[int, typer.Option(min=0, help="Epoch whose coins decide what is struck out.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the coins.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Weights and compute.")] = "fp32",
    output: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("entropy"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which tokens of a data set are easy for a model, what a threshold would drop, where the gradient comes from.

    Writes entropy.html (tokens coloured and struck out; works from the keyboard and without network), entropy.json and
    entropy.png. Given a run's folder, looks at its base model and at every checkpoint it kept.

    Examples:

        entrodrop entropy models/smollm2 data/gsm8k

        entrodrop entropy models/smollm2 data/gsm8k data/mbpp data/pubmedqa --quantile 0.6 --drop-rate 0.5

        entrodrop entropy runs/gsm8k data/gsm8k --gradient model --output runs/gsm8k/entropy
    """
    import json

    from entrodrop_tune.analysis.entropy_command import analyse
    from entrodrop_tune.cli.catalog import configs, find
    from entrodrop_tune.files import require_folder
    from entrodrop_tune.training.launch import load_config

    if quantile is not None and nats is not None:
        raise UserError("give the threshold as --quantile or as --nats, not both.")
    require_folder(output)
    # What this command is told itself may be left open in the config.
    known = [f"model.path={model}", f"data.train={data[0]}", f"output_dir={output}"]
    training = load_config(find(config, configs(), "config"), known) if config else None
    setting = _setting(quantile, nats, drop_rate, seed, epoch, training)
    profile = analyse(
        model,
        data,
        setting,
        data_config=training.data if training else None,
        samples=samples,
        gradient=gradient,
        gradient_samples=gradient_samples,
        device=device,
        dtype=dtype,
        output=output,
    )
    if as_json:
        print(json.dumps(profile))
    else:
        _print(profile, output)


def _setting(
    quantile: float | None,
    nats: float | None,
    drop_rate: float | None,
    seed: int,
    epoch: int,
    training: "RunConfig | None",
) -> "Setting":
    """The options where given, else the config's curriculum where it drops most, else quantile 0.5 at rate 0.8."""
    from entrodrop_tune.analysis.entropy_profile import Setting

    if training is not None:
        curriculum = training.entrodrop.curriculum()
        strongest = max((curriculum.at(i / 100) for i in range(101)), key=curriculum.strength)
        drop_rate = strongest.drop_rate if drop_rate is None else drop_rate
        if quantile is None and nats is None:
            quantile, nats = (
                (strongest.threshold, None) if curriculum.unit == "quantile" else (None, strongest.threshold)
            )
    if quantile is None and nats is None:
        quantile = 0.5
    return Setting(quantile, nats, 0.8 if drop_rate is None else drop_rate, seed, epoch)


def _print(profile: dict, output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from entrodrop_tune.analysis.pages import number, percent

    console = Console()
    for domain in profile["domains"]:
        rate = domain["setting"]["drop_rate"]
        title = f"{domain['name']}: what a threshold would drop at rate {rate:.2f}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("quantile", "nats", "dropped", "NLL below", "accuracy below"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("mostly")
        for row in domain["thresholds"]:
            table.add_row(
                number(row["quantile"], 2),
                number(row["nats"]),
                percent(row["expected_dropped"], 1),
                percent(row["nll_share_below"], 1),
                percent(row["accuracy_below"], 1),
                ", ".join(row["mostly"][:2]),
            )
        console.print(table)
    for sentence in profile["verdict"]:
        console.print(sentence, markup=False, highlight=False)
    for name in ("entropy.html", "entropy.json", "entropy.png"):
        console.print(str(output / name), markup=False, highlight=False)
