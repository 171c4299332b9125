"""``_component_`` sections -> objects: classes of installed packages, of one expected kind, and nothing else.

torchtune's ``config.instantiate`` calls whatever a config names, and looks in the working directory too, so that a
config from elsewhere could run any function. Here a name must lead to a subclass of what the key stands for.
"""

from importlib.metadata import packages_distributions
from pkgutil import resolve_name
from typing import Any

from entrodrop_tune.errors import UserError
from entrodrop_tune.training.config import Component

_KNOWN = ("torch", "torchao", "torchtune", "bitsandbytes")  # spares looking through all that is installed


def build_component(key: str, component: Component, kind: type, *arguments: Any) -> Any:
    """Instantiate ``component`` with positional ``arguments`` before its own keyword arguments.

    Args:
        key: the config key named in messages.
        component: dotted path and keyword arguments.
        kind: what the class must be a subclass of.

    Raises:
        UserError: no such class, not of that kind, not from an installed package, or it refuses its arguments.
    """
    found = find_component(key, component, kind)
    try:
        return found(*arguments, **component.arguments())
    except Exception as error:  # whatever the class raises, the config is what the user can change
        raise UserError(
            f'"{key}" = {component.component} cannot be built with {component.arguments()}: {_reason(error)}.'
        ) from error


def find_component(key: str, component: Component, kind: type) -> type:
    """The class that ``component`` names, not yet instantiated.

    Raises:
        UserError: no such class, not of that kind, or not from an installed package.
    """
    path = component.component
    package = path.partition(".")[0]
    # Importing runs a module's code, so neither a file in the working directory nor the standard library qualifies.
    if package not in _KNOWN and package not in packages_distributions():
        raise UserError(f'"{key}" = {path}: no installed package provides "{package}". Install it with pip.')
    try:
        found = resolve_name(path)
    except Exception as error:  # importing a package may raise anything
        raise UserError(f'"{key}" = {path} cannot be built: {_reason(error)}.') from error
    # A protocol's issubclass would look at method names alone.
    if not isinstance(found, type) or kind not in found.__mro__:
        raise UserError(f'"{key}" = {path}: it must be a subclass of {kind.__module__}.{kind.__qualname__}.')
    return found


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
