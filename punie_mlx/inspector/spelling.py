"""What each token adds to the text, so that all of them together are the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from punie_mlx.chat.safe import vocabulary

LONGEST = 8  # tokens of one character; after that many, what is there is shown as it is
BROKEN = "\ufffd"  # how a piece of a character is decoded


class Spelling:
    """Spells the tokens of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        known = vocabulary(tokenizer).control
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self.control: dict[int, str] = {i: str(t) for i, t in added.items() if str(t) in known}

    def texts(self, tokens: Sequence[int], before: Sequence[int] = ()) -> list[str]:
        """The text that each of `tokens` completes, behind those `before`; "" for a piece of a character."""
        ids = [*before[-1:], *tokens]
        known = begun = len(ids) - len(tokens)  # what comes after `begun` is not spelled yet
        context = max(begun - 1, 0)
        texts = []
        for end in range(known + 1, len(ids) + 1):
            if ids[end - 1] in self.control:
                if end - begun > 1:  # a character that stays a piece: its last token shows it
                    texts[-1] = self._piece(ids, context, begun, end - 1)
                piece = self.control[ids[end - 1]]
            elif (piece := self._piece(ids, context, begun, end)).endswith(BROKEN) and end - begun < LONGEST:
                texts.append("")
                continue
            texts.append(piece)
            context, begun = end - 1, end
        return texts

    def kind(self, token: int, text: str) -> str:
        """What a token is, in the words of `pages.tokens`."""
        if token in self.control:
            return "control"
        return "text" if text else "part"

    def _piece(self, ids: Sequence[int], context: int, begun: int, end: int) -> str:
        """What is added by the tokens from `begun` to `end`, decoded from `context` on."""
        # Behind the token before: some tokenizers write the first token of a text otherwise.
        return self._decode(ids[context:end])[len(self._decode(ids[context:begun])) :]

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
