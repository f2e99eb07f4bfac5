"""How much faster decoding gets by guessing ahead: plain, prompt lookup, and a draft model, in one run.

    scripts/benchmark_speculative.py --model runs/demo/fused --limit 100
    scripts/benchmark_speculative.py --model runs/demo/fused --draft runs/demo/quantized --json out.json

The model plays the cases of a suite as an agent (real server, real tools); each prompt that came up is then decoded
once more by each mode, greedily, on the bare model, the modes taking turns in going first. Printed for each category:
tokens, how many guesses were right, forward passes for each token, and the speed-up of decoding (from the first token
on) over plain. All modes must write the same tokens; exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from punie_mlx import hardware, identity
from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import safe_prompt
from punie_mlx.corpus.suite import Case, read_suite
from punie_mlx.evals.runner import EvalConfig, evaluate
from punie_mlx.serve import loading, lookup
from punie_mlx.toolcalls import detect

ROOT = Path(__file__).resolve().parent.parent
MAX_TOKENS = 256
WIDTH = 120  # of a table that goes into a file
COLUMNS = ("category", "mode", "prompts", "same tokens", "guesses right", "passes a token", "speed-up", "median")


@dataclass(frozen=True)
class Prompt:
    """A prompt that came up: what it is of, its tokens, and the skeletons of the calls of its tools."""

    category: str
    tokens: list[int]
    skeletons: list[int]


@dataclass
class Outcome:
    """What one mode made of a prompt."""

    tokens: list[int] = field(default_factory=list)
    passes: int = 0  # of the model, while decoding
    guessed: int = 0
    accepted: int = 0
    seconds: float = 0.0


Mode = Callable[[Prompt], Outcome]


def prompts_of(cases: Sequence[Case], records: Sequence[dict[str, Any]], tokenizer: Any) -> Iterator[Prompt]:
    """Each answer of the model in `records` has a prompt: what stands before it, as the server renders it."""
    wire = detect.examine(tokenizer.chat_template, tokenizer.get_vocab()).wire()
    known = {c.id: c for c in cases}
    for record in records:
        tools = known[record["id"]].tools
        skeletons = lookup.skeletons(tokenizer, wire.name, tools)
        for i, message in enumerate(record["messages"]):
            if message["role"] == "assistant":
                prompt = safe_prompt(tokenizer, for_template(record["messages"][:i]), tools_for_template(tools))
                kind = "call" if message.get("tool_calls") else "answer"
                yield Prompt(f"{record['category'].removesuffix(', new tool set')}: {kind}", prompt.tokens, skeletons)


def modes_of(loaded: Any, draft: Any, draft_tokens: int) -> dict[str, Mode]:
    """The ways to decode, by name."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step, speculative_generate_step
    from mlx_lm.models.cache import make_prompt_cache

    model, ends, stream = loaded.network, loaded.eos, mx.new_stream(mx.default_device())

    def collect(steps: Iterator[tuple[Any, ...]], outcome: Outcome) -> Outcome:
        began = None
        for token, _, *guessed in steps:
            if began is None:
                began = time.perf_counter()
            elif not (guessed and guessed[0]):
                outcome.passes += 1
            outcome.tokens.append(int(token))
            if token in ends:
                break
        outcome.seconds = time.perf_counter() - (began or 0.0)
        return outcome

    def plain(prompt: Prompt) -> Outcome:
        cache = make_prompt_cache(model)
        steps = generate_step(mx.array(prompt.tokens), model, stream, max_tokens=MAX_TOKENS, prompt_cache=cache)
        return collect(steps, Outcome())

    def looked_up(prompt: Prompt, skeletons: Sequence[int] = ()) -> Outcome:
        drafter = lookup.PromptLookup()
        drafter.context = lookup.Context(prompt.tokens, skeletons)
        steps = lookup.steps(
            mx.array(prompt.tokens), model, drafter, stream,
            max_tokens=MAX_TOKENS, prompt_cache=make_prompt_cache(model), sampler=lambda x: mx.argmax(x, axis=-1),
        )  # fmt: skip
        made = collect(steps, Outcome())
        steps.close()
        made.guessed, made.accepted = drafter.context.guessed, drafter.context.accepted
        return made

    def drafted(prompt: Prompt) -> Outcome:
        cache = [*make_prompt_cache(model), *make_prompt_cache(draft)]
        steps = speculative_generate_step(
            mx.array(prompt.tokens), model, draft, stream,
            num_draft_tokens=draft_tokens, max_tokens=MAX_TOKENS, prompt_cache=cache,
        )  # fmt: skip
        made = collect(steps, Outcome())
        made.guessed = draft_tokens * (made.passes + 1)
        made.accepted = len(made.tokens) - made.passes - 1
        return made

    modes: dict[str, Mode] = {
        "plain": plain,
        "lookup": looked_up,
        "lookup + skeletons": lambda p: looked_up(p, p.skeletons),
    }
    return modes | ({"draft model": drafted} if draft is not None else {})


def measure(prompts: Sequence[Prompt], modes: dict[str, Mode], rounds: int) -> list[dict[str, Outcome]]:
    """Every mode on every prompt; of several rounds the fastest counts, and who goes first changes."""
    names = list(modes)
    for name in names:
        modes[name](prompts[0])  # warm-up
    found: list[dict[str, Outcome]] = []
    for i, prompt in enumerate(track(prompts, "decoding", console=Console(stderr=True), transient=True)):
        best: dict[str, Outcome] = {}
        for turn in range(rounds):
            first = (i + turn) % len(names)
            for name in [*names[first:], *names[:first]]:
                made = modes[name](prompt)
                if name not in best or made.seconds < best[name].seconds:
                    best[name] = made
        found.append({name: best[name] for name in names})
    return found


def summary(prompts: Sequence[Prompt], found: Sequence[dict[str, Outcome]]) -> dict[str, Any]:
    """category → mode → figures; the category `all` holds every prompt."""
    groups: defaultdict[str, list[dict[str, Outcome]]] = defaultdict(list)
    for prompt, outcomes in zip(prompts, found, strict=True):
        groups[prompt.category].append(outcomes)
        groups["all calls" if prompt.category.endswith("call") else "all answers"].append(outcomes)
    groups["all"] = list(found)
    return {name: {mode: _figures(mode, group) for mode in group[0]} for name, group in sorted(groups.items())}


def _figures(mode: str, group: Sequence[dict[str, Outcome]]) -> dict[str, Any]:
    mine, plain = [g[mode] for g in group], [g["plain"] for g in group]
    tokens, guessed = sum(len(o.tokens) - 1 for o in mine), sum(o.guessed for o in mine)
    ratios = [p.seconds / m.seconds for p, m in zip(plain, mine, strict=True) if len(m.tokens) > 1]
    return {
        "prompts": len(group),
        "tokens": tokens,
        "same_tokens": sum(p.tokens == m.tokens for p, m in zip(plain, mine, strict=True)),
        "acceptance": sum(o.accepted for o in mine) / guessed if guessed else None,
        "passes_per_token": sum(o.passes for o in mine) / tokens if tokens else None,
        "speedup": sum(p.seconds for p in plain) / sum(m.seconds for m in mine),
        "speedup_median": statistics.median(ratios) if ratios else None,
    }


def table(figures: dict[str, Any]) -> Table:
    shown = Table(title="decoding, against plain in the same run")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column in ("category", "mode") else "right")
    for category, modes in figures.items():
        for mode, f in modes.items():
            shown.add_row(
                category if mode == "plain" else "", mode, str(f["prompts"]), str(f["same_tokens"]),
                _number(f["acceptance"]), _number(f["passes_per_token"]), _number(f["speedup"]),
                _number(f["speedup_median"]),
            )  # fmt: skip
        shown.add_section()
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--draft", type=Path, help="directory of a small model with the same vocabulary")
    parser.add_argument("--draft-tokens", type=int, default=3, help="tokens that the draft model guesses (3)")
    parser.add_argument("--suite", type=Path, default=ROOT / "data/suites/agent.jsonl")
    parser.add_argument("--limit", type=int, help="only the first N cases")
    parser.add_argument("--rounds", type=int, default=3, help="times that each prompt is decoded by each mode (3)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    args = parser.parse_args()

    suite = read_suite(args.suite)
    run = evaluate(EvalConfig(model=args.model, suites=(args.suite,), limit=args.limit))
    loaded = loading.load(args.model, None, loading.DEFAULT_LIMITS, None)
    draft = loading.load_draft(args.draft, loaded) if args.draft else None
    prompts = list(prompts_of(suite.cases, run["cases"], loaded.tokenizer))
    found = measure(prompts, modes_of(loaded, draft, args.draft_tokens), args.rounds)
    figures = summary(prompts, found)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table(figures))
    result = {
        "kind": "speculative",
        "model": run["model"],
        "draft": str(args.draft) if args.draft else None,
        "draft_tokens": args.draft_tokens,
        "rounds": args.rounds,
        "device": "cpu" if hardware.on_cpu() else "gpu",
        "suite": run["suite"],
        "categories": figures,
        "versions": identity.versions(),
    }
    if args.json:
        identity.write_json(args.json, result)
    else:
        print(json.dumps({"all": figures["all"]}))
    apart = [mode for mode, f in figures["all"].items() if f["same_tokens"] < f["prompts"]]
    if apart:
        print(f"other tokens than plain decoding: {', '.join(apart)}", file=sys.stderr)
    return 1 if apart else 0


if __name__ == "__main__":
    raise SystemExit(main())
