"""``entrodrop prepare``: a model or data set in a local folder, without the hub where the project ships it."""

from pathlib import Path
from typing import Annotated, Any

import typer


def prepare(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="smollm2 (a model), or gsm8k, mbpp, pubmedqa, replay (data).")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder to write.  [default: models/NAME or data/NAME]")] = None,
    from_hub: Annotated[
        bool, typer.Option("--from-hub", help="Data: the full set from the Hugging Face hub, not the bundled sample.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was prepared as JSON.")] = False,
) -> None:
    """Put a model or data set into a folder that a config can name; what is already there is reused.

    Licence and origin are printed, and recorded in the folder's source.json.

    **Examples**

    `entrodrop prepare smollm2`

    `entrodrop prepare gsm8k --output data/gsm8k`

    `entrodrop prepare mbpp --from-hub`
    """
    import json

    result = _model(output, from_hub) if name == "smollm2" else _dataset(name, output, from_hub, not as_json)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    verb = "is there already" if result["reused"] else "is ready"
    rows = ", ".join(f"{file} {count} rows" for file, count in result.get("rows", {}).items())
    print(f"{result['path']} {verb}{': ' + rows if rows else ''}")
    print(f"licence {result['licence']}, from {result['source']}")


def _model(output: Path | None, from_hub: bool) -> dict[str, Any]:
    from entrodrop_tune.errors import UserError
    from entrodrop_tune.files import require_folder
    from entrodrop_tune.models.smollm2 import LICENCE, SOURCE, prepare_smollm2

    if from_hub:
        raise UserError(
            "--from-hub is for data. For a model: hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir FOLDER"
        )
    path = output or Path("models/smollm2")
    require_folder(path)
    made = prepare_smollm2(path)
    return {"name": "smollm2", "path": str(path), "licence": LICENCE, "source": SOURCE, "reused": not made}


def _dataset(name: str, output: Path | None, from_hub: bool, progress: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from entrodrop_tune.data.prepare import DATASETS, prepare_dataset
    from entrodrop_tune.errors import UserError, did_you_mean
    from entrodrop_tune.files import require_folder

    if name not in DATASETS:
        raise UserError(f'nothing to prepare is called "{name}".{did_you_mean(name, ["smollm2", *DATASETS])}')
    path = output or Path("data") / name
    require_folder(path)
    prepared = prepare_dataset(name, path, from_hub, progress)
    return {**asdict(prepared), "path": str(prepared.path)}
