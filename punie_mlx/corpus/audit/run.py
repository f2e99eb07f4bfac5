"""The audit itself: which checks there are, and running them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from punie_mlx.corpus.audit import across, balance
from punie_mlx.corpus.audit.model import SEVERITIES, Audit, Check, Corpus
from punie_mlx.corpus.audit.rows import ROW_CHECKS, ROW_FIGURES
from punie_mlx.errors import ConfigError

CHECKS: tuple[Check, ...] = (*ROW_CHECKS, *across.CHECKS, *balance.CHECKS)
FIGURES = (*balance.FIGURES, *ROW_FIGURES)
_NEEDS = {"tokenizer": "needs --tokenizer", "suites": "needs --suite"}


def chosen(only: Iterable[str] = (), skip: Iterable[str] = ()) -> tuple[Check, ...]:
    """The checks named `only` (all where none is), without those named `skip`. Raises `ConfigError` for other names."""
    only, skip = set(only), set(skip)
    names = [check.name for check in CHECKS]
    for name in sorted((only | skip) - set(names)):
        near = difflib.get_close_matches(name, names, 1)
        raise ConfigError(f"no check is called {name}: {f'{near[0]}?' if near else 'they are'} ({', '.join(names)})")
    return tuple(c for c in CHECKS if (not only or c.name in only) and c.name not in skip)


def audit(corpus: Corpus, checks: Iterable[Check] = CHECKS) -> Audit:
    """Everything that `checks` find in `corpus`, the worst first and then in the order of the checks."""
    run, skipped = [], {}
    for check in checks:
        if check.needs and not getattr(corpus, check.needs):
            skipped[check.name] = _NEEDS[check.needs]
        else:
            run.append(check)
    findings = [finding for check in run for finding in check.findings(corpus)]
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    figures = [f for f in FIGURES if not f.needs or getattr(corpus, f.needs)]
    return Audit(
        corpus,
        tuple(run),
        tuple(findings),
        {f.name: f.run(corpus) for f in figures},
        {f.name: f.title for f in figures},
        skipped,
    )
