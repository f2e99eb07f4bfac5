"""A chat template without a tokenizer: renders as transformers does, and has no vocabulary.

Its special tokens are stand-ins, since only a tokenizer knows the model's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

STAND_INS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Alone:
    """Stands where a tokenizer does, for rendering only."""

    def __init__(self, chat_template: str) -> None:
        self.chat_template = chat_template

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The rendered text. Raises what the template raises."""
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # as mlx_lm does: no PyTorch is wanted
        from transformers.utils.chat_template_utils import render_jinja_template

        if tokenize:
            raise ValueError("a template alone has no vocabulary: give the model directory")
        given: dict[str, Any] = {
            **STAND_INS,
            **template_kwargs,
            "conversations": [[dict(m) for m in conversation]],
            "tools": [dict(t) for t in tools] if tools else None,
            "chat_template": self.chat_template,
            "add_generation_prompt": add_generation_prompt,
        }
        rendered, _ = render_jinja_template(**given)
        return rendered[0]
