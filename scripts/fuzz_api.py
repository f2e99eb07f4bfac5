#!/usr/bin/env python3
"""Ask a server of ours what its own OpenAPI description allows, and what it does not, and look for wrong answers.

    python scripts/fuzz_api.py --examples 2000 --json fuzz.json     # a server of its own, on data/tiny-base
    python scripts/fuzz_api.py --url http://127.0.0.1:8080 --api-key KEY

Schemathesis makes the requests, half of them as described, half not. It is a failure where an answer is a 5xx, has a
status that the description does not name, is an error in another shape than OpenAI's, is a stream without [DONE], or
does not come within --patience seconds; and where the engine is dead or was restarted, or still holds a request in the
end. Failing requests are in the result, with how to send them again.

    {"examples", "failures": [{"request", "status", "why"}], "statuses": {path: {status: n}}, "health", "seed", …}

Exit code 0 without failures, 1 with some, 2 if it cannot run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import load_client
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from rich.progress import MofNCompleteColumn, Progress

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--max-context", "512", "--max-tokens", "16", "--log-level", "warning")  # short answers, many examples
FEW = 5  # for a path that takes nothing: its examples are all alike
SETTLE_SECONDS = 20.0


@dataclass
class Fuzz:
    """One run against the server at `url`, and what came of it."""

    url: str
    session: requests.Session
    patience: float
    examples: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def try_one(self, case: Any) -> None:
        self.examples += 1
        try:
            response = case.call(base_url=self.url, session=self.session, timeout=self.patience)
        except requests.RequestException as e:
            self.fail(case, None, f"no answer: {type(e).__name__}: {e}")
            return
        self.statuses[case.operation.path][str(response.status_code)] += 1
        why = wrong(response, {str(s) for s in case.operation.definition.raw["responses"]})
        if why:
            self.fail(case, response.status_code, why)

    def fail(self, case: Any, status: int | None, why: str) -> None:
        self.failures.append({"request": case.as_curl_command(), "status": status, "why": why})

    def health(self) -> dict[str, Any]:
        """What the server says of itself, once it has had time to end everything; its faults are failures."""
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                health = self.session.get(self.url + "/health", timeout=self.patience).json()
            except (requests.RequestException, ValueError) as e:
                health = {"status": f"dead: {type(e).__name__}"}
            quiet = not health.get("running") and not health.get("waiting")
            if quiet or time.monotonic() > end:
                break
            time.sleep(0.1)
        faults = {"engine": health.get("status") != "ok", "restarts": bool(health.get("restarts")), "leak": not quiet}
        self.failures += [{"request": None, "status": None, "why": k} for k, fault in faults.items() if fault]
        return health


def wrong(response: Any, known: set[str]) -> str | None:
    """What is wrong with an answer, if anything."""
    status = response.status_code
    if status >= 500:
        return f"a {status}: {response.text[:500]}"
    if str(status) not in known and status != 405:  # schemathesis also tries methods that are not there
        return f"the status {status} is not described"
    kind = response.headers.get("content-type", [""])[0]
    if status >= 400:
        return None if openai_shape(response) else f"no error of OpenAI's shape: {response.text[:500]}"
    if kind.startswith("text/event-stream") and not response.text.endswith("data: [DONE]\n\n"):
        return f"a stream without [DONE]: …{response.text[-500:]}"
    return None


def openai_shape(response: Any) -> bool:
    try:
        error = response.json()["error"]
        return (
            isinstance(error["message"], str) and isinstance(error["type"], str) and {"param", "code"} <= error.keys()
        )
    except (ValueError, KeyError, TypeError):
        return False


def fuzz(run: Fuzz, examples: int, seed: int) -> None:
    """Try `examples` requests or a few more, nearly all of them where something is sent."""
    description = run.session.get(run.url + "/openapi.json", timeout=run.patience).json()
    described: Any = schemathesis.openapi.from_dict(description).get_all_operations()
    operations = [result.ok() for result in described]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    sending = [(o, mode) for o in operations if o.body for mode in modes]
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("requests", total=examples)

        def once(case: Any) -> None:
            run.try_one(case)
            progress.advance(task)

        for operation in operations:
            if not operation.body:
                explore(operation.as_strategy(generation_mode=modes[0]), once, FEW, seed)
        while run.examples < examples:  # a round may make fewer than it was asked for
            each = -(-(examples - run.examples) // len(sending))
            for operation, mode in sending:
                explore(operation.as_strategy(generation_mode=mode), once, each, seed)
            seed += 1


def explore(strategy: Any, once: Any, count: int, seed: int) -> None:
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(once)))()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the server to ask; default: one of its own")
    parser.add_argument("--api-key", help="its key, if it wants one")
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base", help="for a server of its own")
    parser.add_argument("--examples", type=int, default=2000, help="requests to send, at least")
    parser.add_argument("--seed", type=int, default=0, help="decides the requests")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for one answer")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    began = time.monotonic()
    session = requests.Session()
    session.trust_env = False  # no proxy
    if options.api_key:
        session.headers["Authorization"] = f"Bearer {options.api_key}"
    try:
        with contextlib.ExitStack() as stack:
            if options.url:
                url = options.url.rstrip("/").removesuffix("/v1")
            else:
                url = f"http://127.0.0.1:{stack.enter_context(load_client.ours(options.model, *SMALL)).port}"
            run = Fuzz(url, session, options.patience)
            fuzz(run, options.examples, options.seed)
            health = run.health()
    except (RuntimeError, requests.RequestException, OSError) as e:
        print(f"fuzz_api: {e}", file=sys.stderr)
        return 2
    result = {
        "examples": run.examples,
        "failures": run.failures,
        "statuses": run.statuses,
        "health": health,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "schemathesis": schemathesis.SCHEMATHESIS_VERSION,
    }
    text = json.dumps(result, indent=2, ensure_ascii=False)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
