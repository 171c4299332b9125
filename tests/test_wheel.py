"""The wheel carries recipes, configs, eval tasks and samples, and works from any folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new venv with the wheel alone; its dependencies come from this interpreter's site-packages."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib")
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # After the venv's own packages, so that the wheel and not a source checkout answers `import entrodrop_tune`.
    (Path(site) / "dependencies.pth").write_text(purelib + "\n")
    return python


def run(python, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([python, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.slow
def test_the_wheel_lists_its_recipes_and_configs_from_another_folder(installed, tmp_path):
    done = run(installed, "-m", "entrodrop_tune.cli.main", "ls", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {"full_finetune", "lora_finetune"} <= {row["name"] for row in rows["recipes"]}
    assert {"demo", "tiny"} <= {row["name"] for row in rows["configs"]}
    prefix = str(installed.parent.parent)
    assert all(row["path"].startswith(prefix) and Path(row["path"]).is_file() for row in rows["configs"])


@pytest.mark.slow
def test_tune_finds_the_installed_recipe(installed, tmp_path):
    recipe = "entrodrop_tune/recipes/full_finetune"
    done = run(installed, "-m", "torchtune._cli.tune", "run", recipe, "--config", "nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: config file nothing.yaml does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_shipped_file_of_the_checkout_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("recipes", "configs", "eval_tasks"):
        tracked = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        missing = [path for path in tracked if f"entrodrop_tune/{path}" not in names]
        assert tracked and not missing, (
            f"{folder}: {missing[:5]} not in the wheel (is entrodrop_tune/{folder} a symbolic link?)"
        )
