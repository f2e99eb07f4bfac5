"""Why a model does not call tools: checks with evidence, and the mended template.

findings.py      Finding, Check, and the examination that runs checks
specimen.py      what is under examination: a template, its tokenizer, its directory
table.py         all checks, and the page of explanation that each has (explained/ID.md)
template_*.py    what the template does to tools, calls, results, thinking and text: cases.py has the conversations that
                 it is tried on, excerpts.py cuts out what proves something
roundtrip.py     a call written by the template and read by the format
stock.py         the reader of calls that mlx_lm takes
flags.py         what to type for mlx_lm, vLLM and llama.cpp
vocabulary.py    markers, end tokens, ids, two templates
adapter.py       an adapter against the model
data.py          rows against the served prompt
probe.py         what the model really writes, before any parser: probes.py asks, written.py tells what an answer is,
                 probed.py keeps it, behaviour.py checks it
server_*.py      a running server, asked over HTTP
mend.py          the mended template, proved by the same checks: rewrites.py and rewrites_turns.py propose edits of its
                 text (jinja_text.py), usage.py says what to type to use it
"""
