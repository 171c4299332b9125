import pytest

from tests.analysis.synthetic import make_evaluation, make_run


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two runs and two evaluations: ``ease`` overfits, ``ramp`` stops early with few epochs."""
    root = tmp_path_factory.mktemp("folders")
    ramp = {"seed": 1, "epochs": 8, "entrodrop": {"preset": "ramp", "threshold": {"quantile": 0.5}}}
    make_run(root / "ease")
    make_run(
        root / "ramp", seed=1, rise=0.03, drop_rate=lambda p: 0.9 * p, threshold=lambda p: 0.6 - 0.4 * p,
        stop_at=0.75, exit_state="stopped_early", config=ramp,
    )  # fmt: skip
    make_evaluation(root / "base")
    make_evaluation(root / "tuned", gain=0.3, seed=1)
    return root
