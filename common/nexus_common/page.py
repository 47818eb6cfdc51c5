"""What every page that a person opens or prints has in common: one file, no script, nothing from outside, its look.

The policy in its head lets a browser load nothing, whatever the page holds.
"""

import html
from typing import Final


def document(title: str, body: str, style: str = "", points: float = 9) -> str:
    """One self-contained HTML file of ``body``, which is HTML already; printed in letters of so many ``points``."""
    return _DOCUMENT.format(title=html.escape(title), points=points, style=STYLE + style, body=body)


_DOCUMENT: Final = """<!doctype html>
<html lang="en" style="--print: {points:.1f}pt">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #c9d1d9; --tint: #f3f5f8; --mark: #9a3412 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --soft: #9aa4af; --line: #3b434c; --tint: #1d232b; --mark: #fdba74 }
  html { background: #12161b }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 58rem; padding: 2rem 1.25rem; color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.5 "Liberation Sans", Arial, Helvetica, sans-serif }
h1 { font-size: 1.75em; line-height: 1.2; margin: 0 0 .3em }
h2 { font-size: 1.1em; line-height: 1.3; margin: 1.6em 0 .4em; padding-top: .5em; border-top: 1px solid var(--line);
  break-after: avoid }
p, ul, table, blockquote { margin: .5em 0 }
p { orphans: 3; widows: 3 }
ul { padding-left: 1.2em }
li { margin: .15em 0 }
h1 + p, table + p { color: var(--soft) }
em, td { unicode-bidi: isolate }
code { font-family: "Liberation Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .9em }
td code { white-space: nowrap }
blockquote { padding: .5em .8em; background: var(--tint); border-left: 4px solid var(--mark); break-inside: avoid }
blockquote p { margin: 0 }
table { border-collapse: collapse; width: 100%; font-size: .92em; line-height: 1.35 }
table + p { font-size: .85em }
th { color: var(--soft); font-weight: normal }
th, td { padding: .3em .8em .3em 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
tr { break-inside: avoid }
@page { size: A4; margin: 11mm 16mm 13mm;
  @bottom-right { content: "page " counter(page) " of " counter(pages); font: 7.5pt Arial, sans-serif } }
@media print {
  body { max-width: none; padding: 0; font-size: var(--print); line-height: 1.3 }
  h2 { margin-top: .9em; padding-top: .35em }
  p, ul, table, blockquote { margin: .35em 0 }
  th, td { padding-top: .17em; padding-bottom: .17em }
}
"""
