"""LoRA, DoRA and QLoRA fine-tuning with entropy-guided token dropout.

    tune run entrodrop_tune/recipes/lora_finetune --config FILE [key=value ...]
    tune run --nproc_per_node 2 entrodrop_tune/recipes/lora_finetune --config FILE [key=value ...]

The pretrained weights are frozen and adapters are trained; checkpoints are PEFT adapter directories. The loop is
``entrodrop_tune.training.engine``.
"""

import sys

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.launch import launch


def recipe_main() -> None:
    sys.exit(launch("lora_finetune", check=_require_adapter))


def _require_adapter(config) -> None:
    if config.adapter is None:
        raise UserError(
            '"adapter" is required by lora_finetune, for example adapter.type=lora adapter.rank=8 adapter.alpha=16.'
        )


if __name__ == "__main__":
    recipe_main()
