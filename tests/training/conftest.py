import pytest

from tests.tiny import tiny_model_dir


@pytest.fixture(scope="session")
def lively_model(tmp_path_factory):
    """A random model with large weights: unlike a freshly initialised one, its entropies are spread out."""
    return tiny_model_dir(tmp_path_factory.mktemp("lively") / "model", initializer_range=0.4)
