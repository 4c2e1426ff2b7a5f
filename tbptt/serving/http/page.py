"""The page: one HTML file, and headers that allow its own script and style and nothing else."""

import base64
import hashlib
import pathlib
import re


def _digests(html: str, tag: str) -> str:
    """Returns the sources of all elements `tag` for a Content-Security-Policy."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()) for part in parts)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)


_HTML = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
POLICY = (
    f"default-src 'none'; script-src {_digests(_HTML, 'script')}; "
    f"style-src {_digests(_HTML, 'style')}; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
PAGE = _HTML.encode()
PAGE_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)
