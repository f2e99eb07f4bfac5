"""The verb `punie-mlx train`: its options, each a setting of `punie_mlx.train.config.TrainConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RATES, STEPS, WHAT, ROWS = "Learning", "Length and batches", "What is trained", "Rows and loss"
WATCH, SPEED, RUN = "Validation and checkpoints", "Speed and memory", "This run"


def train(
    model: Annotated[str | None, typer.Option(help="Model to train on: a directory or a Hub name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Directory with train.jsonl (and valid.jsonl), as `convert` writes it.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Directory of the adapter to write.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file with these settings (see data/recipes/); options go over it.")
    ] = None,
    # ---- how long, and how much at once ----
    iters: Annotated[int | None, typer.Option(help="Optimizer steps. \\[default: 500]", rich_help_panel=STEPS)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over all samples, in the place of --iters.", rich_help_panel=STEPS)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples in a batch; a sample is one assistant turn and what comes before it. More give steadier "
            "steps, and share more of their prompts. \\[default: 1]",
            rich_help_panel=STEPS,
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Batches that make one step: a larger batch, in the memory of one. \\[default: 1]",
            rich_help_panel=STEPS,
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens computed at once. A larger batch is computed in parts, with the same result: lower it where "
            "memory is short. \\[default: 8192]",
            rich_help_panel=STEPS,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Decides first values, order and dropout. \\[default: 0]", rich_help_panel=STEPS),
    ] = None,
    # ---- learning ----
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest rate: lower it where the loss jumps. \\[default: 1e-4]", rich_help_panel=RATES),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="constant|linear|cosine",
            help="How the rate falls after the warmup. \\[default: constant]",
            rich_help_panel=RATES,
        ),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Steps in which the rate rises from 0. \\[default: 0]", rich_help_panel=RATES)
    ] = None,
    final_rate: Annotated[
        float | None,
        typer.Option(help="Where linear or cosine ends, as a part of the rate. \\[default: 0]", rich_help_panel=RATES),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="adam, adamw, muon, sgd, lion or adafactor. Each wants its own rate: lion's is a third to a tenth of "
            "adam's, muon's is larger. adafactor takes the least memory. \\[default: adam]",
            rich_help_panel=RATES,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="Draws weights to 0; not for adam. \\[default: 0]", rich_help_panel=RATES),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(help="Longest gradient that a step takes; 0 takes any. \\[default: 1]", rich_help_panel=RATES),
    ] = None,
    # ---- what is trained ----
    method: Annotated[
        str | None,
        typer.Option(
            metavar="lora|dora|full",
            help="lora: small matrices beside the weights. dora: rows get a length of their own, too; slower. full: "
            "the weights themselves, of an unquantized base. \\[default: lora]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            help="Layers that are trained, from the last; -1 for all. Fewer take less time and memory. \\[default: 8]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of an update: more can hold more. \\[default: 8]", rich_help_panel=WHAT)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="What an update is multiplied by: alpha / rank. \\[default: 20]", rich_help_panel=WHAT),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="Part of an update's inputs left out by chance. \\[default: 0]", rich_help_panel=WHAT),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Modules to train, by name or pattern: q_proj, 'self_attn.*'. With commas, or repeated. Default: "
            "every linear layer.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    # ---- rows and loss ----
    loss_on: Annotated[
        str | None,
        typer.Option(
            metavar="turns|last|all",
            help="Learn every assistant turn, the last of a row only, or the whole text. \\[default: turns]",
            rich_help_panel=ROWS,
        ),
    ] = None,
    role_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=WEIGHT",
            help="Weight of a role's tokens in the loss, say tool=0.1; with commas, or repeated. Default: "
            "assistant=1, others 0.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    template_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="For the chat template, say '{\"enable_thinking\": false}': as you will serve it.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Most tokens of a sample. \\[default: 2048]", rich_help_panel=ROWS)
    ] = None,
    overlong: Annotated[
        str | None,
        typer.Option(
            metavar="drop|cut",
            help="Longer samples are dropped, or cut from the left; either is counted. \\[default: drop]",
            rich_help_panel=ROWS,
        ),
    ] = None,
    skip_bad: Annotated[
        bool | None,
        typer.Option(
            "--skip-bad", help="Put bad rows into quarantine.jsonl instead of stopping.", rich_help_panel=ROWS
        ),
    ] = None,
    # ---- validation and checkpoints ----
    val_batches: Annotated[
        int | None,
        typer.Option(help="Batches of a validation; -1 for all. \\[default: 25]", rich_help_panel=WATCH),
    ] = None,
    steps_per_eval: Annotated[
        int | None, typer.Option(help="Steps between validations. \\[default: 100]", rich_help_panel=WATCH)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many validations without improvement; 0 never does. \\[default: 0]",
            rich_help_panel=WATCH,
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints: the most that a crash costs. \\[default: 100]", rich_help_panel=WATCH
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Checkpoints that are kept. \\[default: 3]", rich_help_panel=WATCH)
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="last|loss|behaviour",
            help="The checkpoint that becomes the adapter: the last, or the best by validation loss or by what it "
            "does on --select. \\[default: last]",
            rich_help_panel=WATCH,
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="SUITE",
            help="Suite (.jsonl) on which checkpoints are scored by generating: the loss does not tell whether calls "
            "are right.",
            rich_help_panel=WATCH,
        ),
    ] = None,
    select_cases: Annotated[
        int | None, typer.Option(help="Cases of that suite each time. \\[default: 40]", rich_help_panel=WATCH)
    ] = None,
    steps_per_report: Annotated[
        int | None, typer.Option(help="Steps between lines of metrics.jsonl. \\[default: 25]", rich_help_panel=WATCH)
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also report to wandb, tensorboard or trackio, where they are installed; with commas, or repeated.",
            rich_help_panel=WATCH,
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Name of the project there. \\[default: punie-mlx]", rich_help_panel=WATCH)
    ] = None,
    # ---- speed and memory ----
    grad_checkpoint: Annotated[
        bool | None,
        typer.Option(
            "--grad-checkpoint/--no-grad-checkpoint",
            help="Compute activations twice to save memory. \\[default: no]",
            rich_help_panel=SPEED,
        ),
    ] = None,
    share_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="auto|on|off",
            help="Compute prompt prefixes that samples share once; auto does where the model allows. \\[default: auto]",
            rich_help_panel=SPEED,
        ),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(
            metavar="auto|on|off",
            help="Compile the step; auto does on a GPU only. \\[default: auto]",
            rich_help_panel=SPEED,
        ),
    ] = None,
    # ---- this run ----
    show: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Print N samples, the tokens that are learned marked, and exit.",
            rich_help_panel=RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done, and what memory it needs, and exit.", rich_help_panel=RUN
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that was stopped, from its last checkpoint.", rich_help_panel=RUN
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output if it exists.", rich_help_panel=RUN)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.", rich_help_panel=RUN)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report (or plan, or samples) as JSON.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train an adapter on rows: the loss is on every assistant turn, rendered as it will be served.

    Ctrl-C saves and leaves; the same command with --resume goes on. The adapter stands in OUT with its recipe, its
    losses and a report. Example: `punie-mlx train --model data/tiny-base --data data/phase8_xml_format --out
    runs/adapter`
    """
    given = dict(locals())  # before any other name: exactly the options
    from punie_mlx.export.hub import resolve
    from punie_mlx.train.config import KINDS, make_config

    config = make_config(recipe, {name: value for name, value in given.items() if name in KINDS and value != []})
    base = resolve(config.model) if config.model else None
    if show is not None:
        from punie_mlx.train.show import show as print_samples

        print_samples(config, show, base=base, as_json=as_json)
        return
    from punie_mlx.train.command import run_train

    run_train(config, base=base, overwrite=overwrite, resume=resume, dry_run=dry_run, as_json=as_json, quiet=quiet)
