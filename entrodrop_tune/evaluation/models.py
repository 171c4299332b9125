"""What a MODEL path is: a Hugging Face directory, or a PEFT adapter on one; and a hash of what it contains."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from entrodrop_tune.errors import UserError
from entrodrop_tune.run_record import RECORD_FILE

# Whatever changes a score: weights, shapes, tokens and the chat template.
_HASHED = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
)
_BLOCK = 1 << 24


@dataclass(frozen=True)
class ModelSource:
    """A model to evaluate.

    Attributes:
        path: what the user named.
        base: the directory with the full weights (``path`` itself unless it holds an adapter).
        adapter: the PEFT adapter's directory, or ``None``.
        hash: SHA-256 (hex) over weights, configuration and tokenizer of base and adapter.
    """

    path: Path
    base: Path
    adapter: Path | None
    hash: str


def resolve_model(path: Path | str, base: Path | str | None = None) -> ModelSource:
    """Find out what ``path`` holds; ``base`` overrides the base model an adapter names.

    A training run's folder stands for its best checkpoint (its last one, if none was the best).

    Raises:
        UserError: no such directory, neither a model nor an adapter in it, or the adapter's base is missing.
    """
    path = Path(path)
    if (path / RECORD_FILE).exists() and not (path / "config.json").exists():
        path = path / "best" if (path / "best").exists() else path / "last"
    if not path.is_dir():
        raise UserError(f'no model folder "{path}": give a Hugging Face model directory or a PEFT adapter directory')
    if not (path / "adapter_config.json").exists():
        return ModelSource(path, path, None, _hash_folders([_checked(path)]))
    named = base or _read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise UserError(f"{path}/adapter_config.json names no base_model_name_or_path: give it with --base DIR")
    base_path = next((p for p in (Path(named), path / named) if p.is_dir()), None)
    if base_path is None:
        raise UserError(f'the base model of {path}, "{named}", is not a local folder: give it with --base DIR')
    return ModelSource(path, _checked(base_path), path, _hash_folders([base_path, path]))


def chat_template_hash(source: ModelSource) -> str | None:
    """SHA-256 (16 hex digits) of the chat template the model's tokenizer will use, ``None`` if it has none."""
    folder = tokenizer_folder(source)
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else None
    if template is None and (folder / "tokenizer_config.json").exists():
        template = _read_json(folder / "tokenizer_config.json").get("chat_template")
    return hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16] if template else None


def tokenizer_folder(source: ModelSource) -> Path:
    """The adapter's folder if it brings a tokenizer, else the base's."""
    if source.adapter and (source.adapter / "tokenizer.json").exists():
        return source.adapter
    return source.base


def count_parameters(source: ModelSource) -> int | None:
    """Numbers stored in the model's safetensors files, the adapter's included; ``None`` for another format."""
    from safetensors import safe_open

    folders = [source.base, *([source.adapter] if source.adapter else [])]
    total = 0
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or None


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg})") from error


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} has neither config.json nor adapter_config.json: it is not a model directory")
    return folder


def _hash_folders(folders: list[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted({file for pattern in _HASHED for file in folder.glob(pattern)}):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()
