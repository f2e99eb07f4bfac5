"""The report of results as one HTML page: who was scored, how well, where it went wrong, how fast, at what size.

punie-mlx report base.json fused.json sweep.json runs/adapter --html report.html

inputs.py     which result each path holds
figures.py    what the page counts that a summary has not: retries, repeats, which tool was called for which
page.py       the sections in order, and how many failed cases fit
overview.py   head, warnings, the table, categories
calls.py      call or not, confusion of tools
timing.py     seconds a query and a phase
curves.py     loss, and what quantizing costs
cases.py      the list of cases that failed
unfold.py     one case: what was asked, and what each run made of it
exchange.py   one exchange: tokens, events, bodies, spans
"""

from __future__ import annotations
