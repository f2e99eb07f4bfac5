"""The mended chat template: the smallest rewrite of the model's own, or our template of its family, proved.

Proved means: all checks of template, round trip and vocabulary run again on it, some of the findings are gone and no
new one has come. What is proved is taken as it is written, so nothing is ever mended blindly.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from punie_mlx.chat import templates
from punie_mlx.doctor import table, usage
from punie_mlx.doctor.examination import STATIC, static
from punie_mlx.doctor.findings import SEVERITIES, Examined, Finding, examine
from punie_mlx.doctor.jinja_text import Edit, Text, apply, escaped_private, visible_private
from punie_mlx.doctor.rewrites import REWRITES, Rewrite
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.errors import ConfigError
from punie_mlx.files import refuse_existing, write_text

FILE, MENDED = "chat_template.jinja", "chat_template.mended.jinja"
_WEIGHTS = {"high": 10_000, "medium": 100, "low": 1}
_PRICED = _WEIGHTS["high"] - _WEIGHTS["medium"]  # what a finding of high severity weighs more than another
_MOST = 40  # rewrites of one template
_TOGETHER = 16  # edits of one rewrite that are tried one by one
_SAME = 12  # characters around a user's words by which two templates frame them alike
_WORD = "Quorvex-18"
_USER = {"role": "user", "content": _WORD}
_TOOL = {"type": "function", "function": {"name": "look_up_orbit", "description": "Where it is.", "parameters": {}}}
_PLAIN = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER],
    [_USER, {"role": "assistant", "content": "Aye."}, {"role": "user", "content": "And?"}],
)
_LATER = [*_PLAIN[1], {"role": "assistant", "content": "Aye."}, {"role": "system", "content": "Rhyme."}, _USER]
_PICTURE = [{"type": "text", "text": _WORD}, {"type": "image", "image": "a.png"}]


@dataclass(frozen=True)
class Mended:
    """A template that is better than the one that was given.

    way: "rewrite" of its own text, where `rewrites` says what was done, or "family template" of `family`. before and
    after: findings. file: where it was written.
    """

    template: str
    way: str
    family: str | None
    diff: str
    before: tuple[Finding, ...]
    after: tuple[Finding, ...]
    usage: str
    rewrites: tuple[str, ...] = ()
    file: Path | None = None
    specimen: Specimen | None = field(default=None, repr=False, compare=False)

    @property
    def cleared(self) -> tuple[str, ...]:
        """Ids of the checks that found something before and find nothing now."""
        left = {f.check for f in self.after}
        return tuple(dict.fromkeys(f.check for f in self.before if f.check not in left))

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file) if self.file else None,
            "way": self.way,
            "family": self.family,
            "rewrites": list(self.rewrites),
            "cleared": list(self.cleared),
            "left": [f.to_json() for f in self.after],
            "diff": self.diff,
            "usage": self.usage,
            "template": self.template,
        }


@dataclass(frozen=True)
class _Candidate:
    """A template with what the checks say of it, and what was done to it."""

    specimen: Specimen
    found: Examined
    rewrites: tuple[str, ...] = ()
    family: str | None = None

    @cached_property
    def weights(self) -> Counter[str]:
        return _weights(self.found)

    @property
    def harm(self) -> tuple[int, ...]:
        """How many findings of each severity, the worst first."""
        return tuple(sum(f.severity == s for f in self.found.findings) for s in SEVERITIES)

    def betters(self, other: _Candidate) -> bool:
        """Whether findings of `other` are gone, or less grave, and none is new or graver.

        One that `other` hid, since it could not be rendered or another explained it, is not new. One of low severity
        is a fair price for one of high severity.
        """
        hidden = {check for check, _ in other.found.skipped}
        gone = {c: n - self.weights[c] for c, n in other.weights.items() if n > self.weights[c]}
        new = {c: n - other.weights[c] for c, n in self.weights.items() if n > other.weights[c] and c not in hidden}
        price = _WEIGHTS["medium"] if max(gone.values(), default=0) >= _PRICED else 0
        return bool(gone) and sum(new.values()) <= max(price - 1, 0)


def mend(specimen: Specimen, examined: Examined | None = None, family: str | None = None) -> Mended | None:
    """The template of `specimen`, mended as far as it can be; None where nothing can be made better.

    examined: what was found; checks that it left out do not count. family: whose template to take, by a user who knows
    the model: its own text is not rewritten then. Raises `ConfigError` where there is no such family, or it has other
    tokens.
    """
    if family is not None:
        templates.get(family)
    counted = _counted(examined)
    statically = {c.id for c in table.checks(*STATIC)}
    found = examined if examined is not None and counted >= statically else static(specimen)
    ill = _Candidate(specimen, _only(found, counted & statically))
    if not ill.found.findings:
        return None
    if family is not None:
        named = _proved(_with_family(specimen, family), counted, family=family)
        return _mended(ill, named) if named.harm < ill.harm else None
    ours = _family(ill, counted)
    own = _rewritten(ill, counted, ours) if specimen.template else ill
    better = [c for c in (own, ours) if c is not None and c.harm < ill.harm and c.betters(ill)]
    if not better:
        return None
    if len(better) == 2 and not _same_words(*(c.specimen for c in better)):
        return _mended(ill, min(better, key=lambda c: c.harm[:-1]))
    return _mended(ill, min(better, key=lambda c: c.harm))


def _same_words(one: Specimen, other: Specimen) -> bool:
    """Whether both tell the model of its tools in the same words. Where they do not, the words that the model was
    trained on are worth more than a finding of low severity."""
    return one.render([_USER], [_TOOL]) == other.render([_USER], [_TOOL])


def beside(specimen: Specimen) -> Path:
    """Where the mended template goes if nobody says: next to the template, never in its place."""
    directory = specimen.directory
    given = Path(specimen.name)
    if given.is_file():
        return given.with_name(f"{given.stem}.mended{given.suffix or '.jinja'}")
    return (directory or Path()) / MENDED


def write(mended: Mended, out: Path, *, overwrite: bool = False) -> Mended:
    """`mended` in the file `out`, whole or not at all. Raises `OutputError`, `DiskError`."""
    refuse_existing(out, overwrite)
    write_text(out, mended.template)
    told = usage.usage(out, mended.specimen) if mended.specimen else mended.usage
    return replace(mended, file=out, usage=told)


def _mended(ill: _Candidate, well: _Candidate) -> Mended:
    before, after = ill.specimen.template, well.specimen.template
    old, new = ([f"{line}\n" for line in t.splitlines()] for t in (before, after))
    diff = difflib.unified_diff(old, new, ill.specimen.name, f"{ill.specimen.name} (mended)")
    return Mended(
        template=after,
        way="family template" if well.family else "rewrite",
        family=well.family,
        diff=visible_private("".join(diff)),
        before=ill.found.findings,
        after=well.found.findings,
        usage=usage.usage(beside(ill.specimen), well.specimen),
        rewrites=tuple(dict.fromkeys(well.rewrites)),
        specimen=well.specimen,
    )


# ---- proof ----


def _weights(found: Examined) -> Counter[str]:
    """How grave the findings of each check are; a check may name a lesser fault once the graver one is gone."""
    weights: Counter[str] = Counter()
    for finding in found.findings:
        weights[finding.check] += _WEIGHTS[finding.severity]
    return weights


def _counted(examined: Examined | None) -> set[str]:
    """Ids of the checks that count: those that were made, or all."""
    every = {c.id for c in table.checks()}
    if examined is None:
        return every
    made = {*examined.passed, *(check for check, _ in examined.skipped), *(f.check for f in examined.findings)}
    return every & made or every


def _only(found: Examined, counted: set[str]) -> Examined:
    return replace(found, findings=tuple(f for f in found.findings if f.check in counted))


def _proved(specimen: Specimen, counted: set[str], **told: Any) -> _Candidate:
    return _Candidate(specimen, _only(static(specimen), counted), **told)


@lru_cache(maxsize=16)
def _alone(template: str, name: str) -> Specimen:
    """A template without its tokenizer: what it has rendered for a look at it, it need not render for the proof."""
    return Specimen.of_text(template, name)


def _with(specimen: Specimen, template: str) -> Specimen:
    return specimen.with_template(template) if specimen.directory else _alone(template, specimen.name)


def _quick(specimen: Specimen, template: str, wanted: set[str]) -> Counter[str]:
    """Findings of the `wanted` checks on `template` without its tokenizer: what a full proof is worth trying for."""
    checks = [c for c in table.checks("template", "round-trip") if c.id in wanted]
    return _weights(examine(_alone(template, specimen.name), checks))


# ---- rewrites of its own text ----


def _rewritten(ill: _Candidate, counted: set[str], family: _Candidate | None) -> _Candidate:
    """What the rewrites make of it, one after another, as far as they help; late ones not where `family` is taken
    anyway."""
    best = ill
    for late in (False, True):
        if late and family is not None and _outdone(best, family):
            break
        for _ in range(_MOST):
            better = next(_steps(best, counted, late=late), None)
            if better is None:
                break
            best = better
    safe = best.specimen.with_template(escaped_private(best.specimen.template))
    if safe.template == best.specimen.template:
        return best
    escaped = _proved(safe, counted, rewrites=(*best.rewrites, "tokens of private use are escapes"))
    return escaped if escaped.harm <= best.harm and escaped.betters(ill) else best


def _outdone(own: _Candidate, family: _Candidate) -> bool:
    """Whether the template of the family clears something grave that no early rewrite does."""
    late = {c for r in REWRITES if r.late for c in r.clears}
    left = {f.check for f in own.found.findings if f.severity != "low"} - late
    return bool(left - set(family.weights)) and family.harm < own.harm


def _steps(ill: _Candidate, counted: set[str], *, late: bool) -> Iterator[_Candidate]:
    """Candidates that are better than `ill` by one rewrite: for each, the best of its proposals."""
    failing = set(ill.weights)
    text = Text(ill.specimen.template)
    for rewrite in REWRITES:
        wanted = failing.intersection(rewrite.clears)
        if not wanted or rewrite.late > late:
            continue
        least = _quick(ill.specimen, text.template, wanted)
        better: _Candidate | None = None
        for edits in _sets(rewrite, text, ill.specimen):
            found = _tried(ill, text, rewrite, edits, wanted, least, counted)
            if found is not None and (better is None or found.harm < better.harm):
                better, least = found, _quick(ill.specimen, found.specimen.template, wanted)
        if better is not None:
            yield better


def _sets(rewrite: Rewrite, text: Text, specimen: Specimen) -> Iterator[Sequence[Edit]]:
    for edits in rewrite.propose(text, specimen):
        if edits:
            yield edits
        if rewrite.apart and 1 < len(edits) <= _TOGETHER:
            yield from ([e] for e in edits)


def _tried(
    ill: _Candidate,
    text: Text,
    rewrite: Rewrite,
    edits: Sequence[Edit],
    wanted: set[str],
    least: Counter[str],
    counted: set[str],
) -> _Candidate | None:
    """What `edits`, or the fewest of them that do, make of it, where they help."""

    def helps(some: Sequence[Edit], than: Counter[str]) -> Counter[str] | None:
        changed = apply(text.template, some)
        if changed == text.template:
            return None
        now = _quick(ill.specimen, changed, wanted)
        return now if all(now[c] <= than[c] for c in now) and now.total() < than.total() else None

    reached = helps(edits, least)
    if reached is None:
        return None

    def choices() -> Iterator[Sequence[Edit]]:
        if rewrite.everywhere:
            yield edits
        few = list(edits)
        for edit in edits if len(edits) > 1 else ():
            fewer = [e for e in few if e is not edit]
            now = helps(fewer, least) if fewer else None
            if now is not None and now.total() <= reached.total():
                few = fewer
        yield few
        if not rewrite.everywhere:
            yield edits

    for some in choices():
        specimen = _with(ill.specimen, apply(text.template, some))
        if rewrite.plain and not _same_plain(ill, specimen):
            continue
        if ill.specimen.wire and specimen.detection.formats != ill.specimen.detection.formats:
            continue
        candidate = _proved(specimen, counted, rewrites=(*ill.rewrites, rewrite.does))
        if candidate.betters(ill):
            return candidate
    return None


def _same_plain(ill: _Candidate, other: Specimen) -> bool:
    """Whether conversations without tools that `ill` can render read the same in both.

    So does one in which the system speaks again: only where it is not heard well there may it be heard elsewhere.
    """
    for messages in _PLAIN if "system-messages" in ill.weights else (*_PLAIN, _LATER):
        for asked in (False, True):
            before = ill.specimen.render(messages, add_generation_prompt=asked)
            if not before.failed and before != other.render(messages, add_generation_prompt=asked):
                return False
    return True


# ---- the template of its family ----


def _family(ill: _Candidate, counted: set[str]) -> _Candidate | None:
    """Our template of its family, where it frames turns as the model's own does."""
    specimen = ill.specimen
    family = templates.family_of(specimen.template, specimen.vocabulary or None)
    if family is None:
        return None
    try:
        ours = _with_family(specimen, family)
    except ConfigError:
        return None  # the vocabulary lacks its tokens, or does not tell which of them frame a call
    if specimen.template and not (_same_frame(specimen, ours) and _sees(ours) >= _sees(specimen)):
        return None
    return _proved(ours, counted, family=family)


def _with_family(specimen: Specimen, family: str) -> Specimen:
    return specimen.with_template(templates.make(family, specimen.vocabulary or None, specimen.template))


def _sees(specimen: Specimen) -> bool:
    """Whether it writes anything for a picture: no mending makes a model blind."""
    pictured, told = (specimen.render([_USER | {"content": c}]) for c in (_PICTURE, _PICTURE[:1]))
    return not pictured.failed and pictured.text != told.text and _PICTURE[1]["image"] not in pictured.text


def _same_frame(one: Specimen, other: Specimen) -> bool:
    """Whether the words of a user stand between the same characters: a template of another family is no mending."""
    around: list[tuple[str, str]] = []
    for specimen in (one, other):
        before, found, after = specimen.render([_USER], add_generation_prompt=False).text.partition(_WORD)
        if not found:
            return True  # its own template loses the words, so it shows no frame to keep
        around.append((before.strip()[-_SAME:], after.strip()[:_SAME]))
    (before, after), (our_before, our_after) = around
    return before == our_before and (after.startswith(our_after) or our_after.startswith(after))
