"""The two HTML pages: each one file, whose own style and script are all that a browser may run."""

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from headstart.html import environment
from headstart.serve.limits import Limits


@dataclass(frozen=True)
class Page:
    """policy: its Content-Security-Policy, which names what is inside by hash and allows nothing else."""

    html: str
    policy: str


def front_page(model: dict[str, Any], limits: Limits) -> Page:
    """model: as of /model."""
    return _page("serve.html", model=model, limits=limits)


def docs_page(document: dict[str, Any], origin: str) -> Page:
    """document: OpenAPI; origin: how this server is called, for the examples."""
    return _page("serve_docs.html", document=document, origin=origin)


def _page(template: str, **values: Any) -> Page:
    html = environment().get_template(template).render(**values)
    styles, scripts = (
        " ".join(_source(text) for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)) or "'none'"
        for tag in ("style", "script")
    )
    policy = (
        f"default-src 'none'; style-src {styles}; script-src {scripts}; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    return Page(html, policy)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
