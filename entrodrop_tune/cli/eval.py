"""``entrodrop eval``: score a model on a suite of tasks through lm-eval."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

    entrodrop eval models/smollm2 --suite quick --output runs/base-eval

    entrodrop eval runs/lora/last --suite quick --output runs/tuned-eval --allow-code-execution

    entrodrop eval runs/lora/last --suite math,code --data hub --device cuda --batch-size auto --output out

Then: entrodrop compare runs/base-eval runs/tuned-eval
"""


def evaluate_model(
    model: Annotated[Path, typer.Argument(help="Hugging Face model folder, or PEFT adapter folder.")],
    suite: Annotated[
        str, typer.Option(help="quick, math, code, general, medical, all; or task names joined by commas.")
    ] = "quick",
    output: Annotated[Path, typer.Option(help="Folder for eval.json and items.jsonl.")] = Path("eval"),
    base: Annotated[Path | None, typer.Option(help="Base model of an adapter, if not the one it names.")] = None,
    data: Annotated[
        str | None, typer.Option(help="bundled, hub, or a folder of full data sets [env ENTRODROP_DATA].")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items of each task.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of few-shot choice and sampling.")] = 0,
    batch_size: Annotated[str, typer.Option(help="A number, or auto (8 on a CPU).")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="bf16, fp16, fp32, auto (as stored), or fast (bf16 if the hardware has it, else fp32).")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    chat_template: Annotated[
        str, typer.Option(help="always, never, or auto (where a task is written for chat).")
    ] = "auto",
    backend: Annotated[str, typer.Option(help="hf, or vllm if that is installed.")] = "hf",
    model_args: Annotated[
        str, typer.Option(help="Further key=value,... for lm-eval's model, e.g. tensor_parallel_size=2.")
    ] = "",
    allow_code_execution: Annotated[
        bool, typer.Option(help="Run generated programs in the sandbox; without it pass@k tasks are skipped.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of finished tasks [default: ~/.cache/entrodrop-tune].")
    ] = None,
    no_cache: Annotated[bool, typer.Option(help="Compute everything anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print eval.json instead of a table.")] = False,
) -> None:
    """Score MODEL on a suite of math, code and general tasks; write eval.json and items.jsonl to OUTPUT.

    A killed run goes on where it stopped. Results do not change between runs with the same settings.
    """
    from entrodrop_tune.evaluation.models import resolve_model
    from entrodrop_tune.evaluation.suites import suite_tasks
    from entrodrop_tune.files import require_folder

    tasks = suite_tasks(suite, limit)
    _refuse_unknown(dtype, chat_template, backend, device, batch_size)
    require_folder(output)
    if cache is not None:
        require_folder(cache, "--cache")
    source = resolve_model(model, base)

    from entrodrop_tune.evaluation.cache import TaskCache, default_cache_folder
    from entrodrop_tune.evaluation.harness import Settings
    from entrodrop_tune.evaluation.results import save_results
    from entrodrop_tune.evaluation.runner import evaluate

    settings = Settings(seed, dtype, batch_size, device, chat_template, data, backend, model_args, allow_code_execution)
    store = None if no_cache else TaskCache(cache or default_cache_folder())
    results = evaluate(source, suite, tasks, settings, store, _report_progress)
    if results is None:
        return
    path = save_results(results, output)
    if as_json:
        print(json.dumps(results.to_dict(), indent=2, allow_nan=False))
    else:
        from entrodrop_tune.evaluation.tables import print_results

        print_results(results)
        print(f"written to {path}")


def _refuse_unknown(dtype: str, chat_template: str, backend: str, device: str, batch_size: str) -> None:
    from entrodrop_tune.errors import UserError

    for name, value, allowed in [
        ("--dtype", dtype, ("bf16", "fp16", "fp32", "auto", "fast")),
        ("--chat-template", chat_template, ("always", "never", "auto")),
        ("--backend", backend, ("hf", "vllm")),
    ]:
        if value not in allowed:
            raise UserError(f'{name} is "{value}": choose from {", ".join(allowed)}')
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UserError(f'--device is "{device}": choose from auto, cpu, cuda, cuda:N, mps')
    if batch_size != "auto" and not batch_size.isdigit():
        raise UserError(f'--batch-size is "{batch_size}": give a number or auto')


def _report_progress(message: str, done: int, total: int) -> None:
    print(f"[{done}/{total}] {message}", file=sys.stderr, flush=True)
