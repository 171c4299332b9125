"""``entrodrop``: one small file a command; this one lists them and turns a ``UserError`` into exit code 2.

Command modules import torch, transformers and lm-eval inside their function, so that ``--help`` answers at once.
"""

import logging
import sys
from typing import Annotated

import typer

import entrodrop_tune
from entrodrop_tune.cli.check import check
from entrodrop_tune.cli.compare import EXAMPLES as COMPARE_EXAMPLES
from entrodrop_tune.cli.compare import compare
from entrodrop_tune.cli.cp import cp
from entrodrop_tune.cli.curriculum import curriculum
from entrodrop_tune.cli.entropy import entropy
from entrodrop_tune.cli.eval import EXAMPLES as EVAL_EXAMPLES
from entrodrop_tune.cli.eval import evaluate_model
from entrodrop_tune.cli.ls import ls
from entrodrop_tune.cli.prepare import prepare
from entrodrop_tune.cli.report import report
from entrodrop_tune.cli.run import run
from entrodrop_tune.cli.sweep import sweep
from entrodrop_tune.errors import UserError
from entrodrop_tune.versions import require_supported_versions

app = typer.Typer(
    name="entrodrop",
    help="Everything around `tune run`: prepare models and data, check configs, evaluate, compare and report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(value: bool) -> None:
    if value:
        print(f"entrodrop-tune {entrodrop_tune.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    require_supported_versions()  # before a command imports what may not import


# In the order of a user's work.
app.command()(prepare)
app.command()(ls)
app.command()(cp)
app.command()(curriculum)
app.command()(check)
app.command(context_settings={"ignore_unknown_options": True})(run)
app.command("eval", epilog=EVAL_EXAMPLES)(evaluate_model)
app.command(epilog=COMPARE_EXAMPLES)(compare)
app.command()(entropy)
app.command()(sweep)
app.command()(report)


def main() -> None:
    # On import torchao notes that its C++ kernels are for another torch; nothing here uses them.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
