"""Full fine-tuning with entropy-guided token dropout.

    tune run entrodrop_tune/recipes/full_finetune --config FILE [key=value ...]
    tune run --nproc_per_node 2 entrodrop_tune/recipes/full_finetune --config FILE [key=value ...]

Every weight is trained; checkpoints are Hugging Face model directories. The loop is ``entrodrop_tune.training.engine``.
"""

import sys

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.launch import launch


def recipe_main() -> None:
    sys.exit(launch("full_finetune", check=_refuse_adapter))


def _refuse_adapter(config) -> None:
    if config.adapter is not None:
        raise UserError('"adapter" is for entrodrop_tune/recipes/lora_finetune: run that recipe, or remove the key.')


if __name__ == "__main__":
    recipe_main()
