"""How figures look, and how they become part of a page: SVG whose colours follow the page's light or dark theme."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Each colour becomes the CSS variable of its name in an SVG, so the page can give another value in the dark.
INK, MUTED, GRID, PAPER = "#1b2330", "#5d6878", "#dfe3ea", "#fefefe"
BLUE, ORANGE, TEAL, VIOLET, OCHRE, PINK = "#1f6fea", "#c5480d", "#0e7c72", "#7a3cec", "#8f6a00", "#bd1a6c"
SERIES = (BLUE, ORANGE, TEAL, VIOLET, OCHRE, PINK)
LINE_STYLES = ("-", "--", ":", "-.")
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BLUE: "blue", ORANGE: "orange", TEAL: "teal",
    VIOLET: "violet", OCHRE: "ochre", PINK: "pink",
}  # fmt: skip

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
    "text.parse_math": False,  # names of runs and data may hold any number of dollars
    "svg.fonttype": "none",  # real text: it scales, can be selected and searched
    "svg.hashsalt": "entrodrop",  # the same data give the same bytes
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib settings of every figure here."""
    with matplotlib.rc_context(RC):
        yield


def series_style(index: int) -> dict[str, Any]:
    """Colour and line style of the ``index``-th run: never told apart by colour alone past the first six."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": LINE_STYLES[index // len(SERIES) % len(LINE_STYLES)],
    }


def legend_above(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """A legend in rows above the axes, where it can cover no curve; nothing where nothing is labelled."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    handles = [handle for handle in handles if not str(handle.get_label()).startswith("_")]
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=max(1, min(len(handles), 58 // (longest + 7))),
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=1.8,
    )


def svg(draw: Callable[[Axes], None], name: str, alt: str, size: tuple[float, float] = (4.9, 3.1)) -> str:
    """Draw on one axes and return an inline ``<svg>``; ``alt`` is what a screen reader says instead."""
    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        return inline_svg(figure, name, alt)


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``<svg>`` element with CSS variables for colours; ``name`` keeps ids apart on a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--font)", text)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    # By a function: in a replacement given as text, a backslash in the label would be an escape.
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        lambda head: (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{head[1]}" role="img" aria-label="{label}">'
        ),
        text,
        count=1,
    )


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` on white, without what would make two equal figures differ."""
    figure.savefig(path, format="png", facecolor="white", metadata={"Software": None})
