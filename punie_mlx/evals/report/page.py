"""The page: its sections in order, and how much fits.

write_page(read_inputs(paths), Path("report.html"))
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from punie_mlx.evals.report import calls, curves, overview, timing
from punie_mlx.evals.report.cases import Limits, failures, filters, link, listed
from punie_mlx.evals.report.figures import Key
from punie_mlx.evals.report.inputs import Inputs, Run
from punie_mlx.files import write_text
from punie_mlx.pages.frame import asset, document
from punie_mlx.pages.text import Html, join, tag

ASSETS = Path(__file__).parent / "assets"
WORDS = 4000  # bytes of what is said around the cases


def write_page(inputs: Inputs, path: Path, limits: Limits | None = None) -> list[str]:
    """Write the page of `inputs`; what was left out of it is returned.

    Raises:
        OutputError: `path` cannot be written.
        DiskError: the disk is full.
    """
    made, notes = page(inputs, limits or Limits())
    write_text(path, made)
    return notes


def page(inputs: Inputs, limits: Limits, made: datetime.datetime | None = None) -> tuple[Html, list[str]]:
    """The HTML, and what had to be left out of it."""
    made = made or datetime.datetime.now(datetime.UTC)
    runs = inputs.runs
    failed = failures(runs)
    links = link(failed)
    parts = [
        ("runs", "Runs", overview.summary(runs) if runs else Html("")),
        ("categories", "Categories", _with_legend(runs, overview.categories)),
        ("checks", "Checks", _with_legend(runs, overview.checks)),
        ("calls", "Call or not", _with_legend(runs, calls.call_or_not)),
        ("confusion", "Tools confused", _confusion(runs, links)),
        ("time", "Time", _time(inputs)),
        ("loss", "Training loss", curves.losses(inputs.trainings) if inputs.trainings else Html("")),
        ("quantization", "Size and accuracy", curves.sweeps(inputs.sweeps)),
        ("pipeline", "Pipeline", curves.pipelines(inputs.pipelines)),
    ]
    sections = [_section(*part) for part in parts if part[2]]
    names = [(key, title) for key, title, content in parts if content]
    if runs:
        names.append(("failed", f"Failed cases ({len(failed):,})"))
    title = overview.title(inputs)
    head = join([tag("h1", title), overview.told(overview.warnings(inputs)), overview.head(inputs), _nav(names)])
    style = asset("report.css", ASSETS)
    script = asset("curves.js") + asset("report.js", ASSETS)
    form = filters(runs, failed) if failed else Html("")
    frame = document(title, join([head, *sections, form]), style=style, script=script)
    body, notes = listed(runs, failed, limits, len(frame.encode()) + WORDS)
    if runs:
        sections.append(_failed(runs, body, notes, len(failed), form))
    main = tag("main", tag("header", head), *sections, overview.footer(made, notes))
    return document(title, main, style=style, script=script), notes


def _section(key: str, title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content, id=key)


def _nav(names: Sequence[tuple[str, str]]) -> Html:
    items = (tag("li", tag("a", title, href=f"#{key}")) for key, title in names)
    return tag("nav", tag("ul", *items), aria_label="Sections")


def _with_legend(runs: Sequence[Run], made: Callable[[Sequence[Run]], Html]) -> Html:
    return join([overview.legend(runs), made(runs)]) if runs else Html("")


def _confusion(runs: Sequence[Run], links: dict[Key, Html]) -> Html:
    return calls.confusions(runs, lambda key: links.get(key, tag("span", key[1]))) if runs else Html("")


def _time(inputs: Inputs) -> Html:
    runs = inputs.runs
    parts = [timing.queries(runs), timing.phases(runs)] if runs else []
    return join([*parts, timing.profiles(inputs.profiles)])


def _failed(runs: Sequence[Run], body: Html, notes: Sequence[str], count: int, form: Html) -> Html:
    if not count:
        said = [tag("p", "None: every run passed every case.")]
    else:
        of = " at least one run" if len(runs) > 1 else " the run"
        said = [
            tag("p", f"{count:,} cases that{of} failed. Each unfolds to what was asked, and to what the model was "
                     "given, wrote and did."),
            *(tag("p", note, class_="note") for note in notes),
        ]  # fmt: skip
    return tag("section", tag("h2", "Failed cases"), *said, form, body, id="failed")
