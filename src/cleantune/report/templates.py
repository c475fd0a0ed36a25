"""What all pages are made by: a template with the shared head, style and filters around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cleantune.report.svg import sanitize
from cleantune.utils import format as fmt

FILTERS: dict[str, Callable[..., str]] = {
    "plain": sanitize, "percent": fmt.percent, "count": fmt.count, "duration": fmt.duration,
}  # fmt: skip
"""How templates write texts, shares, numbers and seconds."""


def render_page(package: str, template: str, parts: Mapping[str, Any], **filters: Callable[..., str]) -> str:
    """A page as HTML that needs no network.

    Args:
        package: Where the template is; it finds `base.html` and `settings.html` of `cleantune.report` too.
        template: Its file.
        parts: What the template names; one that is missing is an error, and text is escaped.
        **filters: In the place of `FILTERS`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, "cleantune.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS | filters)
    css = (Path(__file__).parent / "page.css").read_text("utf-8")
    return environment.get_template(template).render(css=Markup(css), **parts)
