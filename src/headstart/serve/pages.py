"""The two HTML pages. Each is one file, and its policy lets a browser run only the style and the script inside it."""

import base64
import re
from hashlib import sha256
from typing import Any

from starlette.responses import HTMLResponse

from headstart.html import environment


def html_page(template: str, **values: Any) -> HTMLResponse:
    """With a Content-Security-Policy that names what is inside by hash and allows nothing else."""
    html = environment().get_template(template).render(**values)
    styles, scripts = (
        " ".join(_source(text) for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)) or "'none'"
        for tag in ("style", "script")
    )
    policy = (
        f"default-src 'none'; style-src {styles}; script-src {scripts}; img-src 'self' blob: data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
