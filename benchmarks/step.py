"""A whole training step against stock torchtune and TRL: tokens a second and peak memory, as ratios.

    python benchmarks/step.py --model MODEL_DIR --data train.jsonl --json benchmarks/results/step.json

Every trainer takes the same batches of the same tokens, fp32 or bf16 weights as stock torchtune has them, AdamW. Speed:
all trainers live in one process and take turns, a step each; the median over rounds is compared, so run it on a quiet
machine (SmolLM2-135M on two cores: about 7 minutes for both modes in bf16; fp32: take --modes full --rounds 3). Memory:
each trainer alone in a process of its own, two steps on the longest batch (the second with optimizer state), its peak
(CPU: resident size) minus that of a process without a trainer; other load does not disturb it, so --memory-only can
run anywhere.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from entrodrop_tune.data import Batch, DataConfig, collate, epoch_rows, load_data
from entrodrop_tune.method import TokenSelector
from entrodrop_tune.models import AdapterConfig, ModelConfig, load_model, load_tokenizer, pad_id, read_architecture
from entrodrop_tune.training.journal import machine, now, peak_memory, versions
from entrodrop_tune.training.loss_model import LossModel
from entrodrop_tune.training.optimizer import backward_and_update
from entrodrop_tune.training.validation import to_device

RANK, ALPHA = 8, 16
OURS = {  # drop rate, optimizer_in_bwd
    "ours, drop 0": (0.0, False),
    "ours, drop 0.5": (0.5, False),
    "ours, optimizer in backward": (0.0, True),
}
STOCK = "torchtune 0.6.1"
TRAINERS = (*OURS, STOCK, "TRL SFTTrainer")
Step = Callable[[Batch], float]


def ours(model_dir: str, lora: bool, dtype: torch.dtype, device: str, drop: float, in_bwd: bool) -> Step:
    """Our engine's step (``training/step.py`` without its bookkeeping over processes)."""
    adapter = AdapterConfig(rank=RANK, alpha=ALPHA) if lora else None
    model = LossModel(load_model(ModelConfig(path=model_dir), adapter, dtype=dtype, device=device))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    # A threshold above every entropy makes each token a candidate: the drop rate is then the dropped share.
    rule = TokenSelector("entropy").at(epoch=0, threshold=100.0, drop_rate=drop)

    def step(batch: Batch) -> float:
        select = rule.bind(batch.sample_ids.flatten(), batch.positions.flatten())
        output = model(batch.tokens, batch.labels, batch.positions, batch.mask, select)
        if in_bwd:
            backward_and_update(output.loss_sum, optimizer, 1 / output.kept)
            return float(output.loss_sum.detach() / output.kept)
        output.loss_sum.backward()
        return _finish(model, optimizer, output.loss_sum, output.kept)

    return step


def torchtune_stock(model_dir: str, lora: bool, dtype: torch.dtype, device: str) -> Step:
    """The step of torchtune's single-device recipes: chunked output, ``CEWithChunkedOutputLoss``, ``scale_grads``."""
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params
    from transformers import AutoModelForCausalLM

    a = read_architecture(model_dir)
    sizes = {
        "vocab_size": a.vocab_size,
        "num_layers": a.num_layers,
        "num_heads": a.num_heads,
        "num_kv_heads": a.num_kv_heads,
        "embed_dim": a.embed_dim,
        "intermediate_dim": a.intermediate_dim,
        "max_seq_len": 2048,
        "norm_eps": a.norm_eps,
        "rope_base": _rope_theta(model_dir),
        "scale_factor": 1,  # no Llama 3 rescaling of the rotary frequencies
    }
    if lora:
        names = ["q_proj", "k_proj", "v_proj", "output_proj"]
        model = lora_llama3_2(names, apply_lora_to_mlp=True, lora_rank=RANK, lora_alpha=ALPHA, **sizes)
    else:
        model = llama3_2(**sizes)
    hf = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).state_dict()
    hf.pop("lm_head.weight", None)
    weights = hf_to_tune(hf, num_heads=a.num_heads, num_kv_heads=a.num_kv_heads, dim=a.embed_dim)
    model.load_state_dict(weights, strict=False)
    model.to(device=device, dtype=dtype)
    if lora:
        set_trainable_params(model, get_adapter_params(model))
    loss_fn = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_fn.num_output_chunks)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(batch: Batch) -> float:
        tokens = (batch.labels != -100).sum()
        loss = loss_fn(model(batch.tokens), batch.labels) * tokens
        loss.backward()
        return _finish(model, optimizer, loss, tokens)

    return step


def _rope_theta(model_dir: str) -> float:
    config = json.loads((Path(model_dir) / "config.json").read_text())
    return config.get("rope_parameters", config)["rope_theta"]


def trl_stock(model_dir: str, lora: bool, dtype: torch.dtype, device: str) -> Step:
    """``SFTTrainer.compute_loss`` with its default loss, then backward and AdamW as the other trainers do."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    arguments = SFTConfig(output_dir=tempfile.mkdtemp(), use_cpu=device == "cpu", report_to=[], bf16=False)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"input_ids": [0, 1, 2, 3], "labels": [0, 1, 2, 3]}]),
        processing_class=load_tokenizer(model_dir),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear") if lora else None,
    )
    trainer.model.train()
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-5)

    def step(batch: Batch) -> float:
        # transformers shifts labels itself: give them unshifted.
        labels = torch.cat([torch.full_like(batch.labels[:, :1], -100), batch.labels[:, :-1]], dim=1)
        mask = (batch.sample_ids >= 0).long()
        inputs = {"input_ids": batch.tokens, "labels": labels, "attention_mask": mask}
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        return _finish(trainer.model, optimizer, loss, torch.tensor(1))

    return step


def _finish(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, count: torch.Tensor) -> float:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad *= 1 / count
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach() / count)


def build(trainer: str, arguments: argparse.Namespace, lora: bool, dtype: torch.dtype) -> Step:
    torch.manual_seed(0)
    if trainer in OURS:
        return ours(arguments.model, lora, dtype, arguments.device, *OURS[trainer])
    stock = torchtune_stock if trainer == STOCK else trl_stock
    return stock(arguments.model, lora, dtype, arguments.device)


def batches(arguments: argparse.Namespace) -> list[Batch]:
    tokenizer = load_tokenizer(arguments.model)
    config = DataConfig(train=arguments.data, validation_fraction=0.0, max_length=512, cache_dir=None)
    rows = epoch_rows(load_data(config, tokenizer, progress=False), seed=0, epoch=0)
    size = arguments.batch_size
    starts = range(0, len(rows) - size + 1, size)
    return [to_device(collate(rows[i : i + size], pad_id(tokenizer)), arguments.device) for i in starts]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def measure_speed(
    arguments: argparse.Namespace, trainers: list[str], lora: bool, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Seconds a step, round by round, and the first loss (the same data must give the same loss)."""
    data = batches(arguments)
    steps = {trainer: build(trainer, arguments, lora, dtype) for trainer in trainers}
    first = {trainer: step(data[0]) for trainer, step in steps.items()}  # also warms up
    seconds: dict[str, list[float]] = {trainer: [] for trainer in steps}
    for number in range(arguments.rounds):
        batch = data[1 + number % (len(data) - 1)]
        for trainer, step in steps.items():
            synchronize(arguments.device)
            started = time.perf_counter()
            step(batch)
            synchronize(arguments.device)
            seconds[trainer].append(time.perf_counter() - started)
    whole = [loss for trainer, loss in first.items() if trainer != "ours, drop 0.5"]
    if max(whole) - min(whole) > 0.02 * max(whole):
        raise SystemExit(f"the trainers do not compute the same loss, so their speed cannot be compared: {first}")
    return {t: {"seconds": statistics.median(seconds[t]), "first_loss": first[t]} for t in steps}


def measure_memory(arguments: argparse.Namespace, mode: str, trainer: str) -> int:
    """Peak resident bytes of two steps in a process of its own (``none``: of the imports and the data alone)."""
    command = [sys.executable, __file__, "--model", arguments.model, "--data", arguments.data, "--memory-of", trainer]
    command += ["--modes", mode, "--dtype", arguments.dtype, "--batch-size", str(arguments.batch_size)]
    command += ["--device", arguments.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def report_memory(arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    longest = max(batches(arguments), key=lambda batch: batch.tokens.numel())
    if arguments.memory_of != "none":
        step = build(arguments.memory_of, arguments, arguments.modes[0] == "lora", dtype)
        for _ in range(2):
            step(longest)
    print(peak_memory(torch.device(arguments.device)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model directory (a Llama with tied embeddings)")
    parser.add_argument("--data", required=True, help="JSONL training file")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--trainers", nargs="+", default=TRAINERS, help="some of: " + "; ".join(TRAINERS))
    parser.add_argument("--memory-only", action="store_true", help="leave speed unmeasured (a machine that is busy)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    if arguments.memory_of:
        report_memory(arguments, dtype)
        return
    result = {
        "command": " ".join(["python", *sys.argv]),
        "started": now(),
        "versions": versions(),
        "machine": machine(torch.device(arguments.device)),
        "threads": torch.get_num_threads(),
        "settings": {"dtype": arguments.dtype, "batch_size": arguments.batch_size, "rounds": arguments.rounds},
    }
    for mode in arguments.modes:
        lora = mode == "lora"
        trainers = [t for t in arguments.trainers if not (lora and t in OURS and OURS[t][1])]  # refused with adapters
        rows: dict[str, dict[str, Any]] = {trainer: {"seconds": None} for trainer in trainers}
        if not arguments.memory_only:
            rows = measure_speed(arguments, trainers, lora, dtype)
        nothing = measure_memory(arguments, mode, "none")
        for trainer, row in rows.items():
            row["peak_bytes"] = measure_memory(arguments, mode, trainer) - nothing
        result[mode] = rows
        report(mode, arguments.dtype, rows)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def report(mode: str, dtype: str, rows: dict[str, dict[str, Any]]) -> None:
    """Add the ratios over stock torchtune to ``rows`` and print them."""
    stock = rows[STOCK]
    print(f"\n{mode}, {dtype}: speed and peak memory as multiples of stock torchtune's")
    for trainer, row in rows.items():
        row["memory_over_torchtune"] = row["peak_bytes"] / stock["peak_bytes"]
        speed = "speed not measured"
        if row["seconds"] is not None:
            row["speed_over_torchtune"] = stock["seconds"] / row["seconds"]
            speed = f"speed {row['speed_over_torchtune']:.2f}x  first loss {row['first_loss']:.4f}"
        print(f"  {trainer:27s} memory {row['memory_over_torchtune']:.2f}x  {speed}", flush=True)


if __name__ == "__main__":
    main()
