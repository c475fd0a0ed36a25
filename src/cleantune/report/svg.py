"""Matplotlib figures as inline SVG in the font and colors of the page, with reproducible bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Matplotlib has no CSS variables: figures use these placeholder colors, which `inline` replaces.
INK, MUTED, LINE, BAND = "#010101", "#020202", "#030303", "#040404"
RIGHT, WRONG, FIRST, SECOND, THIRD = "#050505", "#060606", "#070707", "#080808", "#090909"
PAPER = "#010102"
VARIABLES = {
    PAPER: "var(--paper)",
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    BAND: "var(--band)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
}
STYLE: Any = {  # matplotlib 3.11 types the keys one by one, earlier releases do not
    "svg.fonttype": "none",  # text stays text: small, searchable, in the font of the page
    "svg.hashsalt": "cleantune",  # ids follow from content, so equal inputs give equal bytes
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the layout is the same on every machine
    "font.size": 10,
    "text.parse_math": False,  # "$x$" is a valid class name
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.6,
    "figure.dpi": 72,
}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Plot(NamedTuple):
    """Figure with its title and note."""

    title: str
    svg: Markup
    note: str = ""


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """Create a figure in the style of the page; draw on it and call `inline` inside the context.

    Args:
        width: Width in SVG units, about CSS pixels.
        height: Height in SVG units.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a matplotlibrc of the user must not change a report
        mpl.rcParams.update(STYLE)
        # The browser has glyphs that DejaVu lacks; matplotlib only measures with it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")


def label_log_axis(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers; matplotlib's default labels are formulas, which are disabled.

    Args:
        axis: Axis with a logarithmic scale.
        low: Smallest value in the figure, above 0.
        high: Largest value in the figure.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def sanitize(text: object, limit: int | None = None) -> str:
    """Return a text on one line, without characters that XML forbids, cut to a limit with an ellipsis."""
    line = CONTROL.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"[ \t-\r]+", " ", str(text))).strip(" ")
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """Return a figure as an `<svg>` element for a page.

    Args:
        figure: Figure drawn in `canvas`.
        name: Unique name on the page, the prefix of all ids in the figure.
        alt: Text description of the figure.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    # The input comes from matplotlib, one line above.
    root = ElementTree.fromstring(buffer.getvalue())
    for child in [*root.findall(f"{SVG}metadata"), *root.findall(f"{SVG}defs[{SVG}style]")]:
        root.remove(child)  # matplotlib's style sheet would apply to the whole page
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        _adapt(element, name, used)
    view = root.get("viewBox", "0 0 100 100")
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": sanitize(alt), "class": "plot"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # the serializer escapes text


def _references(element: ElementTree.Element) -> Iterator[str]:
    for value in element.attrib.values():
        yield from re.findall(r"url\(#([^)]+)\)", value)
    link = element.get(f"{XLINK}href")
    if link:
        yield link.removeprefix("#")


def _adapt(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Adapt one element to the page: no namespace, no unused ids, colors and font of the page."""
    element.tag = element.tag.removeprefix(SVG)
    element.tail = None if element.tail is None else element.tail.strip() or None
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            if value not in used:
                continue
            value = f"{name}-{value}"
        elif key == f"{XLINK}href":
            key, value = "href", f"#{name}-{value.removeprefix('#')}"
        else:
            value = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value)
        if key == "style":
            value = _page_style(value)
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif key in ("d", "x", "y", "width", "height", "transform", "points"):
            value = re.sub(r"-?\d+\.\d{2,}", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), value)
        attributes[key] = value
    element.attrib.clear()
    element.attrib.update(attributes)
    if element.text is not None and not element.text.strip():
        element.text = None


def _page_style(style: str) -> str:
    style = re.sub(r"#0[1-9]0[1-9]0[1-9]", lambda match: VARIABLES.get(match[0], match[0]), style)
    style = re.sub(r"font:\s*(?:normal |bold |\d00 )*([\d.]+px)[^;]*", r"font-size: \1", style)
    style = re.sub(r"font-family:[^;]*;?\s*", "", style)
    return style.strip()
