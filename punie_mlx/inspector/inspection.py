"""All that is to be seen of a conversation with a model, as one value: `inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import Conversation, Prompt, encode, load_tokenizer
from punie_mlx.chat.turns import turn
from punie_mlx.corpus.rows import Row
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.inspector.answer import Answer, answer, markers, watched_ids
from punie_mlx.inspector.reading import Read, Wire
from punie_mlx.inspector.spans import turns
from punie_mlx.inspector.spelling import Spelling
from punie_mlx.inspector.training import Training, training
from punie_mlx.pages.tokens import Token
from punie_mlx.toolcalls import detect, formats
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.wire import Format
from punie_mlx.train.samples import Sample


@dataclass(frozen=True)
class Asked:
    """What to look at. `generate`: so many tokens of an answer; 0 for none. `tool_call_format`: else the template's."""

    model: Path
    row: Row
    generate: int = 0
    adapter: Path | None = None
    chat_template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tool_call_format: str | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None and not self.generate:
            raise ConfigError("an adapter changes only what is written: give --generate N, too")
        if self.generate and self.row.text is not None:
            raise ConfigError(f"{self.row.where} is a ready-made text, which asks for no answer: give messages")


@dataclass(frozen=True)
class View:
    """Tokens one after the other: a prompt with its turn, or an answer. `prompt`: how many of them were given."""

    name: str
    tokens: tuple[Token, ...]
    prompt: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        runs = [(whose, len(list(run))) for whose, run in groupby(self.tokens, key=lambda t: t.turn)]
        spans, at = [], 0
        for whose, count in runs:
            spans.append({"turn": whose, "start": at, "stop": at + count})
            at += count
        told = {"name": self.name, "prompt": self.prompt, "spans": spans, "tokens": [t.to_json() for t in self.tokens]}
        return told | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Inspection:
    """What was seen.

    roles: of the messages as the template gets them, by index. views: the conversation first; then turns that training
    learns behind another prompt. read: what the reader makes of each learned turn.
    """

    model: str
    where: str
    format: str | None
    format_note: str
    roles: tuple[str, ...]
    tools: tuple[str, ...]
    views: tuple[View, ...]
    training: Training
    read: tuple[Read, ...]
    answer: Answer | None = None
    adapter: str | None = None
    fingerprint: str | None = None

    @property
    def turns(self) -> dict[int, str]:
        """What each turn is called; the one behind the last message is the answer's."""
        return {**dict(enumerate(self.roles)), len(self.roles): "assistant, to come"}

    def known(self, view: View) -> int:
        """How many of the tokens of another view, whole turns of it, are the conversation's."""
        pairs = zip(view.tokens, self.views[0].tokens, strict=False)
        least = min(len(view.tokens), len(self.views[0].tokens))
        same = next((i for i, (a, b) in enumerate(pairs) if (a.id, a.turn) != (b.id, b.turn)), least)
        while 0 < same < len(view.tokens) and view.tokens[same].turn == view.tokens[same - 1].turn:
            same -= 1
        return same

    def to_json(self) -> dict[str, Any]:
        first = list(self.views[0].tokens)
        ids = [t.id for t in first]
        answer = self.answer
        return {
            "model": self.model,
            "adapter": self.adapter,
            "fingerprint": self.fingerprint,
            "messages": self.where,
            "format": self.format,
            "format_note": self.format_note,
            "turns": [{"turn": i, "role": role} for i, role in enumerate(self.roles)],
            "tools": list(self.tools),
            "views": [v.to_json() for v in self.views],
            "training": {
                "samples": [_sample_json(s, self.training.holds(ids, s)) for s in self.training.samples],
                "notes": list(self.training.notes),
            },
            "read": [r.to_json() for r in self.read],
            "answer": answer
            and {
                "finish": answer.finish,
                "tokens": [t.to_json() for t in answer.tokens],
                "markers": [m.to_json() for m in answer.markers],
                "read": answer.read and answer.read.to_json(),
            },
        }


def _sample_json(sample: Sample, in_first: bool) -> dict[str, Any]:
    return {
        "message": sample.message,
        "prompt": sample.prompt,
        "tokens": len(sample.tokens),
        "spans": [list(span) for span in sample.spans],
        "in_first_view": in_first,
    }


def inspect(asked: Asked) -> Inspection:
    """Look at what `asked` names.

    Raises:
        ModelError: the model, its tokenizer or the adapter cannot be loaded.
        DataError: the template cannot render the messages, or writes nothing that could be answered.
        ConfigError: there is no such wire format, or a template is given what it is given anyway.
    """
    if not asked.generate:
        tokenizer = load_tokenizer(asked.model)
        return _Eye(asked, tokenizer).see()
    from punie_mlx import raw
    from punie_mlx.direct import Model

    model = Model(asked.model, asked.adapter)
    eye = _Eye(asked, model.tokenizer)
    seen, prompt = eye.see(), eye.prompt
    assert prompt is not None  # `Asked` refuses texts
    if not prompt.tokens:
        raise DataError("the chat template writes nothing for these messages, so nothing can be answered: mend it")
    watched = markers(eye.wire, model.tokenizer)
    steps = list(raw.watch(model, prompt.tokens, watched_ids(watched), most=asked.generate, seconds=inf))
    written = answer(
        steps, watched, spelling=eye.spelling, wire=eye.wire, prompt=prompt.tokens,
        in_reasoning=eye.opens_thinking(prompt), turn=eye.given,
    )  # fmt: skip
    adapter = str(asked.adapter) if asked.adapter else None
    return replace(seen, answer=written, adapter=adapter, fingerprint=model.fingerprint)


def _format(tokenizer: Any, name: str | None) -> tuple[Format | None, str]:
    """The wire format of `name`, or else that of the template, if it shows one; and how that was told."""
    found = detect.examine(tokenizer.chat_template, tokenizer.get_vocab())
    if name is not None and name != found.format:
        return formats.get(name), f"named by --tool-call-format; the template says: {found.explain()}"
    return (found.wire() if found.format else None), found.explain()


class _Eye:
    """Looks at one conversation with one tokenizer. `prompt`: what is answered; `given`: the messages in it."""

    def __init__(self, asked: Asked, tokenizer: Any) -> None:
        if asked.chat_template is not None:
            tokenizer.chat_template = asked.chat_template
        self._asked, self._row, self._tokenizer = asked, asked.row, tokenizer
        self._offered = tools_for_template(asked.row.tools)
        self._messages = for_template(asked.row.messages)
        self._stops = frozenset(tokenizer.eos_token_ids)
        self.spelling = Spelling(tokenizer)
        format, self._explained = _format(tokenizer, asked.tool_call_format)
        tools = tuple(map(Tool.from_openai, self._offered))
        self.wire = Wire(format, tools, self.spelling.control) if format else None
        self.given = len(self._messages)
        if self._messages and self._messages[-1]["role"] == "assistant" and self.given > 1:
            self.given -= 1
        self.prompt: Prompt | None = None
        self._read: list[Read] = []

    def opens_thinking(self, prompt: Prompt) -> bool:
        """Whether an answer to `prompt` begins inside of the thinking."""
        return self.wire is not None and prompt.opens(self.wire.format.think[0])

    def see(self) -> Inspection:
        learned = training(self._row, self._tokenizer, self._asked.template_kwargs)
        views = [self._text(learned)] if self._row.text is not None else self._conversation(learned)
        return Inspection(
            model=str(self._asked.model),
            where=self._row.where,
            format=self.wire.format.name if self.wire else None,
            format_note=self._explained,
            roles=tuple(m["role"] for m in self._messages),
            tools=tuple(t["function"]["name"] for t in self._offered),
            views=tuple(views),
            training=learned,
            read=tuple(self._read),
        )

    def _text(self, learned: Training) -> View:
        """A ready-made text, which has no turns."""
        sample = next(iter(learned.samples), None)
        ids = encode(self._tokenizer, self._row.text or "") if sample is None else sample.tokens.tolist()
        return View("text", self._tokens(ids, [None] * len(ids), learned.learned(len(ids), ids), {}))

    def _conversation(self, learned: Training) -> list[View]:
        """The whole conversation as far as it goes; then each learned turn whose prompt is no beginning of it."""
        conversation = self._render(self._row.messages)
        self.prompt = conversation.prompt(self.given)
        ids, views = [*self.prompt.tokens, *self._last(conversation, self.prompt)], []
        places = {id(s): self._place(s) for s in learned.samples}
        owners = self._owners(conversation, self.prompt, self.given, len(ids))
        states: dict[int, str] = {}
        for sample in learned.samples:
            found = self._states(sample, places[id(sample)])
            if learned.holds(ids, sample):
                states |= found
            else:
                views.append(self._elsewhere(sample, places[id(sample)], found))
        name = "conversation" if len(ids) > len(self.prompt.tokens) else "prompt"
        tokens = self._tokens(ids, owners, learned.learned(len(ids), ids), states)
        return [View(name, tokens, len(self.prompt.tokens)), *views]

    def _last(self, conversation: Conversation, prompt: Prompt) -> list[int]:
        """The turn that the row has behind `prompt`, learned or not; nothing where the template cannot write it."""
        if self.given == len(self._messages):
            return []
        try:
            return turn(conversation, self.given, prompt).tokens
        except DataError:
            return []

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        return Conversation(self._tokenizer, for_template(messages), self._offered, self._asked.template_kwargs)

    def _place(self, sample: Sample) -> int:
        """Where the turn of `sample` stands among the messages that the template gets."""
        return len(for_template(self._row.messages[: (sample.message or 0) + 1])) - 1

    def _owners(self, conversation: Conversation, prompt: Prompt, count: int, length: int) -> list[int | None]:
        found = turns(conversation, prompt, self.spelling.texts(prompt.tokens), count)
        return found + [count] * (length - len(found))

    def _states(self, sample: Sample, place: int) -> dict[int, str]:
        """The reader's state after each token of a learned turn, by position; what it reads is kept."""
        if self.wire is None:
            return {}
        ids = sample.tokens.tolist()
        prompt = self._render(self._row.messages[: (sample.message or 0) + 1]).prompt(place)
        texts = self.spelling.texts(ids[sample.prompt :], ids[: sample.prompt])
        read, states = self.wire.read(
            f"message {place + 1}", zip(ids[sample.prompt :], texts, strict=True),
            ends=self._stops, in_reasoning=self.opens_thinking(prompt),
        )  # fmt: skip
        self._read.append(read)
        return dict(enumerate(states, sample.prompt))

    def _elsewhere(self, sample: Sample, place: int, states: Mapping[int, str]) -> View:
        conversation = self._render(self._row.messages[: (sample.message or 0) + 1])
        ids = sample.tokens.tolist()
        owners = self._owners(conversation, conversation.prompt(place), place, len(ids))
        learned = Training((sample,), ()).learned(len(ids), ids)
        note = "The template renders these messages otherwise once later ones follow, so this turn is learned apart."
        return View(f"message {place + 1}", self._tokens(ids, owners, learned, states), sample.prompt, note)

    def _tokens(
        self,
        ids: Sequence[int],
        owners: Sequence[int | None],
        learned: Sequence[bool] | None,
        states: Mapping[int, str],
    ) -> tuple[Token, ...]:
        return tuple(
            Token(
                id=token,
                text=text,
                kind=self.spelling.kind(token, text),
                turn=owners[i],
                trained=None if learned is None else learned[i],
                state=states.get(i, ""),
                title="ends the answer" if token in self._stops and i in states else "",
            )
            for i, (token, text) in enumerate(zip(ids, self.spelling.texts(ids), strict=True))
        )
