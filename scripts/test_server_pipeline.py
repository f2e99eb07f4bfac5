#!/usr/bin/env python
"""What does a client of the server get? One request for each query, through the plain OpenAI client.

    python scripts/test_server_pipeline.py --model data/tiny-base
    python scripts/test_server_pipeline.py --url http://127.0.0.1:8080/v1 --suite data/suites/agent.jsonl --limit 10

Starts a server for --model and stops it, or asks the one that runs at --url. Prints calls, text and seconds; runs no
tool and gives no score: that is `punie-mlx eval`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import openai

from punie_mlx.corpus.suite import Case, read_suite
from punie_mlx.errors import PunieError, ServerError
from punie_mlx.evals.runner import base_url
from punie_mlx.evals.server_process import serving
from punie_mlx.export.hub import resolve

SUITE = Path(__file__).resolve().parent.parent / "data" / "suites" / "discrimination.jsonl"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="model directory, or a name on the hub: a server is started for it")
    source.add_argument("--url", help="a server that runs, say http://127.0.0.1:8080/v1")
    parser.add_argument("--adapter", type=Path, help="with --model: LoRA adapter directory to lay over it")
    parser.add_argument("--suite", type=Path, default=SUITE, help="queries and their tools (default: the five queries)")
    parser.add_argument("--limit", type=int, help="only the first N queries")
    parser.add_argument("--max-tokens", type=int, default=1024, help="tokens of one answer (default: 1024)")
    return parser.parse_args()


def ask(client: openai.OpenAI, model: str, case: Case, max_tokens: int) -> None:
    """Send one query and print what comes back."""
    start = time.perf_counter()
    response = client.chat.completions.create(
        model=model,
        messages=case.conversation,  # ty: ignore[invalid-argument-type] - plain dicts
        tools=case.tools,  # ty: ignore[invalid-argument-type] - plain dicts
        temperature=0,
        max_tokens=max_tokens,
    )
    seconds = time.perf_counter() - start
    choice = response.choices[0]
    print(f"── {case.id} ({case.category}): {case.query}")
    for call in choice.message.tool_calls or []:
        if call.type == "function":
            print(f"   call {call.function.name}({call.function.arguments})")
    if choice.message.content:
        print(choice.message.content)
    print(f"   [{choice.finish_reason}, {seconds:.2f} s]\n", flush=True)


def drive(url: str, given: argparse.Namespace) -> None:
    http = openai.DefaultHttpxClient(trust_env=False)
    try:
        with openai.OpenAI(base_url=url, api_key="not-needed", max_retries=0, http_client=http) as client:
            model = client.models.list().data[0]
            print(f"{url} serves {model.id}, fingerprint {(model.model_extra or {}).get('fingerprint')}\n")
            for case in read_suite(given.suite).cases[: given.limit]:
                ask(client, model.id, case, given.max_tokens)
    except (openai.OpenAIError, IndexError) as e:
        raise ServerError(f"the server at {url} did not answer as an OpenAI server does: {e}") from e


def main() -> None:
    given = options()
    read_suite(given.suite)  # a bad suite is to be found before a model is loaded
    if given.url:
        drive(base_url(given.url), given)
        return
    with serving(resolve(given.model), given.adapter) as (_, ready):
        drive(ready.url, given)


if __name__ == "__main__":
    try:
        main()
    except PunieError as e:
        print(f"test_server_pipeline: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
