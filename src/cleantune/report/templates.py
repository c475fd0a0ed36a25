"""Templates of all pages: shared head, CSS, macros and filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cleantune.report.svg import sanitize
from cleantune.utils.format import count, decimal, duration, percent, probability

FILTERS: dict[str, Callable[..., str]] = {
    "sanitize": sanitize,
    "count": count, "decimal": decimal, "duration": duration, "percent": percent,
    "probability": probability,
}  # fmt: skip
"""Formats of texts, numbers, seconds and fractions in templates."""


def render_page(package: str, template: str, parts: Mapping[str, Any]) -> str:
    """Return a page as HTML that needs no network.

    Args:
        package: Package of the template; templates of `cleantune.report` are available too.
        template: File name of the template.
        parts: Variables of the template. A missing one is an error; text is escaped.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, "cleantune.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    css = (Path(__file__).parent / "page.css").read_text("utf-8")
    return environment.get_template(template).render(css=Markup(css), **parts)
