"""HTML pages that are one file each: the frame with its policy, hostile text made harmless, tables, and small charts.

Nothing here knows what a page is about, and no room is imported: the report of evaluations is made of it, and that of
training draws its curves with it.

    text.py     text of models and users as HTML: escaped, control and bidi characters as code points
    frame.py    the document: style and script inline, allowed by their hashes, everything else forbidden
    tables.py   tables with headers, numbers to the right
    curves.py   lines over steps, as SVG
    tokens.py   tokens as chips, with their turns, states and losses; reached by keyboard
    plots.py    bars with intervals, histograms, points with intervals, spans of time, as SVG
"""

from __future__ import annotations
