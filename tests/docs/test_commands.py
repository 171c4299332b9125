"""Every command that README and the documentation show is run, with tiny models and data in place of the real ones.

A block under ``<!-- not run here: REASON -->`` is only checked: program, options, files and config keys exist. Commands
within a sentence are checked too.
"""

import re
import shutil

import pytest

from entrodrop_tune.cli.main import app
from tests.docs.markdown import PAGES, SHELL, blocks, inline_commands
from tests.docs.static_check import NotValid, check_command, check_shell
from tests.docs.world import Shell, make_world

TUTORIAL = "docs/tutorial.md"
AFTER_TUTORIAL = {"docs/how-to/evaluate.md", "docs/evaluation.md", "docs/analysis.md"}
"""Pages whose commands start from what the tutorial leaves behind."""

SHELL_BLOCKS = [block for page in PAGES for block in blocks(page) if block.language in SHELL]
RUN = sorted({block.page for block in SHELL_BLOCKS if block.not_run is None})


@pytest.mark.slow
def test_commands_run(tmp_path):
    """One test for all pages, so that parallel workers do not each import torch and follow the tutorial."""
    shell, world = Shell(tmp_path / "home"), make_world(tmp_path / "world")
    failures, tutorial = [], tmp_path / "tutorial"
    try:
        for page in sorted(RUN, key=lambda page: page != TUTORIAL):
            folder = tutorial if page == TUTORIAL else tmp_path / page.replace("/", "-")
            shutil.copytree(tutorial if page in AFTER_TUTORIAL else world, folder, symlinks=True)
            failures += run_page(page, shell, folder)
    finally:
        shell.close()
    assert not failures, "\n\n".join(failures)
    assert (tutorial / "runs" / "report" / "report.html").is_file()


def run_page(page, shell, folder):
    """Run a page's blocks in order; returns what failed, by line."""
    for block in blocks(page):
        if block.language in SHELL and block.not_run is None:
            try:
                shell.run(block.text, folder)
            except AssertionError as error:
                return [f"{block.place}: {error}"]
    return []


@pytest.mark.parametrize(
    "block", [block for block in SHELL_BLOCKS if block.not_run is not None], ids=lambda block: block.place
)
def test_commands_that_are_not_run_would_start(block):
    check_shell(block.text)


@pytest.mark.parametrize("page", [page for page in PAGES if inline_commands(page)])
def test_commands_within_a_sentence_exist(page):
    for command in inline_commands(page):
        check_command(command)


def test_examples_in_help_would_start():
    """They are on the site's page of commands too."""
    for info in app.registered_commands:
        shown = f"{info.callback.__doc__}\n{info.epilog or ''}"
        examples = re.findall(r"^\s*`?((?:entrodrop|tune) [^`\n]+)", shown, re.MULTILINE)
        assert examples, info.callback.__name__
        for example in examples:
            check_command(example)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    """A command in a block of no language would escape the tests above."""
    for block in blocks(page):
        first = block.text.split(maxsplit=1)[0] if block.text.strip() else ""
        assert block.language or first not in ("entrodrop", "tune", "python", "make", "pip", "$"), block.place


@pytest.mark.parametrize(
    "command",
    [
        "entrodrop evaluate models/smollm2",
        "entrodrop eval models/smollm2 --suit quick",
        "entrodrop check --config smollm2/135m_lora epoch=3",
        "entrodrop run lora_finetune --config smollm2/136m_lora",
        "tune run entrodrop_tune/recipes/lora --config my.yaml",
        "tune run --nproc 2 entrodrop_tune/recipes/full_finetune --config my.yaml entrodrop.drop_rates=1",
        "python examples/plain.py",
        "python -m tests.faults.killer --json out.json",
        "python benchmarks/step.py --round 5",
        "make tests",
        "lm_eval --tasks entrodrop_maths",
        "pip install '.[everything]'",
        "curl example.org",
    ],
)
def test_a_wrong_command_is_found(command):
    with pytest.raises(NotValid):
        check_command(command)
