"""Whether the installed packages are those this one was written for.

pip keeps to the ranges in pyproject.toml only while it installs; a later ``pip install`` of something else may break
them, and torchtune then fails with an error that names neither package nor cure. The ranges are read from our own
metadata, so that pyproject.toml stays the one place they are written in.
"""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from entrodrop_tune.errors import UserError

DISTRIBUTION = "entrodrop-tune"


def require_supported_versions() -> None:
    """Compare what is installed with what this package asks for; imports none of it.

    Raises:
        UserError: naming each package that is missing or does not fit, and the pip command that mends it.
    """
    found = [problem for text in _requirements() if (problem := _problem(Requirement(text))) is not None]
    if found:
        complaints = "; ".join(complaint for complaint, _ in found)
        needed = " ".join(f'"{needs}"' for _, needs in found)
        raise UserError(f"{complaints}. Run: python -m pip install {needed}")


def _requirements() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a source tree that was never installed: nothing to compare with
        return []


def _problem(needs: Requirement) -> tuple[str, str] | None:
    """What is wrong with the installed version of ``needs``, and what to hand to pip; None if nothing is."""
    if needs.marker is not None and not needs.marker.evaluate({"extra": ""}):
        return None
    try:
        installed = version(needs.name)
    except PackageNotFoundError:
        return f"{needs.name} is not installed", str(needs)
    if needs.specifier.contains(installed, prereleases=True):
        return None
    return f"{needs.name} {installed} does not fit, it must be {needs.specifier}", str(needs)
