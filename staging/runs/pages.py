"""HTML pages from the templates of this folder; equal values give equal bytes."""

from __future__ import annotations

from pathlib import Path

from wsi.store import atomic_text


def write_page(path: Path, template: str, **values: object) -> None:
    """Render a template and write it whole.

    Raises:
        StorageError: the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  (slow import)

    environment = Environment(
        loader=PackageLoader("staging.runs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    atomic_text(path, environment.get_template(template).render(**values))
