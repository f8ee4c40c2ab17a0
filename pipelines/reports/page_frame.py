"""A page that stands for itself: it loads nothing, runs nothing, and looks like every other page of ours."""

from typing import Final

_LIGHT: Final = (
    "--ink: #1d2530; --faint: #5a6572; --line: #dfe4ea; --paper: #fff; --ground: #f5f7f9; "
    "--accent: #0b5cad; --tint: #eef5fc; --mark: #b9cfe6"
)
_DARK: Final = (
    "--ink: #dfe5ec; --faint: #9aa7b5; --line: #313a45; --paper: #171c23; --ground: #0f1318; "
    "--accent: #6cb3f5; --tint: #182a3d; --mark: #3d5f82"
)
"""Colours of a page by day and by night, as custom properties."""

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
@media print {{ :root {{ color-scheme: light; {light} }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 }}
main {{ max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }}
h1 {{ font-size: 1.7rem; margin: .5rem 0 0 }}
h2 {{ font-size: 1.3rem; margin: 2.6rem 0 .6rem }}
h3 {{ font-size: 1.02rem; margin: 1.4rem 0 .4rem }}
p {{ margin: .3rem 0 .8rem }}
.faint, small {{ color: var(--faint) }}
small {{ font-size: .84rem; font-weight: 400; display: block; overflow-wrap: anywhere }}
a {{ color: var(--accent) }}
nav p {{ display: flex; flex-wrap: wrap; gap: 0 1rem; margin: .1rem 0 }}
nav b {{ flex: 0 0 8rem }}
.card > :first-child {{ margin-top: 0 }}
.card {{ background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.2rem }}
.card {{ margin: .8rem 0; overflow-x: auto }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 1.5rem }}
figure {{ margin: .4rem 0 }}
figcaption {{ font-weight: 600; margin-bottom: .2rem }}
svg {{ width: 100%; height: auto; display: block }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .38rem .55rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line) }}
thead th {{ border-top: 0; color: var(--faint); font-weight: 600 }}
tbody th {{ font-weight: 600 }}
td.n, th.n:not([colspan]) {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
th[colspan] {{ text-align: center }}
.first {{ border-left: 1px solid var(--line); padding-left: .9rem }}
tr.ours {{ background: var(--tint) }}
tr.mark > * {{ border-top: 2px solid var(--mark) }}
.badge {{ font-size: .75rem; font-weight: 600; padding: .08rem .45rem; border-radius: 9px; background: var(--line); color: var(--faint) }}
.badge.ours {{ background: var(--accent); color: var(--paper) }}
.legend {{ list-style: none; margin: .5rem 0; padding: 0 }}
.legend.row {{ display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }}
.legend li {{ padding-left: 1.4rem; position: relative; overflow-wrap: anywhere }}
.swatch {{ position: absolute; left: 0; top: .35em; width: .85em; height: .85em; border-radius: 3px }}
details {{ margin: .6rem 0 }}
summary {{ cursor: pointer; color: var(--accent) }}
@media print {{ .card {{ border: 0; padding: 0; break-inside: avoid }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="faint">{summary}</p>
{body}
</main>
</body>
</html>
"""


def framed(title: str, summary: str, body: str) -> str:
    """A page.

    Args:
        title: its heading, as HTML.
        summary: a line below it, as HTML.
        body: all else, as HTML.
    """
    return _PAGE.format(light=_LIGHT, dark=_DARK, title=title, summary=summary, body=body)
