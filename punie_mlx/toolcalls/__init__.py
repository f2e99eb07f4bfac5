"""The wire: text that a model writes, read as tool calls. Pure Python, a library of its own."""
