"""PydanticAI's way to a punie-mlx server: `PunieProvider` tells an agent what the server can do.

    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from punie_mlx.provider import PunieProvider

    provider = PunieProvider(base_url="http://127.0.0.1:8080/v1")
    agent = Agent(OpenAIChatModel("my-model", provider=provider))

With it, schemas go to the server as they were written, a forced tool choice is sent as one, native output uses the
server's grammar, and the model's thinking comes back as a thinking part and returns to the model in the next turn.
"""

from __future__ import annotations

import os

import openai
from pydantic_ai.exceptions import UserError
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.vllm import VLLMProvider

PROFILE = OpenAIModelProfile(
    # The grammar takes JSON Schema as it is, and a model should see the schema that it was trained on.
    json_schema_transformer=None,
    supports_forced_tool_choice=True,
    openai_chat_supports_allowed_tools=True,
    supports_json_schema_output=True,
    supports_json_object_output=True,
    # A grammar shows the model nothing: it must read in its instructions what it is to write.
    native_output_requires_schema_in_instructions=True,
    supports_thinking=True,
    openai_chat_thinking_field="reasoning_content",
    openai_chat_send_back_thinking_parts="field",
    openai_chat_supports_multiple_system_messages=False,
    openai_chat_streaming_requires_finish_reason=True,
    ignore_streamed_leading_whitespace=True,
    # Text only: a picture that a tool returns becomes a note, one in a prompt is refused by the server.
    supports_image_input=False,
    supports_document_input=False,
    supports_audio_file_input=False,
    supports_video_input=False,
    openai_chat_supports_document_input=False,
    openai_chat_supports_web_search=False,
    supported_native_tools=frozenset(),
)


class PunieProvider(VLLMProvider):
    """A punie-mlx server at `base_url` (default: PUNIE_MLX_BASE_URL), which may ask for `api_key` (PUNIE_MLX_API_KEY).

    `openai_client`: a client of one's own instead, with time limits or retries of its own, say. What it shares with
    vLLM's provider is the care for the HTTP client, which must not outlive the event loop that it belongs to.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        openai_client: openai.AsyncOpenAI | None = None,
    ) -> None:
        if openai_client is not None:
            if base_url is not None or api_key is not None:
                raise UserError("give PunieProvider an openai_client, or a base_url and api_key, not both")
            super().__init__(openai_client=openai_client)
            return
        base_url = base_url or os.environ.get("PUNIE_MLX_BASE_URL")
        if not base_url:
            raise UserError("give PunieProvider the server's base_url, or set PUNIE_MLX_BASE_URL")
        # The client wants some key, also where the server asks for none.
        super().__init__(base_url=base_url, api_key=api_key or os.environ.get("PUNIE_MLX_API_KEY") or "none")

    @property
    def name(self) -> str:
        return "punie-mlx"

    @staticmethod
    def model_profile(model_name: str) -> ModelProfile | None:
        """The same for every model: what a model writes is held to its form by the server."""
        return PROFILE
