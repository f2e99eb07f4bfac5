"""The verbs of `punie-mlx`. Each parses its options and calls one function of a room below."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from punie_mlx.cli_audit import audit
from punie_mlx.cli_compare import compare
from punie_mlx.cli_doctor import doctor
from punie_mlx.cli_eval import eval_
from punie_mlx.cli_export import fuse, quantize
from punie_mlx.cli_hub import pull, push
from punie_mlx.cli_inspect import inspect
from punie_mlx.cli_profile import profile
from punie_mlx.cli_report import report
from punie_mlx.cli_suite import app as suite_app
from punie_mlx.cli_sweep import sweep
from punie_mlx.cli_template import app as template_app
from punie_mlx.cli_train import train
from punie_mlx.errors import PunieError
from punie_mlx.pages.text import visible

app = typer.Typer(
    name="punie-mlx",
    help="Make a local MLX model call tools reliably, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# ---- corpus: generate, convert ----


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write: train, valid and test.jsonl.")],
    seed: Annotated[int, typer.Option(help="Decides every row; the same seed writes the same bytes.")] = 0,
    suite: Annotated[Path | None, typer.Option(help="Also write a suite of held-out questions to this file.")] = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases of that suite, of 11 categories mixed.")] = 560,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Make the example corpus: 683 rows of a coding agent's work, calls as JSON fences (546/68/69).

    No question stands in two splits: its hash decides. Example: `punie-mlx generate data/phase8_json_format`
    """
    from punie_mlx.corpus import generate as room
    from punie_mlx.corpus.suites.agent import write_suite

    if suite:
        write_suite(suite, cases, seed, overwrite=overwrite)
        print(f"{suite}: {cases} cases")
    sizes = room.generate(out, seed=seed, overwrite=overwrite)
    print(f"{out}: {', '.join(f'{n} {split}' for split, n in sizes.items())}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Directory of .jsonl files: messages or ChatML text.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write: rows, quarantine, report, manifest.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Directory with the tokenizer and chat template to convert for. Default: data/tiny-base."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Turn rows with calls in fences, or in ready-made text, into structured rows that a model's template renders.

    Every converted row is proved by reading its rendering back; every other row goes to quarantine.jsonl with file,
    line and reason. Example: `punie-mlx convert data/phase8_json_format data/phase8_xml_format`
    """
    from punie_mlx.corpus import convert as room

    config = room.ConvertConfig(source, out, model or room.default_model(), overwrite=overwrite)
    report = room.convert(config)
    print(report.to_json() if as_json else report.summary(out))


app.command()(audit)
app.add_typer(suite_app)

# ---- toolcalls: parse ----


@app.command()
def parse(
    file: Annotated[str, typer.Argument(help="File with the raw text of one answer; - reads stdin.")] = "-",
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Wire format: auto, qwen3_coder, seed_oss, mimo, hermes, smollm3, harmony, mistral, llama3_json, "
            "pythonic, glm, kimi, minimax, deepseek, gemma, json_fence. Auto takes the one that the text shows.",
        ),
    ] = "auto",
    tools: Annotated[
        Path | None, typer.Option(help="JSON file with the offered tools (OpenAI schemas): types the arguments.")
    ] = None,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="The prompt has opened the thinking already.")] = False,
    rescue: Annotated[
        bool, typer.Option("--rescue", help="Also read calls of offered tools outside the wire format, marked as such.")
    ] = False,
    finish: Annotated[
        str, typer.Option(metavar="stop|length", help="How the text ended: stop, or length where it was cut off.")
    ] = "stop",
    chunk: Annotated[int, typer.Option(min=0, help="Feed that many characters at a time; 0 feeds all at once.")] = 0,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            help="Read one case a line from here instead (- is stdin): model_output, and maybe id, format, tools, "
            "reasoning, rescue, finish. Writes one result a line, with the case's id."
        ),
    ] = None,
) -> None:
    """Read the tool calls in raw model output and print one JSON object.

    Its keys: content, reasoning (text or null), tool_calls (name, arguments), problems (kind, detail, raw),
    finish_reason; after auto, format. A call that was cut off has "truncated": true and the text of what had arrived of
    its arguments; one from --rescue has "rescued": true. With --jsonl the other options are the defaults of the cases.
    Example: `punie-mlx parse --format qwen3_coder --tools tools.json answer.txt`
    """
    from punie_mlx.toolcalls import command

    options = command.Options(format, command.read_tools(tools), reasoning, rescue, finish, chunk)
    if jsonl:
        command.print_lines(command.parse_cases(jsonl, options))
    else:
        command.print_lines([command.parse_text(command.read_text(file), options)])


app.command()(train)
app.command()(fuse)
app.command()(quantize)
app.command()(push)
app.command()(pull)


# ---- serve ----


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Option(help="Model directory: config.json, weights, tokenizer, chat template.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter directory (of `train`) to lay over the model.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, reachable from here only. \\[default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one. \\[default: 8080]"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the API. Default: its directory's.")] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer together, where less than the model's own.")
    ] = None,
    kv_bits: Annotated[
        int | None, typer.Option(help="Quantize the KV cache to so many bits; requests then run one at a time.")
    ] = None,
    prompt_cache_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the prompt cache, say 512M or 4G.")
    ] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests decoded at once. \\[default: 32]")] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Requests that may wait; one more is answered with 429. \\[default: 96]")
    ] = None,
    draft_model: Annotated[
        Path | None, typer.Option(help="Small model to guess tokens ahead; requests run one at a time, unconstrained.")
    ] = None,
    prompt_lookup: Annotated[
        bool | None,
        typer.Option("--prompt-lookup", help="Guess tokens from the prompt and the tools; requests run one at a time."),
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Jinja file in the place of the model's own template.")
    ] = None,
    tool_call_format: Annotated[
        str | None, typer.Option(metavar="NAME", help="Wire format of its calls. Default: what its template shows.")
    ] = None,
    reasoning_format: Annotated[
        str | None, typer.Option(metavar="auto|none|OPEN,CLOSE", help="Tags around its thinking. \\[default: auto]")
    ] = None,
    constrain: Annotated[
        str | None,
        typer.Option(metavar="auto|off|required-only", help="When a grammar holds calls to it. \\[default: auto]"),
    ] = None,
    rescue: Annotated[
        bool | None, typer.Option("--rescue", help="Also read calls outside the wire format, marked as such.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Where a request says none; likewise the next four. Default: the model's own.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest of this mass.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many; 0 from all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability, as a part of the likeliest's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of an answer. Default: what is left of the context.")] = None,
    template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="For the chat template, say '{\"enable_thinking\": false}'.")
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds after which an answer is ended with an error. \\[default: 600]")
    ] = None,
    drain: Annotated[
        float | None, typer.Option(help="Seconds that answers under way get after SIGTERM. \\[default: 30]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key that requests must carry. Better in the environment, as PUNIE_MLX_API_KEY."),
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Let other machines call without a key, by any host name.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of browsers' pages that may call (CORS); may be repeated.")
    ] = None,
    inspect: Annotated[
        bool | None,
        typer.Option("--inspect", help="A page at /inspect that shows tokens while they come; loopback only."),
    ] = None,
    otel_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Export traces there (OTLP). Default: OTEL_EXPORTER_OTLP_ENDPOINT, if set."),
    ] = None,
    log_content: Annotated[
        bool | None, typer.Option("--log-content", help="Log the text of requests and answers. Never done otherwise.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="debug|info|warning|error", help="What to log, to stderr. \\[default: info]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with these settings; options go over it.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would be served, and whether it fits, and exit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: as JSON.")] = False,
) -> None:
    """Serve a model over an OpenAI-compatible API, with tool calls.

    When it is ready it writes one JSON line to stdout, with the url and the model's fingerprint; all else goes to
    stderr. Ctrl-C or SIGTERM stops it. Example: `punie-mlx serve --model data/tiny-base --port 0`
    """
    from punie_mlx.serve.config import make_config

    options = {
        "model": model, "adapter": adapter, "host": host, "port": port, "name": name, "max_context": max_context,
        "kv_bits": kv_bits, "prompt_cache_bytes": prompt_cache_bytes, "max_concurrency": max_concurrency,
        "max_queue": max_queue, "draft_model": draft_model, "prompt_lookup": prompt_lookup,
        "chat_template": chat_template,
        "tool_call_format": tool_call_format, "reasoning_format": reasoning_format, "constrain": constrain,
        "rescue": rescue, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
        "max_tokens": max_tokens, "template_kwargs": template_kwargs, "request_timeout": request_timeout,
        "drain": drain, "api_key": api_key, "insecure": insecure, "allow_origin": allow_origin or None,
        "inspect": inspect, "otel_endpoint": otel_endpoint, "log_content": log_content, "log_level": log_level,
    }  # fmt: skip
    made = make_config(config, options)
    if check:
        from punie_mlx.serve.check import run_check

        run_check(made, as_json=as_json)
    else:
        from punie_mlx.serve.process import serve as run

        run(made)


app.command("eval")(eval_)
app.command()(profile)
app.command()(compare)
app.command()(sweep)
app.command()(report)

# ---- looking: doctor, inspect ----


app.command()(doctor)
app.command()(inspect)
app.add_typer(template_app)

# ---- pipeline ----


@app.command()
def pipeline(
    model: Annotated[str, typer.Option(help="The base: a directory or a Hub name.")] = "data/tiny-base",
    data: Annotated[
        Path, typer.Option(help="Directory of rows in any form that `convert` reads: fences, ChatML text, messages.")
    ] = Path("data/phase8_json_format"),
    out: Annotated[Path, typer.Option(help="Directory of all results; a stopped run is taken up again there.")] = Path(
        "runs/pipeline"
    ),
    suite: Annotated[
        list[Path] | None, typer.Option(help="Suite to score on; may be repeated. Default: the two of data/suites.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe of the training (see data/recipes/).")] = None,
    iters: Annotated[int | None, typer.Option(help="Training iterations. \\[default: 500]")] = None,
    bits: Annotated[int, typer.Option(help="Bits a weight of the last model: 2, 3, 4, 5, 6 or 8.")] = 5,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = 64,
    limit: Annotated[int | None, typer.Option(help="Only the first N cases of each suite.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", "--overwrite", help="Do all stages again, also those that are done.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of the table.")] = False,
) -> None:
    """Rows in, a scored 5-bit model out: convert, train, fuse, quantize, and score each model on the way.

    Stages that are done and whose inputs are the same are skipped, so a stopped run goes on where it was.
    Example: `punie-mlx pipeline --data data/phase8_json_format --out runs/first`
    """
    from punie_mlx.export.hub import resolve
    from punie_mlx.pipeline import SUITES, PipelineConfig, run_verb
    from punie_mlx.train.config import make_config

    config = PipelineConfig(
        model=resolve(model),
        data=data,
        out=out,
        suites=tuple(suite or map(Path, SUITES)),
        train=make_config(recipe, {"iters": iters}),
        bits=bits,
        group_size=group_size,
        limit=limit,
        restart=restart,
    )
    run_verb(config, as_json=json_)


def main() -> None:
    """Entry point: exit code 0, or that of the error (see `punie_mlx.errors`), or 130 on Ctrl-C."""
    try:
        app()
    except PunieError as e:
        print(f"punie-mlx: {visible(e)}", file=sys.stderr)  # a message may quote what others wrote
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        print("punie-mlx: interrupted", file=sys.stderr)
        sys.exit(130)
