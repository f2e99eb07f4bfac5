"""What template and tokenizer have to do with each other: markers, ends of turns, ids, and whether they match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.chat.render import encode
from punie_mlx.doctor import cases
from punie_mlx.doctor.excerpts import after, between, piece, shared, short
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.pages.text import visible
from punie_mlx.tensors import shapes

Json = dict[str, Any]
_TAG = re.compile(r"[<\[](?!\s)[^<>\[\]\s]+[>\]]")
_FRAME = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>")
_PRIVATE = re.compile("[\ue000-\uf8ff]+")
_ESCAPED = re.compile(r"\\u([eEfF][0-9a-fA-F]{3})")
_RESULT_TAGS = ("<tool_response>", "</tool_response>")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
_MANY = 6


def _needs_tokens(specimen: Specimen) -> None:
    if not specimen.has_vocabulary:
        raise Skip("a template alone has no vocabulary: give the model directory")


def _spelled(token: str) -> str:
    return visible(token).replace("\n", "\\n")


def _added(specimen: Specimen) -> dict[str, Any]:
    """The tokens that were added to the vocabulary, by spelling."""
    return {str(t): t for t in specimen.tokenizer.added_tokens_decoder.values()}


# ---- the template itself ----


def template_missing(specimen: Specimen) -> Iterator[Finding]:
    if specimen.template.strip():
        return
    where = specimen.directory
    files = sorted(p.name for p in where.iterdir()) if where else []
    yield Finding(
        "template-missing",
        "high",
        "the model has no chat template",
        (Shown("files", ", ".join(f for f in files if "token" in f or "template" in f) or "none of a tokenizer"),),
        "No server can write a conversation as the model was trained to read it: most refuse chat requests, others "
        "join the messages as plain text, without tools.",
        "Make one: `punie-mlx template make --family F --tokenizer DIR --out DIR/chat_template.jinja`, or copy that of "
        "the model that this one was made from.",
    )


def two_templates(specimen: Specimen) -> Iterator[Finding]:
    """Only files of a model directory, whose template may be another one than that under examination."""
    if specimen.directory is None:
        raise Skip("there is no model directory")
    found = {name: text for name, text in _templates(specimen.directory) if text.strip()}
    texts = dict.fromkeys(t.strip() for t in found.values())
    if len(texts) < 2:
        return
    (one, first), (other, second) = _two_different(found)
    a, b = _first_difference(first, second)
    yield Finding(
        "two-templates",
        "medium",
        f"the directory holds {len(texts)} different chat templates: {', '.join(found)}",
        (Shown(one, a), Shown(other, b)),
        "Which one is used depends on the program and its version: the same model calls tools in one and not in "
        "another, and a template that was mended stays without effect.",
        "Keep one, as chat_template.jinja, and take the others away. Where one is for tools (tool_use), it can do for "
        "both.",
    )


def _templates(directory: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each template of a model directory."""
    for file in [directory / "chat_template.jinja", *sorted(directory.glob("additional_chat_templates/*.jinja"))]:
        if file.is_file():
            yield file.relative_to(directory).as_posix(), file.read_text(encoding="utf-8", errors="replace")
    for name in ("tokenizer_config.json", "chat_template.json"):
        given = _read(directory / name).get("chat_template")
        if isinstance(given, str):
            yield name, given
        for entry in given if isinstance(given, list) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get("template"), str):
                yield f"{name} ({entry.get('name')})", entry["template"]


def _two_different(found: Mapping[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    items = list(found.items())
    return items[0], next(item for item in items if item[1].strip() != items[0][1].strip())


def _first_difference(one: str, other: str) -> tuple[str, str]:
    """Where two texts part, with a little of what is around it."""
    same = len(shared(one, other))
    return piece(one, same - 40, same + 80), piece(other, same - 40, same + 80)


# ---- markers ----


def marker_not_one_token(specimen: Specimen) -> Iterator[Finding]:
    _needs_tokens(specimen)
    broken = {m: specimen.tokens(m) for m in _markers(specimen) if len(specimen.tokens(m)) != 1}
    if not broken:
        return
    shown = [specimen.show(_spelled(m), m) for m in list(broken)[:_MANY]]
    yield Finding(
        "marker-not-one-token",
        "low",
        f"{len(broken)} of the template's markers are no single tokens: {' '.join(map(_spelled, broken))}",
        tuple(shown),
        "The model writes a marker in pieces, and a slip in one of them loses the call. Readers can go by the text "
        "alone: the same characters in a tool's result or in a quotation count as a marker, too. Readers that wait for "
        "one token (vLLM's among them) refuse the model.",
        "Take a tokenizer that has the markers, or markers that the tokenizer has (`punie-mlx template make` takes "
        "those). A token that is added new must be trained.",
    )


def _markers(specimen: Specimen) -> list[str]:
    """Tags around calls, results and thinking that the template writes."""
    wire = specimen.wire
    named = [wire.open, wire.close] if wire else []
    named += [m.strip() for m in specimen.detection.think]
    named += _RESULT_TAGS
    template = _unescaped(specimen.template)
    return [m for m in dict.fromkeys(named) if m in template and (_TAG.fullmatch(m) or _PRIVATE.fullmatch(m))]


def _unescaped(template: str) -> str:
    """`template` with the characters that its escapes of private use stand for."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), template)


def marker_flags(specimen: Specimen) -> Iterator[Finding]:
    """That a marker is special is told among the facts: it is the design of many models, and our reader sees it."""
    _needs_tokens(specimen)
    added = _added(specimen)
    own = [*_markers(specimen), *(m for m in _FRAME.findall(specimen.template) if m in added)]
    strips = [m for m in dict.fromkeys(own) if m in added and (added[m].lstrip or added[m].rstrip)]
    if strips:
        marker = strips[0]
        text = f"Zeeland\n{marker}\n71"
        yield Finding(
            "marker-flags",
            "medium",
            f"the tokenizer takes away the white space beside {' '.join(map(_spelled, strips))}",
            (Shown("text", text), specimen.show("its tokens", text)),
            "The line break that the template writes beside a marker is in no prompt, but the model may write it: what "
            "it reads in its history is never what it wrote, and prompts cannot be cached.",
            'Set "lstrip" and "rstrip" of these tokens to false in tokenizer.json, as the model was trained.',
        )
    wire = specimen.wire
    pair = [m for m in (wire.open, wire.close) if m in added] if wire else []
    if len(pair) == 2 and added[pair[0]].special != added[pair[1]].special:
        flags = {m: "special" if added[m].special else "not special" for m in pair}
        yield Finding(
            "marker-flags",
            "medium",
            "of the two markers of a call, one is a special token and the other is not",
            tuple(Shown(_spelled(m), flag) for m, flag in flags.items()),
            "A program that leaves special tokens out of its text (skip_special_tokens, the default of many) sees one "
            "half of the frame: the call is text, or never ends.",
            'Give both the same "special" flag in tokenizer.json.',
        )


def private_use(specimen: Specimen) -> Iterator[Finding]:
    raw = dict.fromkeys(_PRIVATE.findall(specimen.template))
    escaped = "".join(_PRIVATE.findall(_unescaped(specimen.template)))
    known = {t for t in specimen.vocabulary if _PRIVATE.search(t)}
    if specimen.has_vocabulary and (lost := [r for r in raw if not any(r in t for t in known)]):
        yield _private(
            "high",
            f"the template writes characters of private use that are no tokens: {' '.join(map(_spelled, lost))}",
            [specimen.show(_spelled(lost[0]), lost[0])],
            "A marker that the model was never taught: it reads it in pieces, and never writes it.",
        )
    elif raw:
        at = specimen.template.find(next(iter(raw)))
        yield _private(
            "low",
            f"markers of private use stand in the template as such: {' '.join(map(_spelled, raw))}",
            [Shown("template", visible(piece(specimen.template, at - 30, at + 40)))],
            "Editors, terminals and copies show them as nothing or lose them. Without them a call has no frame.",
        )
    added = {t for t in (_added(specimen) if specimen.has_vocabulary else ()) if _PRIVATE.fullmatch(t)}
    if added and not any(c in t for c in escaped for t in added):
        ids = [f"{_spelled(t)} = {specimen.vocabulary[t]}" for t in sorted(added)[:_MANY]]
        yield _private(
            "medium",
            f"the vocabulary has {len(added)} tokens of private use, and the template writes none of them",
            [Shown("tokens", ", ".join(ids))],
            "These may be the markers of calls that got lost on the way through an editor or a terminal: the prompt "
            "then has no frame around calls, and the model's own frame is read by nobody.",
        )


def _private(severity: str, summary: str, shown: Sequence[Shown], effect: str) -> Finding:
    remedy = (
        "Write the template anew from the tokenizer's tokens, with escapes in place of the characters: "
        "`punie-mlx template make --family smollm3 --tokenizer DIR` (--markers where nothing tells which they are)."
    )
    return Finding("private-use", severity, summary, tuple(shown), effect, remedy)


# ---- ends of turns ----


def end_of_turn(specimen: Specimen) -> Iterator[Finding]:
    _needs_tokens(specimen)
    stops = set(specimen.tokenizer.eos_token_ids)
    seen: dict[str, set[int]] = {}
    for kind, written in (("an answer", _after_answer(specimen)), ("a call", _after_call(specimen))):
        gaps = [g for g in written if g is not None]
        ends = next((e for g in gaps if (e := {i for i, _ in specimen.tokens(g) if i in stops})), set())
        if ends or not gaps:
            seen[kind] = ends
            continue
        gap = gaps[-1]
        yield Finding(
            "end-of-turn",
            "high",
            f"nothing that the template writes after {kind} ends the generation",
            (specimen.show(f"after {kind}", short(gap)), Shown("tokens that end", _ids(specimen, stops))),
            "The model ends its turn, and the server goes on: it writes the user's next turn, or the tool's result, by "
            "itself, up to the limit.",
            "Add the id of the token that ends a turn to eos_token_id of generation_config.json; it may be a list.",
        )
    yield from _other_files(specimen, set().union(*seen.values()))


def _other_files(specimen: Specimen, needed: set[int]) -> Iterator[Finding]:
    """Other programs read other files: each that names ends must name the one of a turn."""
    directory = specimen.directory
    if directory is None or not needed:
        return
    named = {name: _eos(directory / name) for name in ("generation_config.json", "config.json")}
    own = specimen.tokenizer.eos_token_id
    named["tokenizer_config.json"] = {own} if own is not None else set()
    lacking = {name: ids for name, ids in named.items() if ids and not ids & needed}
    if not lacking:
        return
    shown = [Shown(name, _ids(specimen, ids)) for name, ids in named.items() if ids]
    yield Finding(
        "end-of-turn",
        "low",
        f"the token that ends a turn is missing in {', '.join(lacking)}",
        (Shown("the template ends a turn with", _ids(specimen, needed)), *shown),
        "Here generation ends, since another file names the token. A program that reads only this file goes on past "
        "the end of the turn: llama.cpp's converter takes the tokenizer's, mlx_lm takes generation_config.json before "
        "config.json, vLLM takes it in addition.",
        f"Name the token in {', '.join(lacking)}, too.",
    )


def _after_answer(specimen: Specimen) -> tuple[str | None, ...]:
    """What stands behind the last answer, and between an answer and the user's next words: gpt-oss writes another."""
    messages = [cases.user(), cases.answer(), cases.user(cases.SECOND)]
    return _gap(specimen, messages[:2], cases.ANSWER), _gap(specimen, messages, cases.ANSWER, cases.SECOND)


def _after_call(specimen: Specimen) -> tuple[str | None, ...]:
    """What stands between a call and its result."""
    talk = cases.Talk.of(specimen)
    call = cases.Call(cases.ORBIT.name, {"body": "Zeeland-71"}, cases.ORBIT.id, cases.ORBIT.result)
    return (_gap(specimen, [cases.user(), *talk.turn(call)], "Zeeland-71", call.result),)


def _gap(specimen: Specimen, messages: Sequence[cases.Message], before: str, follows: str = "") -> str | None:
    """What stands between two words; behind the first where there is no other."""
    try:
        text = cases.seen(specimen, messages, cases.OFFERED, add_generation_prompt=False)
        return between(text, before, follows) if follows else after(text, before)
    except Skip:
        return None  # render-error, or whoever loses the text, says so


def _eos(file: Path) -> set[int]:
    """Ids of end tokens that a file names."""
    given = _read(file).get("eos_token_id")
    return {i for i in (given if isinstance(given, list) else [given]) if isinstance(i, int)}


def _ids(specimen: Specimen, ids: Iterable[int]) -> str:
    return ", ".join(f"{i} {_spelled(specimen.tokenizer.decode([i]))}" for i in sorted(ids)) or "none"


# ---- ids and embedding ----


def ids_out_of_range(specimen: Specimen) -> Iterator[Finding]:
    _needs_tokens(specimen)
    if specimen.directory is None:
        raise Skip("there is no model directory")
    rows = _rows(specimen.directory)
    if not rows:
        raise Skip("neither config.json nor the weights say how many rows the embedding has")
    outside = sorted((i, t) for t, i in specimen.vocabulary.items() if i >= min(rows.values()))
    if not outside:
        return
    used = [t for _, t in outside if t in specimen.template]
    yield Finding(
        "ids-out-of-range",
        "high" if used else "medium",
        f"{len(outside)} tokens have no row in the embedding"
        + (f", among them {' '.join(map(_spelled, used[:_MANY]))} of the template" if used else ""),
        (
            Shown("rows", ", ".join(f"{where}: {n}" for where, n in rows.items())),
            Shown("tokens", ", ".join(f"{i} {_spelled(t)}" for i, t in outside[:_MANY])),
        ),
        "The model reads whatever stands behind the last row, or the program stops with an index error; it can never "
        "write these tokens.",
        "Take the tokenizer that belongs to the weights, or enlarge the embedding and train the new rows.",
    )


def _rows(directory: Path) -> dict[str, int]:
    """How many rows the embedding has, by the configuration and by the weights."""
    config = _read(directory / "config.json")
    text = config.get("text_config")
    given = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, Mapping) else None)
    rows = {"vocab_size of config.json": given} if isinstance(given, int) else {}
    for name, shape in shapes(directory).items():
        if name.endswith(EMBEDDINGS) and len(shape) == 2:
            rows[name] = shape[0]
    return rows


# ---- do they belong together? ----


def tokenizer_template_mismatch(specimen: Specimen) -> Iterator[Finding]:
    _needs_tokens(specimen)
    text = _conversation(specimen)
    if not text:
        raise Skip("the template renders no conversation: render-error says so")
    frames = dict.fromkeys(_FRAME.findall(text))
    own = set(_markers(specimen))
    foreign = [f for f in frames if f not in own and len(encode(specimen.tokenizer, f)) != 1]
    if not foreign:
        return
    at = text.find(foreign[0])
    there = [t for t in _added(specimen) if _FRAME.fullmatch(t)][:_MANY]
    yield Finding(
        "tokenizer-template-mismatch",
        "high",
        f"the tokenizer does not have {' '.join(foreign)}, with which the template frames turns: two models are mixed",
        (
            specimen.show("rendered", piece(text, at, at + 40)),
            Shown("the tokenizer has", " ".join(there) or "no such tokens"),
        ),
        "The model reads the frames of turns as loose text: it does not know who speaks, nor where a turn ends, and "
        "answers at random or without end.",
        "Take the template of this model, or the tokenizer that belongs to the template: they are copied together.",
    )  # fmt: skip


def _conversation(specimen: Specimen) -> str:
    """A conversation with a call and its result, or one without, as far as the template renders it."""
    for messages in (cases.Talk.of(specimen).loop(), [cases.user(), cases.answer(), cases.user(cases.SECOND)]):
        made = specimen.render(messages, cases.OFFERED)
        if not made.failed:
            return made.text
    return ""


def _read(file: Path) -> Json:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check(id: str, title: str, run: Any, *follows: str) -> Check:
    return Check(id, "vocabulary", title, run, follows)


CHECKS = (
    _check("template-missing", "A chat template is there", template_missing),
    _check("two-templates", "The directory holds one chat template", two_templates),
    _check("tokenizer-template-mismatch", "Tokenizer and template are of one model", tokenizer_template_mismatch),
    _check(
        "marker-not-one-token", "Markers are single tokens", marker_not_one_token, "tokenizer-template-mismatch"
    ),
    _check("marker-flags", "What the tokenizer does to markers", marker_flags),
    _check("private-use", "Markers of private use", private_use),
    _check("end-of-turn", "What ends a turn ends the generation", end_of_turn, "tokenizer-template-mismatch"),
    _check("ids-out-of-range", "Each token has a row in the embedding", ids_out_of_range),
)  # fmt: skip
