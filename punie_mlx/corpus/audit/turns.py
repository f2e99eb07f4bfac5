"""Checks of the turns of a row: their order, the results of calls, and what no turn may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from punie_mlx.corpus.audit.calls import clip
from punie_mlx.corpus.audit.model import ERROR, NOTE, SYSTEM, WARNING, AuditRow, Check, Corpus, Finding, Turn, each
from punie_mlx.corpus.audit.read import RESPONSE, RESULT
from punie_mlx.corpus.rows import ROLES

OPEN, CLOSE = "<tool_response>", "</tool_response>"
_NESTED = re.compile(rf"\s*{OPEN}\s*{OPEN}.*{CLOSE}\s*{CLOSE}", re.DOTALL)
_MARK = "<|im_start|>"
_CUT = re.compile(
    r"(?:\.\.\.|…)\s*\Z"  # also what a class with an empty body ends in: told apart by reading it
    r"|[\[(<][^\[\](<>)\n]{0,60}\b(?:truncated|cut off|omitted)\b[^\[\](<>)\n]{0,60}[\])>]\s*\Z"
    r"|(?:\.\.\.|…)\s*[\[(]?\+?\d+ (?:more )?(?:lines|characters|chars|bytes|items|results)\b[^\n]{0,40}\Z",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|[A-Za-z][\w.-]{0,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<(?:start|end)_of_turn>")


# ---- the row as a whole ----


def bad_row(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    if problem := row.problem or _bad_turns(row):
        yield row.finding(problem)


def _bad_turns(row: AuditRow) -> str:
    for turn in row.turns:
        if turn.role not in ROLES:
            return f"message {turn.index + 1} has the role {turn.role!r}, not one of {', '.join(sorted(ROLES))}"
    text = (row.raw or {}).get("text")
    if row.format != "text" or not isinstance(text, str) or _MARK not in text:
        return ""
    ends = [part.rstrip().removesuffix("<|endoftext|>").rstrip() for part in text.split(_MARK)]
    if ends[0].strip():
        return f"text before the first turn: {clip(ends[0])}"
    for number, part in enumerate(ends[1:], 1):
        if not part.endswith("<|im_end|>"):
            said = "has text after its <|im_end|>" if "<|im_end|>" in part else "has no <|im_end|>: it is cut off"
            return f"turn {number} {said}: {clip(part)}"
    return ""


def no_system(corpus: Corpus) -> Iterator[Finding]:
    """Said once where it is all rows: that was meant."""
    rows = [r for r in corpus.rows if r.turns]
    without = [r for r in rows if r.turns[0].role not in SYSTEM]
    if rows and len(without) == len(rows):
        yield Finding("", f"none of {len(rows)} rows has a system turn")
        return
    for row in without:
        yield row.finding(f"the row begins with a turn of {row.turns[0].role!r}")


def ends_unanswered(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    if row.turns and row.turns[-1].role != "assistant":
        yield row.finding(f"the last turn is of {row.turns[-1].role!r}: {clip(row.turns[-1].content)}")


def no_answer(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    if row.turns and not row.assistant:
        yield row.finding("no turn of the assistant")


def consecutive_assistant(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    """After a turn that calls, what is missing is the result: that is an unanswered call."""
    for before, turn in zip(row.turns, row.turns[1:], strict=False):
        if before.role == turn.role == "assistant" and not _made(before):
            yield row.finding(f"messages {before.index + 1} and {turn.index + 1} are both the assistant's")


def empty_turn(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for turn in row.assistant:
        if not (turn.text.strip() or turn.calls or turn.broken):
            said = "thinks, and answers nothing" if turn.reasoning else "is empty"
            yield row.finding(f"message {turn.index + 1} {said}")


# ---- calls and their results ----


def exchanges(row: AuditRow) -> Iterator[tuple[Turn | None, int, int, bool]]:
    """Each assistant turn with how many calls it makes (also those that cannot be read), how many results follow it
    before anyone speaks again, and whether the row goes on after it. Results before any assistant turn come with None.
    """
    speaker: Turn | None = None
    results = 0
    for turn in row.turns:
        results += len(turn.results)
        if turn.role == "assistant" or turn.text.strip():
            if speaker or results:
                yield speaker, _made(speaker), results, True
            speaker, results = (turn if turn.role == "assistant" else None), 0
    if speaker or results:
        yield speaker, _made(speaker), results, bool(results)


def _made(turn: Turn | None) -> int:
    return len(turn.calls) + len(turn.broken) if turn else 0


def unanswered_call(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    """A call that ends its row is what the model shall write, and waits for nothing."""
    for turn, calls, results, goes_on in exchanges(row):
        if turn and calls and not results and goes_on:
            yield row.finding(f"message {turn.index + 1}: {_many(calls, 'call')}, and no result before the next turn")


def result_without_call(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for turn, calls, results, _goes_on in exchanges(row):
        if results and not calls:
            after = f"after message {turn.index + 1}" if turn else "before any call"
            yield row.finding(f"{_many(results, 'result')} {after}, which calls nothing")


def result_count(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for turn, calls, results, _goes_on in exchanges(row):
        if turn and calls and results and calls != results:
            yield row.finding(f"message {turn.index + 1}: {_many(calls, 'call')}, {_many(results, 'result')}")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def cut_result(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for index, result in row.results:
        if found := _CUT.search(result):
            yield row.finding(f"message {index + 1} ends in {clip(found[0].strip())}")


def double_wrapped(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    """A `tool` turn of a ready-made text may be wrapped once: that is how templates write it."""
    for turn in row.turns:
        rendered = row.format == "text" and turn.role == "tool"
        results = (rendered and RESPONSE.findall(turn.content)) or turn.results
        if results and (_NESTED.match(turn.content) or any(unwrap(r) != r for r in results)):
            yield row.finding(f"message {turn.index + 1} is wrapped twice: {clip(turn.content)}")


def unwrap(result: str) -> str:
    """A tool's result without what was put around it as a whole; a result that only quotes such tags is left."""
    while True:
        text = result.strip()
        if prefix := RESULT.match(result):
            result = result[prefix.end() :]
        elif text.startswith(OPEN) and text.endswith(CLOSE) and _is_one(text):
            result = text[len(OPEN) : -len(CLOSE)].removeprefix("\n").removesuffix("\n")
        else:
            return result


def _is_one(text: str) -> bool:
    """Whether the first tag of `text` is closed by the last one, not before."""
    depth = 0
    tags = list(re.finditer(f"{OPEN}|{CLOSE}", text))
    for tag in tags[:-1]:
        depth += 1 if tag[0] == OPEN else -1
        if depth == 0:
            return False
    return depth == 1


def result_as_user(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    """In ready-made text, <tool_response> in a user turn is how Qwen's template writes results; a prefix is not."""
    for turn in row.turns:
        rendered = row.format == "text" and turn.content.lstrip().startswith(OPEN)
        if turn.role == "user" and turn.results and not rendered:
            yield row.finding(f"message {turn.index + 1}: {clip(turn.content)}")


# ---- text ----


def control_token(row: AuditRow, corpus: Corpus) -> Iterator[Finding]:
    """With a tokenizer: its own; without: what looks like one in most vocabularies."""
    for turn in row.turns:
        # the tags of its own format are what an assistant turn is made of
        text = turn.text if turn.role == "assistant" else turn.content
        given = [c.raw for c in turn.calls if c.spelling in ("tool_calls", "fence")]
        if found := {token for t in (text, *given) for token in _spelled(t, corpus)}:
            yield row.finding(f"message {turn.index + 1} ({turn.role}) spells {', '.join(sorted(found))}")


def _spelled(text: str, corpus: Corpus) -> Iterator[str]:
    if corpus.tokenizer is None:
        yield from (m[0] for m in _CONTROL.finditer(text))
        return
    if "control" not in corpus.memo:
        special = {t for t in corpus.tokenizer.all_special_tokens if len(t) > 1}
        looks = {t for t in corpus.tokenizer.get_vocab() if _CONTROL.fullmatch(t)}
        corpus.memo["control"] = sorted(special | looks)
    yield from (token for token in corpus.memo["control"] if token in text)


CHECKS = (
    Check(
        "bad_row", ERROR, "Lines that are no rows",
        "Training stops at the first of them. Mend the line or remove it; --fix puts it into quarantine.",
        each(bad_row),
    ),
    Check(
        "no_answer", ERROR, "Rows in which the assistant says nothing",
        "There is nothing to learn from them. --fix puts them into quarantine.",
        each(no_answer),
    ),
    Check(
        "ends_unanswered", WARNING, "Rows that end on a turn of someone else",
        "Nothing after the last assistant turn is learned. Add the answer, or cut the row there, as --fix does.",
        each(ends_unanswered),
    ),
    Check(
        "no_system", NOTE, "Rows without a system turn",
        "Right where the agent sends none, too. Rows with and without one teach the model to answer both; one that "
        "is always served with a system prompt should be trained with it.",
        no_system,
    ),
    Check(
        "consecutive_assistant", WARNING, "Assistant turns that follow each other",
        "No agent sends such a history, and a template ends the turn between them. --fix joins them.",
        each(consecutive_assistant),
    ),
    Check(
        "empty_turn", ERROR, "Empty assistant turns",
        "They teach the model to answer nothing. Write the answer; --fix puts the row into quarantine.",
        each(empty_turn),
    ),
    Check(
        "unanswered_call", WARNING, "Calls without a result",
        "The model learns to go on as if it had called. Add the result, or end the row with the call.",
        each(unanswered_call),
    ),
    Check(
        "result_without_call", ERROR, "Results without a call",
        "Some templates refuse them, and the model learns that results come by themselves. Restore the call.",
        each(result_without_call),
    ),
    Check(
        "result_count", ERROR, "Calls and results that do not match in number",
        "Nobody can tell which result belongs to which call. Add the missing ones.",
        each(result_count),
    ),
    Check(
        "cut_result", WARNING, "Results that are cut",
        "An answer that uses what was cut is made up, as far as the model can see. Keep the result whole, or cut where "
        "your tools cut, with the same mark.",
        each(cut_result),
    ),
    Check(
        "double_wrapped", ERROR, "Results that are wrapped twice",
        "The template wraps a result itself: the model would be trained on another prompt than it is served. --fix "
        "unwraps them.",
        each(double_wrapped),
    ),
    Check(
        "result_as_user", WARNING, "Results that stand in user turns",
        "Served, results come in `tool` turns, which the template renders otherwise. --fix moves them there.",
        each(result_as_user),
    ),
    Check(
        "control_token", ERROR, "Control tokens that are spelled out",
        "A tokenizer makes the real token of them: a turn ends in the middle of a text. Remove or reword them.",
        each(control_token),
    ),
)  # fmt: skip
