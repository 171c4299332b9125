"""``_component_`` sections -> objects, through torchtune's ``config.instantiate``."""

from typing import Any

from omegaconf import OmegaConf
from torchtune.config import instantiate

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.config import Component


def build_component(key: str, component: Component, *arguments: Any) -> Any:
    """Instantiate ``component`` with positional ``arguments`` before its own keyword arguments.

    Raises:
        UserError: no such class, or it refuses its arguments; ``key`` is the config key named in the message.
    """
    section = OmegaConf.create({"_component_": component.component, **component.arguments()})
    try:
        return instantiate(section, *arguments)
    except Exception as error:  # whatever the class raises, the config is what the user can change
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f'"{key}" = {component.component} cannot be built with {component.arguments()}: {reason}.'
        ) from error
