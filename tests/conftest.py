import os

# One thread a process: tests stay deterministic and two pytest workers do not fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.tiny import tiny_dataset, tiny_model_dir


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random Llama (2 layers, hidden 32, vocab about 384) as a Hugging Face directory."""
    return tiny_model_dir(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with ``train.jsonl`` (12 rows) and ``validation.jsonl`` (4 rows), question/answer columns."""
    folder = tmp_path_factory.mktemp("data")
    tiny_dataset(folder / "train.jsonl", 12)
    tiny_dataset(folder / "validation.jsonl", 4, offset=100)
    return folder


@pytest.fixture(scope="session")
def lively_model(tmp_path_factory):
    """A random model with large weights: unlike a freshly initialised one, its entropies are spread out."""
    return tiny_model_dir(tmp_path_factory.mktemp("lively") / "model", initializer_range=0.4)


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Run a ``main`` with arguments in this process: (exit code, standard error)."""

    def run(entry, *arguments):
        monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
        capsys.readouterr()
        try:
            entry()
        except SystemExit as exit:
            return exit.code or 0, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run
