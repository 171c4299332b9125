"""Time and memory of the fused loss against its peers and against the bare matrix products.

    python benchmarks/loss.py --shape 1024,576,49152 --json benchmarks/results/loss.json

Every contender computes loss, d loss / d hidden and d loss / d weight. Rounds are interleaved (each round times every
contender once), so a slow moment of the machine hits all alike; medians over rounds, and the median over rounds of
the ratio to the bare products of the same round. Peak memory, counted in a separate pass from the allocator, excludes
inputs. Peers outside the environment take part if they can be imported: to add them without touching it,
`pip install --no-deps --target peers trl liger-kernel cut-cross-entropy triton` and run with PYTHONPATH=peers.
Results for other shapes, dtypes, thread counts and contenders already in the JSON file are kept.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchtune.modules.loss import CEWithChunkedOutputLoss
from tqdm import tqdm

from entrodrop_tune.method import linear_cross_entropy

SLOW = 6.0  # a contender this many times slower than the products in the warm-up is timed once only
SEED = 0


class Problem:
    """Inputs of one shape; ``hidden`` and ``weight`` collect gradients."""

    def __init__(self, rows: int, dim: int, vocab: int, dtype: torch.dtype) -> None:
        torch.manual_seed(SEED)
        self.hidden = torch.randn(rows, dim).to(dtype).requires_grad_()
        self.weight = (torch.randn(vocab, dim) * dim**-0.5).to(dtype).requires_grad_()
        self.labels = torch.randint(vocab, (rows,))
        self.coins = torch.rand(rows)

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def products(p: Problem) -> None:
    """The three matrix products that no exact method can do without, each at full size."""
    hidden, weight = p.hidden.detach(), p.weight.detach()
    logits = hidden @ weight.T
    p.hidden.grad = logits @ weight
    p.weight.grad = logits.T @ hidden


def ours(p: Problem, drop: float, chunk_size: int | None = None) -> None:
    keep = p.coins >= drop
    select = (lambda entropy, nll, rows: keep[rows]) if drop else None
    out = linear_cross_entropy(p.hidden, p.weight, p.labels, select, chunk_size=chunk_size)
    (out.loss_sum / out.kept).backward()


def torchtune_chunked(p: Problem) -> None:
    loss = CEWithChunkedOutputLoss()
    logits = [F.linear(chunk, p.weight).unsqueeze(0) for chunk in p.hidden.chunk(loss.num_output_chunks)]
    loss(logits, p.labels.unsqueeze(0)).backward()


def materialised(p: Problem) -> None:
    F.cross_entropy(F.linear(p.hidden, p.weight).float(), p.labels).backward()


def torch_linear(p: Problem, options: torch.nn.LinearCrossEntropyOptions | None = None) -> None:
    F.linear_cross_entropy(p.hidden, p.weight, p.labels, options=options).backward()


def peers() -> dict[str, Callable[[Problem], None]]:
    """What can be imported here and runs on the CPU."""
    found: dict[str, Callable[[Problem], None]] = {}
    try:
        from trl.kernels import ChunkedLogProbFunction

        def trl_chunked(p: Problem) -> None:  # what SFTTrainer's default loss calls, with its vocabulary chunk
            log_probs, *_ = ChunkedLogProbFunction.apply(
                p.hidden, p.weight, None, p.labels, 1.0, 32768, None, 1.0, ("entropy",)
            )
            (-log_probs.mean()).backward()

        found["trl chunked nll + entropy"] = trl_chunked
    except ImportError as error:
        print(f"trl: {error}")
    try:
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

        def liger(p: Problem) -> None:
            nll, *_ = LigerFusedLinearScaledCrossEntropyFunction.apply(p.hidden, p.weight, p.labels, 1.0, -100, 1, True)
            nll.mean().backward()

        found["liger scaled ce + entropy (fallback)"] = liger
    except ImportError as error:
        print(f"liger: {error}")
    try:
        from cut_cross_entropy import linear_cross_entropy as cce

        found["apple cce (torch_compile)"] = lambda p: cce(
            p.hidden, p.weight, p.labels, impl="torch_compile"
        ).backward()
    except ImportError as error:
        print(f"cut-cross-entropy: {error}")
    return found


def contenders() -> dict[str, Callable[[Problem], None]]:
    chunked = torch.nn.LinearCrossEntropyOptions
    return {
        "products": products,
        "ours drop 0": lambda p: ours(p, 0.0),
        "ours drop 0.25": lambda p: ours(p, 0.25),
        "ours drop 0.5": lambda p: ours(p, 0.5),
        "ours drop 0.75": lambda p: ours(p, 0.75),
        "ours drop 0 (chunks of 103)": lambda p: ours(p, 0.0, chunk_size=103),
        "F.cross_entropy": materialised,
        "F.linear_cross_entropy": torch_linear,
        "F.linear_cross_entropy (chunks of 256)": lambda p: torch_linear(
            p, chunked(chunking_method=None, batch_chunk_size=256)
        ),
        "F.linear_cross_entropy (auto options)": lambda p: torch_linear(p, chunked()),
        "torchtune chunked": torchtune_chunked,
        **peers(),
    }


def seconds(run: Callable[[Problem], None], p: Problem) -> float:
    p.clear()
    # On one thread, processor time is the work, whatever else the machine does; on several, time on the wall.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run(p)
    return clock() - start


def profiled(run: Callable[[Problem], None], p: Problem) -> tuple[float, int]:
    """Seconds of one call, and the largest sum of live allocations during it, results included."""
    p.clear()  # outside the profile: what it frees must not count
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        duration = seconds(run, p)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return duration, peak


def check(runs: dict[str, Callable[[Problem], None]], p: Problem) -> None:
    """Contenders that must give the same gradients do."""
    reference: tuple[Tensor, Tensor] | None = None
    for name, run in runs.items():
        if name == "products" or (name.startswith("ours") and name != "ours drop 0"):
            continue
        p.clear()
        run(p)
        assert p.hidden.grad is not None and p.weight.grad is not None
        got = (p.hidden.grad.float(), p.weight.grad.float())
        reference = reference or got
        tolerance = 1e-4 if p.hidden.dtype == torch.float32 else 2e-2
        for a, b in zip(got, reference, strict=True):
            error = float((a - b).norm() / b.norm())
            assert error < tolerance, f"{name}: gradients differ by {error:.1e}"


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, repeats: int, budget: float, wanted: list[str]
) -> dict[str, dict]:
    rows, dim, vocab = shape
    began = time.monotonic()
    runs = contenders()
    unknown = set(wanted) - set(runs)
    if unknown:
        raise SystemExit(f"not available here: {', '.join(sorted(unknown))}; choose from {', '.join(runs)}")
    if wanted:
        runs = {name: run for name, run in runs.items() if name == "products" or name in wanted}
    small = Problem(64, 32, 500, dtype)
    check(runs, small)
    p = Problem(*shape, dtype)
    # The profiled pass is the warm-up.
    warm, peak = {}, {}
    for name, run in tqdm(runs.items(), desc="memory"):
        warm[name], peak[name] = profiled(run, p)
    slow = [name for name, t in warm.items() if t > SLOW * warm["products"]]
    times: dict[str, list[float]] = {name: [warm[name]] if name in slow else [] for name in runs}
    for done in tqdm(range(repeats), desc="rounds"):
        if done and time.monotonic() - began > budget:
            break
        for name, run in runs.items():
            if name not in slow:
                times[name].append(seconds(run, p))
    gradients = (rows * dim + vocab * dim) * dtype.itemsize
    logits = rows * vocab * dtype.itemsize
    result = {}
    for name in runs:
        ratios = [t / base for t, base in zip(times[name], times["products"], strict=False)]
        extra = peak[name] - gradients
        result[name] = {
            "seconds_median": statistics.median(times[name]),
            "seconds_min": min(times[name]),
            "repeats": len(times[name]),
            "ratio_to_products": statistics.median(ratios),
            "ratio_of_minima": min(times[name]) / min(times["products"]),
            "extra_bytes": extra,
            "extra_over_logits": extra / logits,
        }
    return result


def environment() -> dict:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {}
    for package in ("torch", "torchtune", "trl", "liger-kernel", "cut-cross-entropy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "seed": SEED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1024,576,49152", help="rows,dim,vocabulary")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--budget", type=float, default=250.0, help="seconds after which no further round starts")
    parser.add_argument("--only", action="append", default=[], help="a contender's name; may be repeated")
    parser.add_argument("--json", type=Path, help="merge the results into this file")
    args = parser.parse_args()
    shape = tuple(int(part) for part in args.shape.split(","))
    if len(shape) != 3:
        raise SystemExit(f"--shape {args.shape}: give rows,dim,vocabulary")
    torch.set_num_threads(args.threads)
    result = measure(shape, getattr(torch, args.dtype), args.repeats, args.budget, args.only)
    print(f"{'':56s} {'s':>7s} {'x products':>10s} {'extra / logits':>14s}")
    for name, row in result.items():
        print(
            f"{name:56s} {row['seconds_median']:7.3f} {row['ratio_to_products']:10.2f} {row['extra_over_logits']:14.3f}"
        )
    if args.json:
        merged = json.loads(args.json.read_text()) if args.json.exists() else {}
        entry = merged.setdefault(f"{args.shape} {args.dtype} threads={args.threads}", {"runs": {}})
        entry["environment"] = environment()
        # The products are timed again in every call; each contender's ratio is to those of its own call.
        entry["runs"].update(result)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main()
