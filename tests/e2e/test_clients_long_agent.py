"""An agent of twelve turns on the shipped model: each turn prefills what is new, and little more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_ai import Agent, ModelSettings, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.openai import OpenAIChatModel

from punie_mlx.corpus.lexicon import CLASSES
from punie_mlx.provider import PunieProvider

TURNS = 12
SLACK = 64
Short = Annotated[str, Field(max_length=40)]


@dataclass
class LooksThenAnswers(AbstractCapability[None]):
    """Every turn but the last calls the tool. The choice is the grammar's: the prompt is the same with any."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        return lambda ctx: ModelSettings(tool_choice=["find_symbol"] if ctx.run_step < TURNS else ["found"])


def found(path: Short) -> str:
    """Say where it is."""
    return path


def test_a_turn_prefills_only_what_is_new(serving: Callable[..., Any], tiny_base: Path) -> None:
    looked: list[str] = []
    with serving(tiny_base) as server:
        agent = Agent(
            OpenAIChatModel(server.ready["model"], provider=PunieProvider(base_url=server.url)),
            output_type=ToolOutput(found, name="found"),
            retries=0,
            model_settings=ModelSettings(temperature=0, max_tokens=120, parallel_tool_calls=False),
            instructions="Find what you are asked for.",
            capabilities=[LooksThenAnswers()],
        )

        @agent.tool_plain
        def find_symbol(name: Short) -> str:
            """Find where a symbol is defined"""
            looked.append(name)
            return f"not there, so look for {CLASSES[len(looked)]}Service"

        run = agent.run_sync(f"Where is {CLASSES[0]}Service defined?")
    usage = [m.usage for m in run.all_messages() if isinstance(m, ModelResponse)]
    assert (len(usage), len(looked)) == (TURNS, TURNS - 1)
    for before, turn in pairwise(usage):
        new = turn.input_tokens - before.input_tokens - before.output_tokens
        assert turn.input_tokens - turn.cache_read_tokens <= new + SLACK
    assert usage[-1].cache_read_tokens > 0.8 * usage[-1].input_tokens
