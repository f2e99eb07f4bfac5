"""What the server is asked: requests, checked before anything else sees them, and what they mean for the engine.

    request = parse(ChatRequest, body)

Fields that would change the answer and are not supported are refused by name, since an answer that silently leaves
them out would be a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from punie_mlx.chat.render import RESERVED
from punie_mlx.serve.errors import BadRequest
from punie_mlx.serve.generation import Sampling
from punie_mlx.serve.messages import (
    AllowedChoice,
    Message,
    Model,
    NamedTool,
    ToolChoice,
    ToolSpec,
    check_names,
    for_template,
)
from punie_mlx.serve.settings import Defaults
from punie_mlx.toolcalls.grammar import Constraint

if TYPE_CHECKING:
    from punie_mlx.serve.engine import Loaded

NO_DEFAULTS = Defaults()
GREEDY_BELOW = 1e-3  # a smaller temperature overflows when logits are divided by it
MOST_CHOICES = 128
# Other servers' fields, each of which promises something about the answer.
REFUSED = frozenset(
    ("best_of", "use_beam_search", "length_penalty", "stop_token_ids", "ignore_eos", "min_tokens", "echo",
     "prompt_logprobs", "prompt_embeds", "bad_words", "allowed_token_ids", "logits_processors", "guided_json",
     "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "adapters", "adapter",
     "draft_model", "moderation")
)  # fmt: skip


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value] if value else []
    return value


Real = Annotated[float, Field(allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    list[StopString],
    Field(max_length=16),
    BeforeValidator(_as_list, json_schema_input_type=str | Annotated[list[StopString], Field(max_length=16)]),
]


class StreamOptions(Model):
    include_usage: bool = False


# ---- what is generated, and how ----


class Generating(Model):
    """What chats and plain texts have in common. What is left out comes from the server's `Defaults`."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Real, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Real, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Real, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    repetition_penalty: Annotated[Real, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[Real, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Real, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[Real, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Stop = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None  # accepted, and of no meaning here

    @property
    def limit(self) -> int | None:
        """The most tokens that the client wants to be generated."""
        return self.max_tokens

    def sampling(self, loaded: Loaded, defaults: Defaults = NO_DEFAULTS, *, index: int = 0) -> Sampling:
        """How to sample choice `index` from the logits of `loaded`. Raises `BadRequest`."""
        chosen = {name: _or(getattr(self, name), getattr(defaults, name)) for name in _DEFAULTED}
        width, top_k = loaded.vocabulary, chosen["top_k"]
        greedy = chosen["temperature"] < GREEDY_BELOW or chosen["top_p"] == 0
        return Sampling(
            temperature=0.0 if greedy else chosen["temperature"],
            top_p=chosen["top_p"] or 1.0,
            top_k=top_k if 0 < top_k < width else 0,  # the whole vocabulary is no restriction
            min_p=chosen["min_p"] if chosen["min_p"] > 1e-30 else 0.0,  # mlx_lm takes its logarithm
            seed=None if self.seed is None else (self.seed + index) % 2**63,
            repetition_penalty=chosen["repetition_penalty"],
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self._biases(width),
        )

    def _biases(self, width: int) -> tuple[tuple[int, float], ...]:
        found = {}
        for name, bias in self.logit_bias.items():
            if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < width):
                shown = name if len(name) < 20 else name[:20] + "…"
                message = f"logit_bias: {shown!r} is no token: tokens are numbers from 0 to {width - 1}"
                raise BadRequest(message, "logit_bias")
            found[int(name)] = bias
        return tuple(sorted(found.items()))


_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _as_prompts(value: Any) -> Any:
    one = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if one else value


def _kind_of_prompt(value: Any) -> str:
    return "<tokens>" if isinstance(value, list) else "<text>"


Prompt = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[int], Tag("<tokens>")], Discriminator(_kind_of_prompt)
]


class CompletionRequest(Generating):
    """/v1/completions: text to be continued, as it stands."""

    refused: ClassVar[frozenset[str]] = REFUSED | {"suffix"}

    prompt: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=MOST_CHOICES),
        BeforeValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_of_one(cls, value: Any) -> Any:
        """`best_of` that asks for no more than `n` says nothing."""
        if isinstance(value, dict) and value.get("best_of") == (value.get("n") or 1):
            return {k: v for k, v in value.items() if k != "best_of"}
        return value

    def prompts(self, loaded: Loaded) -> list[str | list[int]]:
        """Each prompt, as text or as tokens of `loaded`. Raises `BadRequest`."""
        for prompt in self.prompt:
            if not prompt:
                raise BadRequest("prompt: it is empty", "prompt")
            if not isinstance(prompt, str) and not (min(prompt) >= 0 and max(prompt) < loaded.vocabulary):
                raise BadRequest(f"prompt: tokens are numbers from 0 to {loaded.vocabulary - 1}", "prompt")
        return list(self.prompt)


# ---- conversations ----


@dataclass(frozen=True)
class Choice:
    """What `tool_choice` and `parallel_tool_calls` say.

    mode: "auto", "required" or "none". allowed: the tools that may be called, None for all. single: not more than one
    call.
    """

    mode: str
    allowed: frozenset[str] | None = None
    single: bool = False


class Conversation(Model):
    """What a prompt is made of."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[ToolSpec] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_names(self.tools)
        for name in self.chat_template_kwargs:
            if name in RESERVED:
                param = f"chat_template_kwargs.{name}"
                raise BadRequest(f"{param}: a request cannot set this", param)
        self._check_choice()
        return self

    def _check_choice(self) -> None:
        choice, names = self.choice, {t.function.name for t in self.tools}
        for name in sorted(choice.allowed or ()):
            if name not in names:
                raise BadRequest(f"tool_choice: {name!r} is none of the tools", "tool_choice")
        if choice.mode == "required" and not (names if choice.allowed is None else choice.allowed):
            raise BadRequest("tool_choice: a call is demanded, and there is no tool that may be called", "tool_choice")

    @property
    def choice(self) -> Choice:
        """Which calls may come, and whether one must."""
        single = not self.parallel_tool_calls
        match self.tool_choice:
            case NamedTool(function=function):
                return Choice("required", frozenset([function.name]), single=True)
            case AllowedChoice(allowed_tools=allowed):
                names = frozenset(t.function.name for t in allowed.tools)
                mode = allowed.mode if names or allowed.mode == "required" else "none"
                return Choice(mode, names, single)
            case mode:
                return Choice(mode, None, single)

    def for_template(self) -> list[dict[str, Any]]:
        """The messages as chat templates know them."""
        return for_template(self.messages)

    def tools_spec(self) -> list[dict[str, Any]]:
        """All tools as chat templates know them."""
        return [t.for_template() for t in self.tools]

    def template_kwargs(self, defaults: Defaults = NO_DEFAULTS) -> dict[str, Any]:
        """What the chat template is given beside messages and tools: the server's, under the request's own."""
        effort = {} if self.reasoning_effort is None else _effort(self.reasoning_effort)
        return {**defaults.template_kwargs, **effort, **self.chat_template_kwargs}


def _effort(effort: str) -> dict[str, Any]:
    """The names that templates have for how much to think."""
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}


class JsonSchema(Model):
    """`strict` is accepted: the schema holds in any case."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    strict: bool | None = None


class ResponseFormat(Model):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Generating, Conversation):
    """/v1/chat/completions."""

    refused: ClassVar[frozenset[str]] = REFUSED | {"functions", "function_call", "audio", "web_search_options"}

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    modalities: list[Literal["text"]] = Field(default_factory=list)
    metadata: dict[str, str] = Field(default_factory=dict)
    constrain: Literal["auto", "off", "required-only"] | None = None  # ours: in place of the server's
    rescue: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs: it needs logprobs to be true", "top_logprobs")
        form = self.response_format
        if form is not None and form.type == "json_schema" and form.json_schema is None:
            raise BadRequest("response_format.json_schema: it is missing", "response_format.json_schema")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def json_schema(self) -> Mapping[str, Any] | None:
        """What the answer must be, as a JSON schema; None where it may be any text."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        return form.json_schema.schema_ if form.type == "json_schema" and form.json_schema else {}

    def constraint(self, reasoning: str = "none") -> Constraint:
        """What the turn may be; `reasoning` as `Constraint` has it."""
        choice = self.choice
        return Constraint(
            choice=choice.mode,
            allowed=choice.allowed,
            parallel=not choice.single,
            reasoning=reasoning,
            json_schema=self.json_schema,
        )


class TokenizeRequest(Conversation):
    """/tokenize: a text as it stands, or the prompt of a conversation."""

    refused: ClassVar[frozenset[str]] = frozenset({"functions", "function_call", "audio"})

    messages: list[Message] = Field(default_factory=list)
    prompt: str | None = None
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise BadRequest("prompt: give either a prompt or messages", "prompt")
        return self


# ---- bodies ----

Request = TypeVar("Request", bound=Model)


def parse(model: type[Request], body: bytes) -> Request:
    """The request in `body`. Raises `BadRequest`, which names the field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        # The tags of a choice between shapes are no part of the body.
        path = [str(part) for part in first["loc"] if not str(part).startswith("<")]
        param = ".".join(path) or None
        raise BadRequest(f"{param or 'the request body'}: {first['msg']}", param) from e
