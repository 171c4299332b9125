"""``entropy.json`` as a report reads it back: checked, so that damage is named and not drawn."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from entrodrop_tune.errors import UserError, first_problem

ENTROPY_FILE = "entropy.json"
_Share = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]


class _Part(BaseModel):
    """What a report reads; further keys are left alone."""

    model_config = ConfigDict(strict=True)


class _Range(_Part):
    low: FiniteFloat
    high: FiniteFloat | None
    keep_probability: _Share
    token_share: _Share
    nll_share: _Share


class _Shares(_Part):
    before: list[_Share]
    after: list[_Share] | None


class _Gradient(_Part):
    samples: int
    tokens: int
    threshold_nats: FiniteFloat
    ranges: Annotated[list[_Range], Field(min_length=1)]
    scopes: dict[Literal["hidden", "head", "model"], _Shares]

    @model_validator(mode="after")
    def _a_share_a_range(self) -> "_Gradient":
        for name, shares in self.scopes.items():
            for values in (shares.before, shares.after):
                if values is not None and len(values) != len(self.ranges):
                    raise ValueError(f"{name} has {len(values)} shares for {len(self.ranges)} ranges")
        return self


class _Domain(_Part):
    name: str
    gradient: _Gradient | None = None


class _Point(_Part):
    epoch: FiniteFloat
    token_share_below: _Share
    nll_share_below: _Share
    gradient_share_below: _Share | None


class _Model(_Part):
    path: str


class _Profile(_Part):
    model: _Model
    domains: list[_Domain]
    over_training: list[_Point]
    verdict: list[str]


def read_profile(folder: Path) -> dict[str, Any]:
    """The profile that ``write_profile`` left in ``folder``.

    Raises:
        UserError: there is none, or a value in it is none that ``entrodrop entropy`` writes.
    """
    file = folder / ENTROPY_FILE
    try:
        content = json.loads(file.read_bytes())
        _Profile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_problem(error)}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} holds no {ENTROPY_FILE} that can be read ({error}): see `entrodrop entropy`."
        ) from None
    return content
