"""What all pages of Castor look like: each is one file that needs nothing else, light and dark."""

from __future__ import annotations

from html import escape
from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--page:#fbfbfa;--card:#ffffff;--text:#1c1e21;--dim:#63686f;
--line:#e2e3e5;--good:#009e73;--fair:#b07800;--bad:#d55e00;--link:#0072b2}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--card:#1d2024;--text:#e8e8e6;--dim:#9aa0a8;
--line:#33373d;--good:#3cc79c;--fair:#e6a93a;--bad:#ff8a4c;--link:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px}
h2{font-size:19px;margin:40px 0 6px}
p{margin:6px 0 12px;max-width:75ch}.dim,caption{color:var(--dim)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:20px 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:14px 16px}
.tile b{display:block;font-size:27px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--dim);font-size:13px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(360px,1fr));gap:12px}
.card{margin:12px 0;overflow-x:auto}.pair .card{margin:0}
svg{display:block;width:100%;height:auto}svg text{fill:currentColor}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px 4px 0;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{color:var(--dim);font-weight:600}td.n,th.n{text-align:right}tr:last-child td{border-bottom:0}
.good{color:var(--good)}.fair{color:var(--fair)}.bad{color:var(--bad)}
.bar{display:inline-block;width:90px;height:9px;margin-left:8px;position:relative;
border-left:1px solid var(--dim);vertical-align:middle}
.bar i{position:absolute;left:0;top:0;height:9px;background:currentColor;border-radius:0 3px 3px 0}
details{margin:12px 0}summary{cursor:pointer;color:var(--link)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:12px/1.5 ui-monospace,Menlo,Consolas,monospace}
"""


def html_page(title: str, body: str, *, style: str = "") -> str:
    """Return a page.

    Args:
        title: of the window, as text.
        body: HTML.
        style: CSS of this page alone.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}</main></body></html>\n"
    )
