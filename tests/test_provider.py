"""What PydanticAI sends with our provider, seen at a real socket that keeps the requests it gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ImageUrl, ModelSettings, NativeOutput, PromptedOutput
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ThinkingPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel

from punie_mlx.provider import PROFILE, PunieProvider


class Place(BaseModel):
    """Where something is."""

    city: str
    zip: int | None = None


class Recorder:
    """Answers every request with `message`, but for the `first`, and keeps what came."""

    def __init__(self) -> None:
        self.first: dict[str, Any] | None = None
        self.message: dict[str, Any] = {"role": "assistant", "content": "Good day."}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    kept = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kept.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            kept.keys.append(self.headers["authorization"])
            message = kept.first if kept.first and len(kept.bodies) == 1 else kept.message
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kept.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield kept
        server.shutdown()
        thread.join()


def model(recorder: Recorder) -> OpenAIChatModel:
    return OpenAIChatModel("m", provider=PunieProvider(base_url=recorder.url, api_key="secret"))


def test_the_profile_is_that_of_any_model() -> None:
    assert PunieProvider.model_profile("qwen3-coder") == PunieProvider.model_profile("x/y") == PROFILE
    assert OpenAIChatModel("m", provider=PunieProvider(base_url="http://x/v1")).system == "punie-mlx"


def test_the_address_and_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUNIE_MLX_BASE_URL", raising=False)
    with pytest.raises(UserError, match="base_url"):
        PunieProvider()
    monkeypatch.setenv("PUNIE_MLX_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("PUNIE_MLX_API_KEY", "from-there")
    provider = PunieProvider()
    assert provider.base_url == "http://127.0.0.1:9/v1/" and provider.client.api_key == "from-there"
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:8/v1", api_key="k")
    assert PunieProvider(openai_client=client).client is client
    with pytest.raises(UserError, match="not both"):
        PunieProvider(openai_client=client, api_key="k")


def test_tools_go_as_they_were_written_and_an_output_tool_is_forced(recorder: Recorder) -> None:
    recorder.message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "final_result", "arguments": '{"city": "Rome"}'}}
        ],
    }
    agent = Agent(model(recorder), output_type=Place, retries=0)

    @agent.tool_plain
    def look(places: list[Place], deep: bool = False) -> str:
        """Look at places."""
        return places[0].city

    assert agent.run_sync("Where?").output == Place(city="Rome")
    (body,) = recorder.bodies
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in body["tools"]}
    assert body["tool_choice"] == "required" and recorder.keys == ["Bearer secret"]
    assert schemas["look"]["required"] == ["places"]
    assert schemas["look"]["properties"]["deep"] == {"default": False, "type": "boolean"}
    assert schemas["look"]["properties"]["places"]["items"] == {"$ref": "#/$defs/Place"}
    zip_code = schemas["look"]["$defs"]["Place"]["properties"]["zip"]
    assert zip_code == {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}


@pytest.mark.parametrize(
    ("output", "kind"), [(NativeOutput(Place), "json_schema"), (PromptedOutput(Place), "json_object")]
)
def test_json_output_is_asked_for_and_shown_in_the_instructions(recorder: Recorder, output: Any, kind: str) -> None:
    recorder.message = {"role": "assistant", "content": '{"city": "Rome", "zip": 1}'}
    agent: Agent[None, Any] = Agent(model(recorder), output_type=output, retries=0, instructions=["One.", "Two."])
    assert agent.run_sync("Where?").output == Place(city="Rome", zip=1)
    (body,) = recorder.bodies
    assert body["response_format"]["type"] == kind
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "One." in system["content"] and "Two." in system["content"] and '"zip"' in system["content"]


def test_a_choice_of_tools_is_the_servers_to_make(recorder: Recorder) -> None:
    agent = Agent(model(recorder), retries=0)
    for name in ("first", "second", "third"):
        agent.tool_plain(name=name)(lambda: "done")
    agent.run_sync("Go", model_settings=ModelSettings(tool_choice="none"))
    agent.run_sync("Go", model_settings={"tool_choice": "auto"})
    agent.run_sync("Go", model_settings={"thinking": False})
    assert [b.get("tool_choice") for b in recorder.bodies] == ["none", "auto", "auto"]
    assert all(len(b["tools"]) == 3 for b in recorder.bodies)
    assert [b.get("reasoning_effort") for b in recorder.bodies] == [None, None, "none"]


def test_thinking_comes_back_and_returns_to_the_model(recorder: Recorder) -> None:
    recorder.message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    agent = Agent(model(recorder), retries=0)
    first = agent.run_sync("Well?")
    kinds = [p for m in first.all_messages() if isinstance(m, ModelResponse) for p in m.parts]
    assert [type(p) for p in kinds] == [ThinkingPart, TextPart]
    agent.run_sync("Sure?", message_history=first.all_messages())
    assert recorder.bodies[1]["messages"][1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_foreign_thinking_is_no_text(recorder: Recorder) -> None:
    """Thinking of another model is not put into the text, where ours would copy it."""
    history = [
        ModelRequest(parts=[UserPromptPart("Well?")]),
        ModelResponse(parts=[ThinkingPart("Secret."), TextPart("Yes.")]),
    ]
    Agent(model(recorder), retries=0).run_sync("Sure?", message_history=history)
    assert recorder.bodies[0]["messages"][1]["content"] == "Yes."


def test_a_picture_from_a_tool_is_not_sent(recorder: Recorder) -> None:
    function = {"name": "look", "arguments": "{}"}
    call = {"id": "1", "type": "function", "function": function}
    recorder.first = {"role": "assistant", "content": None, "tool_calls": [call]}
    agent = Agent(model(recorder), retries=0)

    @agent.tool_plain
    def look() -> ImageUrl:
        return ImageUrl("http://127.0.0.1:1/cat.png")

    assert agent.run_sync("Look.").output == "Good day."
    assert "image_url" not in json.dumps(recorder.bodies[1]["messages"])


def test_one_provider_serves_several_event_loops(recorder: Recorder) -> None:
    import asyncio

    agent = Agent(model(recorder), retries=0)

    async def ask() -> str:
        return (await agent.run("Well?")).output

    assert [asyncio.run(ask()) for _ in range(3)] == ["Good day."] * 3
