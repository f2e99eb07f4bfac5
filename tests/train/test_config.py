"""Defaults, recipes and options."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace

import pytest
import typer
import yaml
from typer.testing import CliRunner

from punie_mlx import cli_train
from punie_mlx.errors import ConfigError
from punie_mlx.train import command
from punie_mlx.train.config import CHOICES, KINDS, RUN_ONLY, TrainConfig, make_config, read_recipe


def test_defaults_are_the_origin_storys():
    config = TrainConfig()
    assert (config.iters, config.batch_size, config.learning_rate, config.layers) == (500, 1, 1e-4, 8)
    assert (config.rank, config.scale, config.max_seq_length) == (8, 20.0, 2048)


def test_options_go_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("iters: 7\nlearning_rate: 2e-4\nscale: 10\n")  # YAML reads 2e-4 as text, 10 as an integer
    config = make_config(recipe, {"iters": 9, "rank": None})
    assert (config.iters, config.learning_rate, config.scale, config.rank) == (9, 2e-4, 10.0, 8)


@pytest.mark.parametrize("name", ["tiny.yaml", "qwen3-coder-30b.yaml"])
def test_the_shipped_recipes_hold(name, root):
    config = make_config(root / "data" / "recipes" / name)
    assert config.iters == 500
    if name == "tiny.yaml":
        assert config == TrainConfig()


def test_a_recipe_that_was_written_is_the_same_run(tmp_path):
    config = TrainConfig(
        model="a/b", data="rows", iters=3, learning_rate=3e-5, grad_checkpoint=True, targets=("q_proj", "mlp.*"),
        role_weights={"tool": 0.1}, template_kwargs={"enable_thinking": False, "style": "ä"}, report_to=("trackio",),
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(config.recipe())
    assert make_config(tmp_path / "recipe.yaml") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning-rat: 1", "no setting `learning-rat`: did you mean `learning_rate`"),
        ("lora_alpha_gadget: 1", "the keys are model, data"),
        ("iters: many", "`iters` must be an integer, not 'many'"),
        ("iters: 1.5", "`iters` must be an integer"),
        ("iters: true", "`iters` must be an integer"),
        ("learning_rate: fast", "`learning_rate` must be a number"),
        ("grad_checkpoint: 1", "must be true or false"),
        ("- iters", "must hold `key: value` lines"),
        ("iters: [", "is not YAML"),
        ("targets: 3", "`targets` must be a list of names, not 3"),
        ("targets: [q_proj, 3]", "`targets` must be a list of names"),
        ("targets:", "`targets` must be a list of names, not None"),
        ("role_weights: [tool]", "`role_weights` must be `name: value` pairs, not ['tool']"),
        ("role_weights: {tool: much}", "`role_weights` must be `name: value` pairs"),
        ("template_kwargs: {day: 2025-01-01}", "`template_kwargs` must be `name: value` pairs"),
    ],
)
def test_a_bad_recipe_names_file_and_key(text, said, tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe)
    assert said in str(caught.value) and "bad.yaml" in str(caught.value)


def test_a_missing_recipe_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {"iters": 0}, {"batch_size": 0}, {"layers": 0}, {"rank": 0}, {"learning_rate": 0.0}, {"dropout": 1.0},
        {"learning_rate": float("nan")}, {"scale": float("inf")}, {"max_seq_length": 1}, {"val_batches": 0},
        {"seed": -1}, {"layers": -2}, {"accumulate": 0}, {"max_batch_tokens": 7}, {"warmup": -1}, {"patience": -1},
        {"epochs": -0.5}, {"epochs": float("inf")}, {"clip_norm": -1.0}, {"final_rate": 1.1, "schedule": "linear"},
        {"save_every": 0}, {"keep": 0}, {"select_cases": 0}, {"role_weights": {"tool": -1}},
        {"role_weights": {"user": float("nan")}},
    ],
)  # fmt: skip
def test_values_that_cannot_work(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer": "adamW"}, "optimizer cannot be 'adamW': did you mean adamw? It is one of adam, adamw, muon"),
        ({"schedule": "cosinus"}, "did you mean cosine?"),
        ({"method": "qqq"}, "method cannot be 'qqq': it is one of lora, dora, full"),
        ({"pick": "behavior"}, "did you mean behaviour?"),
        ({"report_to": ["wandb", "tensorbord"]}, "report_to cannot be 'tensorbord': did you mean tensorboard?"),
        ({"role_weights": {"assistent": 1}}, "role_weights cannot be 'assistent': did you mean assistant?"),
    ],
)
def test_a_wrong_choice_names_the_nearest(values, said):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said", "cure"),
    [
        ({"weight_decay": 0.1}, "no effect with the optimizer adam", {"optimizer": "adamw"}),
        ({"final_rate": 0.1}, "no effect with the schedule constant", {"schedule": "linear"}),
        ({"warmup": 10, "iters": 10}, "warmup is 10, and there are 10 steps", {"epochs": 1}),
        ({"dropout": 0.1, "method": "full"}, "no effect with the method full", {"method": "dora"}),
        ({"pick": "behaviour"}, "no suite to pick by: pass --select", {"select": "suite.jsonl"}),
    ],
)
def test_settings_that_do_not_go_together(values, said, cure):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**values)
    TrainConfig(**(values | cure))


def test_lists_and_pairs_are_taken_in_each_way_they_are_written(tmp_path):
    wanted = TrainConfig(targets=("q_proj", "mlp.*"), role_weights={"tool": 0.5, "user": 0.0})
    (tmp_path / "a.yaml").write_text("targets: [q_proj, mlp.*]\nrole_weights: {tool: 5e-1, user: 0}")
    (tmp_path / "b.yaml").write_text("targets: q_proj, mlp.*\nrole_weights: tool=0.5, user=0")
    assert make_config(tmp_path / "a.yaml") == make_config(tmp_path / "b.yaml") == wanted
    options = {"targets": ["q_proj", "mlp.*,q_proj"], "role_weights": ["tool=0.5", "user=0"]}
    assert make_config(None, options) == wanted
    assert make_config(None, {"role_weights": '{"tool": 0.5, "user": 0}', "targets": "q_proj,mlp.*"}) == wanted
    assert TrainConfig(targets=["q_proj"]).targets == ("q_proj",)


def test_what_decides_the_result_is_in_the_settings_as_json_holds_it():
    config = TrainConfig(model="m", data="d", out="o", targets=("q_proj",), role_weights={"tool": 1})
    settings = config.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert set(settings) == KINDS.keys() - {"model", "data", "out", *RUN_ONLY}
    assert "skip_bad" in settings and "share_prefix" in settings
    for name in RUN_ONLY:
        other = {"report_to": ("wandb",), "project": "other"}.get(name, 7)
        assert replace(config, **{name: other}).settings() == settings
    picked = replace(config, pick="loss")
    assert replace(picked, save_every=7).settings() == picked.settings()  # what is measured can be picked, saved or not


def test_every_setting_has_its_words():
    source = inspect.getsource(TrainConfig)
    for field in fields(TrainConfig):
        after = source.split(f"    {field.name}: ", 1)[1].splitlines()[1]
        assert after.strip().startswith('"""'), field.name


# ---- options of the command ----


@pytest.fixture
def run(monkeypatch):
    """`run("--iters", "3")`: the config, and what else the run was told."""
    told: dict = {}
    monkeypatch.setattr(command, "run_train", lambda config, **more: told.update(more, config=config))
    app = typer.Typer()
    app.command()(cli_train.train)

    def run(*options: str) -> dict:
        told.clear()
        result = CliRunner().invoke(app, list(options), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return dict(told)

    return run


def test_every_setting_is_an_option_and_teaches_its_default():
    parameters = inspect.signature(cli_train.train, eval_str=True).parameters
    assert parameters.keys() >= KINDS.keys()
    for name in KINDS.keys() - {"model", "data", "out"}:
        option = parameters[name].annotation.__metadata__[0]
        default = getattr(TrainConfig(), name)
        shown = {True: "yes", False: "no"}.get(default, default) if isinstance(default, bool) else default
        if shown and shown != "no":
            told = option.help.rpartition("\\[default: ")[2].rstrip("]")
            assert told == str(shown) or float(told) == shown, name
        for choice in CHOICES.get(name, ()):
            assert choice in option.help + str(option.metavar), (name, choice)


def test_options_are_the_config_and_the_run(run, root, tmp_path):
    assert run() == {
        "config": TrainConfig(), "base": None, "overwrite": False, "resume": False, "dry_run": False, "as_json": False,
        "quiet": False,
    }  # fmt: skip
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"iters": 7, "grad_checkpoint": True, "targets": ["q_proj"], "rank": 4}))
    told = run(
        "--recipe", str(recipe), "--rank", "2", "--no-grad-checkpoint", "--targets", "mlp.*",
        "--targets", "k_proj,o_proj",
        "--role-weights", "tool=0.1", "--template-kwargs", '{"enable_thinking": false}', "--learning-rate", "2e-4",
        "--report-to", "wandb,trackio", "--resume", "--json", "--skip-bad", "--model", str(root / "data" / "tiny-base"),
    )  # fmt: skip
    assert told["resume"] and told["as_json"] and not told["overwrite"]
    assert told["base"] == root / "data" / "tiny-base"
    assert told["config"] == TrainConfig(
        model=str(root / "data" / "tiny-base"), iters=7, rank=2, targets=("mlp.*", "k_proj", "o_proj"),
        role_weights={"tool": 0.1}, template_kwargs={"enable_thinking": False}, learning_rate=2e-4,
        report_to=("wandb", "trackio"), skip_bad=True,
    )  # fmt: skip


def test_a_wrong_option_is_a_config_error(run):
    with pytest.raises(ConfigError, match="did you mean adamw"):
        run("--optimizer", "adamww")
    with pytest.raises(ConfigError, match="option: `role_weights` must be"):
        run("--role-weights", "tool")
