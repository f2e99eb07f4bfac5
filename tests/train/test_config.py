"""Defaults, recipes and options."""

from __future__ import annotations

import pytest

from punie_mlx.errors import ConfigError
from punie_mlx.train.config import TrainConfig, make_config, read_recipe


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
    config = TrainConfig(model="a/b", data="rows", iters=3, learning_rate=3e-5, grad_checkpoint=True)
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
        {"seed": -1},
    ],
)  # fmt: skip
def test_values_that_cannot_work(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)
