"""``entrodrop curriculum``: threshold and drop rate over a run, as a table or a plot, before anything is trained."""

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrodrop_tune.errors import UserError
from entrodrop_tune.files import require_folder

if TYPE_CHECKING:
    from entrodrop_tune.method import Curriculum

STEP_ROWS = 11  # rows of the table when the curriculum moves every step


def curriculum(
    source: Annotated[str, typer.Argument(help="A preset (ease, ramp, constant) or a training config (.yaml).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change: of the curriculum, or of the config."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the run.  [default: the config's, or 8]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot (.png, .svg or .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which threshold and drop rate a curriculum gives as a run goes on.

    Examples:

        entrodrop curriculum ramp

        entrodrop curriculum ease epochs=20 drop_rate.start=0.6 --plot ease.png

        entrodrop curriculum configs/demo.yaml entrodrop.per=step --json
    """
    import json

    chosen, length = _read(source, overrides or [])
    rows = _rows(chosen, epochs or length)
    if plot is not None:
        _plot(chosen, rows, plot)
    if as_json:
        print(json.dumps({"unit": chosen.unit, "per": chosen.per, "rows": rows}))
    else:
        _print(chosen, rows)
        if plot is not None:
            print(f"Plot: {plot}")


def _read(source: str, overrides: list[str]) -> tuple["Curriculum", int]:
    """The curriculum and its number of epochs."""
    from entrodrop_tune.method import PRESETS, Curriculum

    if source in PRESETS:
        settings, epochs = _preset_overrides(overrides)
        try:
            return Curriculum.from_config({"preset": source, **settings}), epochs
        except ValueError as error:
            raise UserError(f"curriculum {source}: {error}.") from None
    if not source.endswith((".yaml", ".yml")):
        from entrodrop_tune.errors import did_you_mean

        raise UserError(f'"{source}" is neither a preset nor a .yaml config.{did_you_mean(source, PRESETS)}')
    from entrodrop_tune.training.launch import load_config

    config = load_config(source, overrides)
    return config.entrodrop.curriculum(), config.epochs


def _preset_overrides(overrides: list[str]) -> tuple[dict, int]:
    from omegaconf import OmegaConf

    from entrodrop_tune.config import overridden

    settings: Any = OmegaConf.to_container(reduce(overridden, overrides, OmegaConf.create()))
    epochs = settings.pop("epochs", 8)
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"epochs = {epochs!r}: must be a whole number of 1 or more.")
    return settings, epochs


def _rows(chosen: "Curriculum", epochs: int) -> list[dict[str, float]]:
    from entrodrop_tune.method import CurriculumPoint

    def row(label: float, point: CurriculumPoint) -> dict[str, float]:
        values = {"epoch": label, "threshold": point.threshold, "drop_rate": point.drop_rate}
        if chosen.unit == "quantile":
            values["expected_dropped"] = point.threshold * point.drop_rate
        return values

    if chosen.per == "epoch":
        places = [chosen.progress(epoch=e, epochs=epochs, step=0, steps=1) for e in range(epochs)]
        return [row(e + 1, chosen.at(place)) for e, place in enumerate(places)]
    return [row(epochs * i / (STEP_ROWS - 1), chosen.at(i / (STEP_ROWS - 1))) for i in range(STEP_ROWS)]


def _print(chosen: "Curriculum", rows: list[dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    expected = chosen.unit == "quantile"
    names = ["epoch" if chosen.per == "epoch" else "epochs done", f"threshold ({chosen.unit})", "drop rate"]
    for name in names + ["tokens dropped"] * expected:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row['epoch']:g}", f"{row['threshold']:.3f}", f"{row['drop_rate']:.3f}"]
        table.add_row(*cells, *([f"{row['expected_dropped']:.1%}"] if expected else []))
    Console().print(table)


def _plot(chosen: "Curriculum", rows: list[dict[str, float]], path: Path) -> None:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f'cannot plot into "{path}": the name must end in .png, .svg or .pdf.')
    require_folder(path.parent, "--plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    style = "steps-post" if chosen.per == "epoch" else "default"
    places = [row["epoch"] for row in rows]
    axes.plot(places, [row["drop_rate"] for row in rows], drawstyle=style, marker=".", label="drop rate")
    axes.plot(
        places, [row["threshold"] for row in rows], drawstyle=style, marker=".", label=f"threshold ({chosen.unit})"
    )
    axes.set_xlabel("epoch")
    axes.set_ylim(bottom=0)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
