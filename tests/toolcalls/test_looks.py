"""What looks like a call in an answer, and what does not."""

from __future__ import annotations

import pytest

from punie_mlx.toolcalls.looks import call_text

CALL = '{"name": "read", "arguments": {"path": "a"}}'


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("It is done.", None),
        ("Well. <tool_call>\n<function=read>", "<tool_call>\n<function=read>"),
        ("Well. <function=read>", "<function=read>"),
        (f"```json\n{CALL}\n```", CALL + "\n"),
        (f"Here:\n```\n{CALL[:30]}", CALL[:30]),  # cut off
        (f" [{CALL}]", f" [{CALL}]"),
        ('```json\n{"name": "fly", "arguments": {}}\n```', '{"name": "fly", "arguments": {}}\n'),  # not offered
        ("{'function': 'read'}", "{'function': 'read'}"),
        ('{"name": "Ada"}', None),  # an object about somebody
        ('```json\n{"name": "Ada"}\n```', None),
        ("```python\nread('a')\n```", None),
    ],
)
def test_the_text_of_a_call(answer, found):
    assert call_text(answer, {"read"}) == found
