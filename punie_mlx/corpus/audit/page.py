"""An audit as one HTML file: nothing is fetched from outside, no script runs, light and dark, every check folds."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from punie_mlx.corpus.audit.model import SEVERITIES, Audit, Finding, shown
from punie_mlx.corpus.audit.report import Group, groups, lines, plain, summary

MOST = 500  # findings of a check; more make a page that browsers scroll badly
_ALSO = 8  # other places of a finding

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 18%, Canvas); --soft: color-mix(in srgb,
  CanvasText 6%, Canvas); --error: light-dark(#b3261e, #ff8a80); --warning: light-dark(#8a5300, #ffc46b);
  --note: light-dark(#1a5f8a, #8ecbf2); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; }
code { font: .9em ui-monospace, monospace; } td code { white-space: nowrap; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: 0 .8rem; }
details[open] { padding-bottom: .8rem; } summary { cursor: pointer; padding: .5rem 0; }
.tag { font-weight: 600; } .error { color: var(--error); } .warning { color: var(--warning); }
.note { color: var(--note); } .dim { opacity: .7; }
.wide { overflow-x: auto; }
"""


def page(audit: Audit) -> str:
    """The HTML of an audit."""
    return "\n".join(_page(audit)) + "\n"


def _page(audit: Audit) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Audit of {_text(str(audit.corpus.path))}</title>\n<style>{_STYLE}</style>"
    yield f"<h1>Audit of {_text(str(audit.corpus.path))}</h1>\n<p>{_text(summary(audit))}</p>"
    yield "<h2>Figures</h2>"
    yield from _figures(audit)
    found = groups(audit)
    for severity in SEVERITIES:
        if of_it := [g for g in found if g.severity == severity]:
            yield f'<h2 class="{severity}">{severity.capitalize()}s</h2>'
            for group in of_it:
                yield from _group(group, audit)
    yield "<h2>Clean</h2>"
    hit = {g.check.name for g in found}
    yield f"<p>{_text(', '.join(c.title for c in audit.checks if c.name not in hit)) or 'None.'}</p>"
    for line in lines(audit):
        yield f'<p class="dim">{_text(line)}</p>'
    yield "</html>"


def _figures(audit: Audit) -> Iterator[str]:
    splits = list(audit.corpus.splits)
    yield '<div class="wide"><table><tr><th></th>' + "".join(f'<th class="n">{_text(s)}</th>' for s in splits)
    yield '<th class="n">all</th></tr>'
    for name, values in audit.figures.items():
        cells = "".join(f'<td class="n">{_text(shown(values.get(key, "")))}</td>' for key in (*splits, ""))
        yield f"<tr><td>{_text(audit.titles[name])}</td>{cells}</tr>"
    yield "</table></div>"


def _group(group: Group, audit: Audit) -> Iterator[str]:
    counts = ", ".join(f"{split} {group.splits[split]}" for split in audit.corpus.splits if group.splits[split])
    yield (
        f'<details><summary><span class="tag {group.severity}">{len(group.findings)}</span> {_text(group.check.title)}'
        f' <code>{_text(group.check.name)}</code> <span class="dim">{_text(counts)}</span></summary>'
    )
    yield f'<p>{_text(group.check.help)}</p>\n<div class="wide"><table>'
    for finding in group.findings[:MOST]:
        yield _row(finding)
    yield "</table></div>"
    if (more := len(group.findings) - MOST) > 0:
        yield f'<p class="dim">{more} more: the JSON report has all.</p>'
    yield "</details>"


def _row(finding: Finding) -> str:
    also = ", ".join(finding.also[:_ALSO]) + (f" and {more} more" if (more := len(finding.also) - _ALSO) > 0 else "")
    return (
        f'<tr><td><code>{_text(finding.where)}</code></td><td class="{finding.severity}">{finding.severity}</td>'
        f'<td>{_text(finding.detail)}</td><td class="dim">{_text(also)}</td></tr>'
    )


def _text(value: str) -> str:
    return escape(plain(value))
