"""Start training runs as a user does, and read what they leave behind."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "configs" / "tiny.yaml"
ADAPTER = ["adapter.type=lora", "adapter.rank=4", "adapter.alpha=8"]
# What a clock or a memory allocator decides is not part of "the same run".
MEASURED = {"tokens_per_second", "peak_memory_bytes", "seconds"}


def overrides(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        f"model.path={model}",
        f"data.train={data / 'train.jsonl'}",
        f"data.validation={data / 'validation.jsonl'}",
        f"output_dir={output}",
        *more,
    ]


def command(recipe: str, *arguments: str, processes: int = 1) -> list[str]:
    launch = [sys.executable, "-m", "torchtune._cli.tune", "run"]
    if processes > 1:
        launch += ["--nproc_per_node", str(processes)]
    return [*launch, f"entrodrop_tune/recipes/{recipe}", "--config", str(TINY), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def tune(recipe: str, *arguments: str, processes: int = 1, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """``tune run`` in a subprocess."""
    return subprocess.run(
        command(recipe, *arguments, processes=processes),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal(run: Path) -> dict[str, list[dict]]:
    """Both journals without what a clock decides."""
    return {
        name: [{k: v for k, v in row.items() if k not in MEASURED} for row in lines(run / name)]
        for name in ("metrics.jsonl", "validation.jsonl")
    }


def weights(folder: Path) -> dict[str, str]:
    """A hash of each tensor in a checkpoint folder, resume state included."""
    digests = {}
    optimizer = torch.load(folder / "resume" / "optimizer.pt", weights_only=True)["optimizer"]
    for name, values in optimizer["state"].items():
        digests[f"optimizer:{name}"] = hashlib.sha256(
            repr([(k, v.tolist()) for k, v in values.items()]).encode()
        ).hexdigest()
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                values = file.get_tensor(name)
                key = f"{path.relative_to(folder)}:{name}"
                digests[key] = hashlib.sha256(values.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
    return digests
