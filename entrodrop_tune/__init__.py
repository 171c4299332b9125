"""Fine-tune language models on little domain data for many epochs, with entropy-guided token dropout."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("entrodrop-tune")
except PackageNotFoundError:  # a source tree on sys.path without an install
    __version__ = "0+unknown"
