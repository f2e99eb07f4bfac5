"""What a model is given and what it writes, token by token: for looking at, in a terminal and as a page.

    source.py       messages and tools, from a file of messages or a row of a corpus
    spelling.py     what each token adds to the text
    spans.py        which message each token of a prompt belongs to
    reading.py      what the reader makes of tokens: its state after each, and the calls
    training.py     on which positions training puts a loss
    answer.py       what the model writes, with probabilities
    inspection.py   all of it together, as one value
    terminal.py, page.py   two ways to look at it

It sees through the eyes of the others: prompts are `chat`'s, losses are `train`'s, states are those of `toolcalls`.
"""

from __future__ import annotations
