"""Writes full.yaml and lora.yaml for every size of every family: ``python configs/make_configs.py``.

One place for the defaults and for the memory figures in the head comments; a test checks that the files are current.
"""

from dataclasses import dataclass
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
GIB = 2**30
BATCH, LENGTH = 4, 1024
ADAPTER_RANK = 16


@dataclass(frozen=True)
class Size:
    """One model: where it comes from and the sizes in its config.json."""

    family: str
    size: str
    hub: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    tied: bool
    full_lr: str
    lora_lr: str
    gpus: int = 1
    """Processes for full fine-tuning, so that it fits 80 GB each."""

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.dim, query), (self.dim, key), (self.dim, key), (query, self.dim)]
        return [*attention, (self.dim, self.hidden), (self.dim, self.hidden), (self.hidden, self.dim)]

    def parameters(self) -> int:
        """Weights of the embeddings and linear maps (norms and biases are below a thousandth)."""
        embeddings = self.vocab * self.dim * (1 if self.tied else 2)
        return embeddings + self.layers * sum(i * o for i, o in self.linears())

    def adapter_parameters(self) -> int:
        return self.layers * sum(ADAPTER_RANK * (i + o) for i, o in self.linears())

    def activations(self) -> int:
        """Bytes with activation checkpointing: an fp32 residual a layer, and one layer's inputs twice over in bf16."""
        one_layer = 2 * 2 * sum(i for i, _ in self.linears())
        return BATCH * LENGTH * (self.layers * self.dim * 4 + one_layer)


# fmt: off
SIZES = [
    Size("smollm2", "135m", "HuggingFaceTB/SmolLM2-135M-Instruct",
         30, 576, 9, 3, 64, 1536, 49152, True, "1.0e-4", "1.0e-3"),
    Size("smollm2", "360m", "HuggingFaceTB/SmolLM2-360M-Instruct",
         32, 960, 15, 5, 64, 2560, 49152, True, "5.0e-5", "1.0e-3"),
    Size("smollm2", "1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct",
         24, 2048, 32, 32, 64, 8192, 49152, True, "2.0e-5", "3.0e-4"),
    Size("qwen3", "0.6b", "Qwen/Qwen3-0.6B",
         28, 1024, 16, 8, 128, 3072, 151936, True, "2.0e-5", "5.0e-4"),
    Size("qwen3", "1.7b", "Qwen/Qwen3-1.7B",
         28, 2048, 16, 8, 128, 6144, 151936, True, "2.0e-5", "3.0e-4"),
    Size("qwen3", "4b", "Qwen/Qwen3-4B",
         36, 2560, 32, 8, 128, 9728, 151936, True, "1.0e-5", "3.0e-4"),
    Size("qwen3", "8b", "Qwen/Qwen3-8B",
         36, 4096, 32, 8, 128, 12288, 151936, False, "1.0e-5", "3.0e-4", 4),
    Size("qwen2_5", "0.5b", "Qwen/Qwen2.5-0.5B-Instruct",
         24, 896, 14, 2, 64, 4864, 151936, True, "2.0e-5", "5.0e-4"),
    Size("qwen2_5", "1.5b", "Qwen/Qwen2.5-1.5B-Instruct",
         28, 1536, 12, 2, 128, 8960, 151936, True, "2.0e-5", "3.0e-4"),
    Size("qwen2_5", "3b", "Qwen/Qwen2.5-3B-Instruct",
         36, 2048, 16, 2, 128, 11008, 151936, True, "1.0e-5", "3.0e-4"),
    Size("qwen2_5", "7b", "Qwen/Qwen2.5-7B-Instruct",
         28, 3584, 28, 4, 128, 18944, 152064, False, "1.0e-5", "3.0e-4", 4),
    Size("llama3_2", "1b", "meta-llama/Llama-3.2-1B-Instruct",
         16, 2048, 32, 8, 64, 8192, 128256, True, "2.0e-5", "3.0e-4"),
    Size("llama3_2", "3b", "meta-llama/Llama-3.2-3B-Instruct",
         28, 3072, 24, 8, 128, 8192, 128256, True, "1.0e-5", "3.0e-4"),
    Size("llama3_1", "8b", "meta-llama/Llama-3.1-8B-Instruct",
         32, 4096, 32, 8, 128, 14336, 128256, False, "1.0e-5", "3.0e-4", 4),
]
# fmt: on

CONFIG = Template("""\
# $kind on $name for limited domain data
#
#   $download
#   entrodrop prepare gsm8k --output data/gsm8k
#   tune run $launch$recipe \\
#     --config entrodrop_tune/configs/$path
#
# $memory
# Computed from the sizes in config.json, not measured; `entrodrop check` computes it for your batch and data.
output_dir: runs/$run
seed: 0
device: auto
dtype: bf16-mixed

model:
  path: $folder
${adapter}data:
  train: data/gsm8k/train.jsonl
  validation: data/gsm8k/validation.jsonl
  max_length: $length
  packing: false

epochs: 6
batch_size: $batch
gradient_accumulation_steps: $accumulation
optimizer:
  _component_: torch.optim.AdamW
  lr: $lr
  weight_decay: $decay
  fused: true
lr_scheduler:
  name: cosine
  warmup_fraction: 0.05
clip_grad_norm: 1.0

entrodrop:
  select: entropy
  site: loss
  preset: ramp

validation:
  metric: nll
  early_stopping_patience: 3
checkpoint:
  keep_last: 1

enable_activation_checkpointing: $checkpointing
""")
ADAPTER = """\
adapter:
  type: lora
  rank: 16
  alpha: 32
  dropout: 0.0
"""


def render(size: Size, lora: bool) -> str:
    """The text of one config."""
    parameters, adapter = size.parameters(), size.adapter_parameters()
    gpus = 1 if lora else size.gpus
    state = 2 * parameters + 16 * adapter if lora else 16 * parameters // gpus
    how = (
        f"2 bytes x {parameters / 1e9:.2f}e9 frozen + 16 x {adapter / 1e6:.1f}e6 trained parameters"
        if lora
        else f"16 bytes x {parameters / 1e9:.2f}e9 parameters" + (f" / {gpus} processes" if gpus > 1 else "")
    )
    activations = size.activations() if _checkpoints(size) else size.activations() * _factor(size)
    total = (state + activations) / GIB
    memory = (
        f"Memory{' a process' if gpus > 1 else ''}: about {total:.1f} GiB: {state / GIB:.1f} for weights, "
        f"gradients and AdamW ({how}),\n# {activations / GIB:.1f} for the activations of {BATCH} x {LENGTH} tokens"
        f"{' with activation checkpointing' if _checkpoints(size) else ''}."
    )
    kind = "lora" if lora else "full"
    folder = f"models/{size.hub.split('/')[1]}"
    download = f"hf download {size.hub} --local-dir {folder}"
    if size.size == "135m":
        folder, download = "models/smollm2", "entrodrop prepare smollm2 --output models/smollm2"
    return CONFIG.substitute(
        kind="LoRA" if lora else "Full fine-tuning",
        name=size.hub.split("/")[1],
        download=download,
        launch=f"--nproc_per_node {gpus} " if gpus > 1 else "",
        recipe=f"entrodrop_tune/recipes/{kind}_finetune",
        path=f"{size.family}/{size.size}_{kind}.yaml",
        memory=memory,
        run=f"{size.family}_{size.size}_{kind}",
        folder=folder,
        adapter=ADAPTER if lora else "",
        length=LENGTH,
        batch=BATCH,
        accumulation=4 // gpus,
        lr=size.lora_lr if lora else size.full_lr,
        decay="0.01" if lora else "0.1",
        checkpointing="true" if _checkpoints(size) else "false",
    )


def _checkpoints(size: Size) -> bool:
    return size.parameters() > 1e9


def _factor(size: Size) -> float:
    """Activations without checkpointing over those with it: every layer keeps its inputs."""
    one_layer = 2 * 2 * sum(i for i, _ in size.linears())
    return size.layers * (size.dim * 4 + one_layer) / (size.layers * size.dim * 4 + one_layer)


def main() -> None:
    for size in SIZES:
        for lora in (False, True):
            path = HERE / size.family / f"{size.size}_{'lora' if lora else 'full'}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(render(size, lora), encoding="utf-8")


if __name__ == "__main__":
    main()
