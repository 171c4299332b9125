"""``entrodrop run``: ``tune run`` with our recipes and configs by short name."""

import sys
from typing import Annotated

import typer

from entrodrop_tune.cli.catalog import configs, find, recipes
from entrodrop_tune.errors import UserError, did_you_mean


def run(
    arguments: Annotated[
        list[str], typer.Argument(help="[torchrun options] RECIPE --config CONFIG [key=value ...]", metavar="ARGS")
    ],
) -> None:
    """Run a recipe: the same as `tune run entrodrop_tune/recipes/RECIPE`, with short names.

    **Examples**

        entrodrop run lora_finetune --config smollm2/135m_lora data.train=my.jsonl output_dir=runs/first

        entrodrop run --nproc_per_node 2 full_finetune --config my.yaml
    """
    sys.argv = ["tune", "run", *_expand(arguments)]
    from torchtune._cli.tune import main

    main()


def _expand(arguments: list[str]) -> list[str]:
    """Replace the recipe's and the config's short name; everything else is passed on."""
    if "--config" not in arguments[:-1]:
        raise UserError(
            "--config FILE is required, for example: entrodrop run lora_finetune --config smollm2/135m_lora"
        )
    at = arguments.index("--config") + 1
    shipped = recipes()
    recipe = next((i for i, argument in enumerate(arguments[: at - 1]) if argument in shipped), None)
    if recipe is None:
        raise UserError(
            f'"{arguments[max(at - 2, 0)]}" is not a recipe.{did_you_mean(arguments[max(at - 2, 0)], shipped)}'
        )
    expanded = list(arguments)
    expanded[recipe] = f"entrodrop_tune/recipes/{arguments[recipe]}"
    expanded[at] = str(find(arguments[at], configs(), "config"))
    return expanded
