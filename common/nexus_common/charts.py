"""The figures of a report: matplotlib draws each, and what comes out is one ``<svg>`` that takes the page's colours.

Text stays text, in the page's own type, and colours are variables of its style, so that one drawing serves light, dark
and paper.  No font, script or reference to anything outside is in it.
"""

import html
import io
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from unittest.mock import patch

with tempfile.TemporaryDirectory() as _fonts, patch.dict(os.environ, {"MPLCONFIGDIR": _fonts}):  # not the home folder
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

Colour = Literal["ink", "soft", "line", "tint", "one", "two", "three"]
_DRAWN: Final[dict[Colour, str]] = {
    "ink": "#000001",
    "soft": "#000002",
    "line": "#000003",
    "tint": "#000004",
    "one": "#000005",
    "two": "#000006",
    "three": "#000007",
}
"""What stands for a variable of the page's style while it is drawn."""

_SIZE: Final = (440, 270)  # of the drawing, in CSS pixels where the page has room for two side by side
_SETTINGS: Final[dict[Any, Any]] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, and is wider than the page's own: what fits it fits that
    "font.size": 13,
    "svg.fonttype": "none",
    "svg.hashsalt": "nexus",  # the same figures give the same bytes
    "text.parse_math": False,
    "axes.linewidth": 1,
}
_MOST_DOTS: Final = 60
_LABEL_WIDTH: Final = 0.22  # of the drawing: labels nearer to each other than this would overlap


@dataclass(frozen=True)
class Line:
    """A line, or only its points: ``ys`` at ``xs``, with gaps where they are NaN; unnamed it is not in the legend."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: Colour
    dashes: Literal["-", ":", "--", ""] = "-"
    dot: Literal["o", "s", "^", "x", ""] = "o"
    steps: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the horizontal axis with a label; ``sign`` draws a line at its end."""

    label: str
    begin: float
    end: float
    sign: bool = False


@dataclass(frozen=True)
class Chart:
    """One figure over versions ``first`` to ``last``.

    ``text`` says in a sentence what it shows; ``levels`` are heights, two at most, to compare with.
    """

    title: str
    text: str
    first: int
    last: int
    lines: tuple[Line, ...]
    spans: tuple[Span, ...] = ()
    levels: tuple[tuple[str, float], ...] = ()
    from_zero: bool = False
    whole: bool = False


def draw(chart: Chart, name: str) -> str:
    """The figure as an ``<svg>`` element; ``name`` is unique in its page."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(_SIZE[0] / 72, _SIZE[1] / 72), layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, chart)
        for line in chart.lines:
            few = len(line.ys) <= _MOST_DOTS
            axes.plot(
                line.xs,
                line.ys,
                label=line.name or "_",
                color=_DRAWN[line.colour],
                linestyle=line.dashes or "none",
                linewidth=1.7 if line.dashes == ":" else 2,
                marker=line.dot if few or not line.dashes else "",
                markersize=5 if line.dot == "x" else 4,
                drawstyle="steps-mid" if line.steps else "default",
            )
        for (label, height), dashes in zip(chart.levels, ((5, 3), (1, 2)), strict=False):
            axes.axhline(height, label=label, color=_DRAWN["soft"], linestyle=(0, dashes), linewidth=1.2)
        margin = max(1, chart.last - chart.first) / 40
        axes.set_xlim(chart.first - margin, max(chart.last, chart.first + 1) + margin)
        _mark(axes, chart.spans)
        if chart.from_zero:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=_DRAWN["ink"], fontsize=12)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(file.getvalue(), chart, name)


def _frame(axes: Axes, chart: Chart) -> None:
    """Axes that stay behind what they measure."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_DRAWN["line"])
    axes.grid(axis="y", color=_DRAWN["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_DRAWN["soft"], labelsize=12)
    axes.set_xlabel("version", color=_DRAWN["soft"], fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=chart.whole))
    axes.margins(y=0.08)


def _mark(axes: Axes, spans: Sequence[Span]) -> None:
    """Shade the spans; their labels stand above the axes, where there is room beside the one before."""
    left, right = axes.get_xlim()
    labelled = -1.0
    for span in spans:
        axes.axvspan(span.begin, span.end, color=_DRAWN["tint"], linewidth=0, zorder=0)
        if span.sign:
            axes.axvline(span.end, color=_DRAWN["ink"], linewidth=1.2, zorder=1)
        place = ((span.begin + span.end) / 2 - left) / (right - left)
        if labelled < 0 or place - labelled > _LABEL_WIDTH:
            labelled = place
            axes.annotate(
                span.label,
                (place, 1.02),
                xycoords="axes fraction",
                ha="center",
                va="bottom",
                color=_DRAWN["ink"],
                fontsize=12,
            )


def _embedded(svg: str, chart: Chart, name: str) -> str:
    """matplotlib's document as an element of the page: named, described, and no wider than there is room."""
    drawing = re.search("<svg[^>]*>(.*)</svg>", svg, re.DOTALL)
    if drawing is None:
        raise ValueError("matplotlib wrote no svg")
    inside = re.sub("<metadata>.*?</metadata>|<style.*?</style>", "", drawing[1], flags=re.DOTALL)
    inside = re.sub(r"font-family: [^;\"]*;? ?", "", inside)
    inside = re.sub(r"(\.\d\d)\d+", r"\1", inside)
    inside = inside.replace("xlink:href", "href")
    inside = re.sub(r"\n *", "\n", inside)
    used = {*re.findall(r'(?:url\(|href=")#(\w+)', inside)}
    inside = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", inside)
    inside = re.sub(r'(url\(#|href="#| id=")(\w+)', rf"\1{name}-\2", inside)
    for variable, drawn in _DRAWN.items():
        inside = inside.replace(drawn, f"var(--{variable})")
    return (
        f'<svg viewBox="0 0 {_SIZE[0]} {_SIZE[1]}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{html.escape(chart.title)}</title>'
        f'<desc id="{name}-text">{html.escape(chart.text)}</desc>{inside}</svg>'
    )
