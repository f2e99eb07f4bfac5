"""Template against tokenizer: each fault is planted in a copy of a real model directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.chat import templates
from punie_mlx.doctor import vocabulary
from punie_mlx.doctor.findings import Finding, examine
from punie_mlx.doctor.specimen import Specimen

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def model(tmp_path: Path, tiny_base: Path) -> Path:
    """A copy of the embedded model that can be changed; its weights are a link."""
    path = tmp_path / "model"
    path.mkdir()
    for name in FILES:
        shutil.copy(tiny_base / name, path)
    (path / "model.safetensors").symlink_to(tiny_base / "model.safetensors")
    return path


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON object of `file` in place."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def token(tokenizer: dict[str, Any], spelling: str) -> dict[str, Any]:
    """What tokenizer.json says of an added token."""
    return next(t for t in tokenizer["added_tokens"] if t["content"] == spelling)


def set_token(model: Path, spelling: str, **values: Any) -> None:
    edit(model / "tokenizer.json", lambda tokenizer: token(tokenizer, spelling).update(values))


CHATML = ("<|im_start|>", "<|im_end|>")


def made(path: Path, tokens: Sequence[str], template: str) -> Path:
    """A directory with a tokenizer of bytes and `tokens`, and a template; no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(level.alphabet()))}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = level, decoders.ByteLevel()
    bpe.add_special_tokens([*tokens])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(path))
    (path / "config.json").write_text(
        json.dumps({"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id})
    )
    return path


def found(specimen: Specimen) -> list[Finding]:
    return list(examine(specimen, vocabulary.CHECKS).findings)


def only(specimen: Specimen, check: str) -> Finding:
    """The one finding, which is that of `check`."""
    (finding,) = found(specimen)
    assert finding.check == check
    return finding


def test_the_embedded_model_is_clean(tiny_base):
    examined = examine(Specimen.of_model(tiny_base), vocabulary.CHECKS)
    assert not examined.findings and not examined.skipped


def test_a_template_alone_is_asked_for_nothing_that_needs_tokens():
    examined = examine(Specimen.of_text(templates.make("hermes")), vocabulary.CHECKS)
    assert not examined.findings
    assert {c for c, _ in examined.skipped} >= {"end-of-turn", "ids-out-of-range", "marker-not-one-token"}


# ---- templates ----


def test_no_template_at_all(model):
    (model / "chat_template.jinja").unlink()
    finding = only(Specimen.of_model(model), "template-missing")
    assert finding.severity == "high" and "tokenizer_config.json" in finding.shown[0].text


def test_two_templates_that_differ(model):
    text = (model / "chat_template.jinja").read_text()
    edit(model / "tokenizer_config.json", lambda c: c.update(chat_template=text + "\n"))
    assert not found(Specimen.of_model(model)), "the same twice is no fault"
    edit(model / "tokenizer_config.json", lambda c: c.update(chat_template=text.replace("# Tools", "# Instruments")))
    finding = only(Specimen.of_model(model), "two-templates")
    assert "# Tools" in finding.shown[0].text and "# Instruments" in finding.shown[1].text
    named = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": text}]
    edit(model / "tokenizer_config.json", lambda c: c.update(chat_template=named))
    assert "tokenizer_config.json (default)" in only(Specimen.of_model(model), "two-templates").summary


def test_a_template_of_another_model(model):
    foreign = Specimen.of_model(model).with_template(templates.make("llama3"))
    finding = only(foreign, "tokenizer-template-mismatch")
    assert finding.severity == "high" and "<|eot_id|>" in finding.summary
    assert len(finding.shown[0].tokens) > 10 and "<|im_end|>" in finding.shown[1].text


# ---- markers ----


def test_a_marker_that_is_spelled_in_pieces(tmp_path):
    markers = ("<tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    model = made(tmp_path, (*CHATML, *markers), templates.make("hermes"))
    finding = only(Specimen.of_model(model), "marker-not-one-token")
    assert finding.severity == "low" and finding.summary.endswith("tokens: </tool_call>")
    assert len(finding.shown[0].tokens) > 1 and "".join(t for _, t in finding.shown[0].tokens) == "</tool_call>"


def test_a_marker_that_swallows_line_breaks(model):
    set_token(model, "<tool_call>", rstrip=True)
    finding = only(Specimen.of_model(model), "marker-flags")
    assert "<tool_call>" in finding.summary
    assert "\n71" in finding.shown[0].text and "\n71" not in "".join(t for _, t in finding.shown[1].tokens)


def test_half_of_a_frame_is_special(model):
    set_token(model, "</tool_call>", special=False)
    finding = only(Specimen.of_model(model), "marker-flags")
    assert [s.text for s in finding.shown] == ["special", "not special"]


# ---- markers of private use ----

OPEN, CLOSE = "\ue0a1", "\ue0a2"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A model with markers of private use, and a template that writes them as escapes."""
    tokens = (*CHATML, OPEN, CLOSE, "<tool_response>", "</tool_response>", "<think>", "</think>", "<code>", "</code>")
    return made(tmp_path, tokens, templates.make("smollm3", tokens, markers=(OPEN, CLOSE)))


def test_markers_as_escapes_are_right(private):
    assert "\\ue0a1" in (private / "chat_template.jinja").read_text()
    assert not found(Specimen.of_model(private))


def test_markers_that_stand_in_the_file_as_such(private):
    file = private / "chat_template.jinja"
    file.write_text(file.read_text().replace("\\ue0a1", OPEN).replace("\\ue0a2", CLOSE))
    finding = only(Specimen.of_model(private), "private-use")
    assert finding.severity == "low" and "U+E0A1" in finding.shown[0].text and OPEN not in finding.evidence


def test_markers_that_got_lost_in_an_editor(private):
    file = private / "chat_template.jinja"
    file.write_text(file.read_text().replace("\\ue0a1", "").replace("\\ue0a2", ""))
    finding = only(Specimen.of_model(private), "private-use")
    assert finding.severity == "medium" and finding.shown[0].text == "U+E0A1 = 258, U+E0A2 = 259"


def test_markers_that_are_no_tokens(model):
    template = (model / "chat_template.jinja").read_text() + "{# \ue123 #}"
    finding = only(Specimen.of_model(model).with_template(template), "private-use")
    assert finding.severity == "high" and "U+E123" in finding.summary


# ---- ends of turns, ids ----


def test_a_turn_that_ends_nothing(model):
    for name in ("config.json", "generation_config.json"):
        edit(model / name, lambda c: c.update(eos_token_id=0))
    edit(model / "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"))
    findings = found(Specimen.of_model(model))
    assert {f.check for f in findings} == {"end-of-turn"} and {f.severity for f in findings} == {"high"}
    assert [f.shown[0].label for f in findings] == ["after an answer", "after a call"]
    assert all((2, "<|im_end|>") in f.shown[0].tokens and f.shown[1].text == "0 <|endoftext|>" for f in findings)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_names_another_end_only(model, name):
    edit(model / name, lambda c: c.update(eos_token_id=0))
    finding = only(Specimen.of_model(model), "end-of-turn")
    assert finding.severity == "low" and finding.summary.endswith(f"missing in {name}")
    edit(model / name, lambda c: c.update(eos_token_id=[0, 2]))
    assert not found(Specimen.of_model(model)), "a list may stand there"


HARMONY = (
    "<|im_end|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>",
)  # fmt: skip


def test_an_answer_ends_otherwise_once_another_question_follows(tmp_path):
    """gpt-oss stops at <|return|>, which its history writes as <|end|>."""
    model = made(tmp_path, HARMONY, templates.make("gpt_oss"))
    ids = Specimen.of_model(model).vocabulary
    stops = [ids["<|return|>"], ids["<|call|>"]]
    edit(model / "config.json", lambda c: c.update(eos_token_id=stops))
    edit(model / "tokenizer_config.json", lambda c: c.update(eos_token="<|return|>"))
    assert not found(Specimen.of_model(model))
    edit(model / "config.json", lambda c: c.update(eos_token_id=stops[1:]))
    edit(model / "tokenizer_config.json", lambda c: c.update(eos_token="<|call|>"))
    assert [f.shown[0].label for f in found(Specimen.of_model(model)) if f.severity == "high"] == ["after an answer"]


def test_tokens_behind_the_last_row_of_the_embedding(model):
    def add(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append({**token(tokenizer, "<think>"), "id": 1536, "content": "<|late|>"})

    edit(model / "tokenizer.json", add)
    finding = only(Specimen.of_model(model), "ids-out-of-range")
    assert finding.severity == "medium" and "1536 <|late|>" in finding.shown[1].text
    assert "model.embed_tokens.weight: 1536" in finding.shown[0].text
    template = (model / "chat_template.jinja").read_text() + "{# <|late|> #}"
    assert only(Specimen.of_model(model).with_template(template), "ids-out-of-range").severity == "high"
