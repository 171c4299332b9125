"""Jinja2 set-up shared by all pages: autoescape, number formats, and the page's own Content-Security-Policy."""

import base64
import hashlib
import math
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

MISSING = "–"


def render(template: str, **values: Any) -> str:
    """Render ``templates/<template>``; every value is escaped in HTML templates."""
    return _environment().get_template(template).render(**values)


def trusted(markup: str) -> Markup:
    """Mark our own SVG as markup. Never for text that comes from a run, a model or a data set."""
    return Markup(markup)


def figure(title: str, caption: str, svg: str) -> dict[str, Any]:
    """What the templates' ``figure`` lists are made of."""
    return {"title": title, "caption": caption, "svg": trusted(svg)}


def script(name: str) -> tuple[Markup, str]:
    """``templates/<name>`` as the content of a ``<script>``, and the hash by which the page's policy allows it."""
    text, _, _ = _environment().loader.get_source(_environment(), name)  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"sha256-{digest}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("entrodrop_tune.analysis"),
        autoescape=lambda name: bool(name) and name.endswith(".html.j2"),  # type: ignore[union-attr]
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "duration": duration,
        "size": size,
        "count": count,
        "interval": interval,
        "cell": markdown_cell,
        "code": inline_code,
    }
    return environment


def number(value: Any, digits: int = 3) -> str:
    """``-1.4753`` -> ``−1.475`` (the typographic minus); a dash for nothing; other values as they are."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """With its sign, and the typographic minus."""
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """``0.256`` -> ``26%``."""
    return MISSING if value is None else f"{value * 100:.{digits}f}%"


def duration(seconds: float | None) -> str:
    """``3671`` seconds -> ``1 h 1 min``."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(value: float | None) -> str:
    """Bytes in GiB or MiB."""
    if value is None:
        return MISSING
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def count(value: float | None) -> str:
    """Thousands apart: ``134,515,008``."""
    return MISSING if value is None else f"{value:,.0f}"


def interval(mean: dict[str, Any], digits: int = 3) -> str:
    """``{"value": 0.8834, "half_width": 0.011}`` -> ``0.883 ± 0.011``."""
    text = number(mean["value"], digits)
    return text if mean["half_width"] is None else f"{text} ± {mean['half_width']:.{digits}f}"


def inline_code(text: str) -> Markup:
    """Escaped, with what stands in backticks as ``<code>``."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def markdown_cell(value: Any) -> str:
    """Text that is safe inside a Markdown table cell."""
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "&lt;").replace("`", "\\`")
