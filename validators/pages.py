"""Pages of data docs as plain files that load nothing from anywhere."""

import html
import re
from typing import Final

_DROPPED: Final = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<link\b[^>]*>|<img\b[^>]*>|<footer\b.*?</footer>|<title>.*?</title>|<!--.*?-->"
    r'|<div class="modal.*?(?=<nav\b)|<div class="card mb-3">.*?(?=<div class="card d-md-block)',  # buttons that need scripts
    re.DOTALL | re.IGNORECASE,
)
_HEAD: Final = """
<title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1d2530; background: #fff }}
body {{ margin: 0 auto; max-width: 84rem; padding: 1rem 1.5rem }}
a {{ color: #0b5cad }}
h1 {{ font-size: 1.5rem }} h4, h5, h6 {{ font-size: 1rem; margin: 1rem 0 .3rem }}
nav {{ height: auto !important }} nav ol {{ list-style: none; padding: 0 }}
.breadcrumb-item.active, td hr, li hr {{ display: none }}
nav ul {{ columns: 3; list-style: none; padding: 0 }}
table {{ border-collapse: collapse; width: 100%; margin: .3rem 0 1rem }}
th, td {{ border: 1px solid #d5dae0; padding: .35rem .6rem; text-align: left; vertical-align: top; overflow-wrap: break-word }}
th, .alert {{ background: #f0f3f6 }}
.alert {{ padding: .3rem .7rem; border-left: 4px solid #8794a3; margin-top: 1.2rem }}
.badge, code {{ background: #e9edf1; border-radius: 3px; padding: 0 .3rem; font-family: ui-monospace, monospace; font-size: .9em }}
.collapse {{ display: none }} .collapse:target {{ display: block }}
.text-success::before {{ content: "\\2713"; color: #1a7f37 }}
i.text-danger::before {{ content: "\\2717"; color: #c22 }} i.text-warning::before {{ content: "!"; color: #b36b00 }}
.critical {{ color: #c22; font-weight: 600 }} .warning {{ color: #b36b00; font-weight: 600 }}
</style>
"""


def offline(page: str, title: str, summary: str) -> str:
    """A page of data docs without scripts, images or anything else from elsewhere, in a plain style of its own.

    A content security policy in the page forbids the browser to load what a later version of the library may add.
    """
    page = _DROPPED.sub("", page)
    page = re.sub(r'href="[./]*/index\.html"', 'href="index.html"', page)
    page = re.sub(r'href="[./]*/expectations/[^"]*"', 'href="expectations.html"', page)
    page = page.replace("<head>", "<head>" + _HEAD.format(title=html.escape(title)), 1)
    page = page.replace("<body>", f"<body>\n<h1>{html.escape(title)}</h1>\n{summary}", 1)
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"
