"""Check a command without running it: program, subcommand, options, files and config keys exist."""

import argparse
import contextlib
import io
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable

import typer

from entrodrop_tune.cli.catalog import configs, recipes
from entrodrop_tune.cli.main import app
from entrodrop_tune.config import load_mapping, validate
from tests.docs.markdown import ROOT

PLACEHOLDER = re.compile(r"^(?:\.\.\.|\[.*|[A-Z_]{2,}(?:\.\.\.)?|\$.*)$")  # RUN, FILE, $FIRST_NODE, ...
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")


class NotValid(Exception):
    """A command that would not work as written."""


def check_shell(text: str) -> None:
    """Check every command in shell text, within quotes too (``srun bash -c '...'``).

    Raises:
        NotValid: naming the command and what is wrong with it.
    """
    text = re.sub(r"\$\([^)]*\)", "$SUBSTITUTED", text.replace("\\\n", " "))
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            check_command(line)


def check_command(command: str) -> None:
    words = shlex.split(command, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    if program not in PROGRAMS:
        raise NotValid(f"{command!r}: no check for {program}")
    try:
        PROGRAMS[program](arguments)
    except NotValid as error:
        raise NotValid(f"{command!r}: {error}") from None


def _entrodrop(arguments: list[str]) -> None:
    if not arguments or PLACEHOLDER.match(arguments[0]) or arguments[0] == "--version":
        return
    group = typer.main.get_command(app)
    if arguments[0] not in group.commands:
        raise NotValid(f"no command {arguments[0]}")
    command, rest = group.commands[arguments[0]], arguments[1:]
    if arguments[0] == "run":
        _tune_run(_long_names(rest))
        return
    known = {name for parameter in command.get_params(typer.Context(command)) for name in parameter.opts}
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise NotValid(f"{arguments[0]} has no option {word}")
    if "--config" in rest[:-1]:
        grids = [following for word, following in itertools.pairwise(rest) if word == "--grid"]
        plain = _overrides([word for word in rest if word not in grids])
        for grid in grids or [""]:
            key, _, values = grid.partition("=")
            for value in values.split(","):
                _config(rest[rest.index("--config") + 1], [*plain, *([f"{key}={value}"] if key else [])])


def _long_names(arguments: list[str]) -> list[str]:
    return [f"entrodrop_tune/recipes/{word}" if word in recipes() else word for word in arguments]


def _tune(arguments: list[str]) -> None:
    if arguments[:1] != ["run"]:
        raise NotValid("only `tune run` is shown")
    _tune_run(arguments[1:])


def _tune_run(arguments: list[str]) -> None:
    if not arguments:
        return
    from torchtune._cli.tune import TuneCLIParser

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: argparse.Namespace = TuneCLIParser()._parser.parse_args(["run", *arguments])
    except SystemExit:
        raise NotValid(errors.getvalue().strip().splitlines()[-1]) from None
    if not (ROOT / f"{parsed.recipe}.py").is_file() and not parsed.recipe.endswith("/RECIPE"):
        raise NotValid(f"no recipe {parsed.recipe}")
    given = parsed.recipe_args
    if "--config" in given[:-1]:
        _config(given[given.index("--config") + 1], _overrides(given))


def _overrides(words: list[str]) -> list[str]:
    return [word for word in words if re.match(r"^~?[a-z_]+(\.\w+)*=", word) or word.startswith("~")]


def _config(name: str, overrides: list[str]) -> None:
    """The config exists and its keys, with the overrides, are valid. One of the user's own stands for a shipped one."""
    from entrodrop_tune.training.config import RunConfig

    own = name in ("my.yaml", "FILE", "CONFIG")
    path = configs()["smollm2/135m_lora"] if own else configs().get(name, ROOT / name)
    if not path.is_file():
        raise NotValid(f"no config {name}")
    for key in ("model.path", "data.train", "output_dir"):  # those that tiny.yaml leaves open
        overrides = [f"{key}=given", *overrides]
    try:
        validate(RunConfig, load_mapping(path, overrides))
    except Exception as error:
        raise NotValid(str(error)) from None


def _python(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "pytest"]:
        gone = [word for word in arguments if word.endswith(".py") and not (ROOT / word).is_file()]
        if gone:
            raise NotValid(f"no file {gone[0]}")
        return
    if arguments[0] == "-m":
        arguments = [arguments[1].replace(".", "/") + ".py", *arguments[2:]]
    script = ROOT / arguments[0]
    if not script.is_file():
        raise NotValid(f"no file {arguments[0]}")
    missing = [word for word in arguments if word.startswith("--") and f'"{word}"' not in script.read_text()]
    if missing:
        raise NotValid(f"{arguments[0]} has no option {missing[0]}")


def _make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    missing = [word for word in arguments if "=" not in word and not re.search(rf"^{word}:", makefile, re.MULTILINE)]
    if missing:
        raise NotValid(f"no target {missing[0]}")


def _pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        if not set(name.split(",")) <= set(extras):
            raise NotValid(f"no extra {name}")


def _lm_eval(arguments: list[str]) -> None:
    if "--tasks" not in arguments:
        return
    known = "\n".join(path.read_text() for path in (ROOT / "eval_tasks").rglob("*.yaml"))
    for task in arguments[arguments.index("--tasks") + 1].split(","):
        if not re.search(rf"^(?:task|group): {task}$", known, re.MULTILINE):
            raise NotValid(f"no task {task}")


def _within_quotes(arguments: list[str]) -> None:
    check_shell(arguments[-1] if arguments[:2] == ["bash", "-c"] else shlex.join(arguments))


def _foreign(arguments: list[str]) -> None:
    """A program that is not ours: taken as it is."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "entrodrop": _entrodrop,
    "tune": _tune,
    "python": _python,
    "make": _make,
    "pip": _pip,
    "lm_eval": _lm_eval,
    "srun": _within_quotes,
    "hf": _foreign,
}
