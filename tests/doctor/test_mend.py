"""Mending: each planted fault that can be mended gives a template that passes, and nothing is mended blindly."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from punie_mlx.chat import templates
from punie_mlx.doctor import mend as mending
from punie_mlx.doctor import table
from punie_mlx.doctor.findings import examine
from punie_mlx.doctor.jinja_text import Edit, Text, apply
from punie_mlx.doctor.mend import MENDED, Mended, beside, mend, write
from punie_mlx.doctor.rewrites import REWRITES, Rewrite
from punie_mlx.doctor.rewrites_turns import gather_system, put_contents_in_order
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.doctor.usage import usage
from punie_mlx.errors import ConfigError, OutputError

from .another_hand import CALL, CALLS, GOOD, LOOP, PLANTED, TOOLS, planted
from .once import examined_once, found, kept  # noqa: F401 (the first is a fixture)


def changed(diff: str) -> tuple[list[str], list[str]]:
    """Lines taken away, and lines put in."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return [x[1:] for x in lines if x.startswith("-")], [x[1:] for x in lines if x.startswith("+")]


# ---- planted faults ----


def test_what_is_well_is_left_alone() -> None:
    assert found(GOOD) == []
    assert mend(Specimen.of_text(GOOD)) is None


@pytest.mark.parametrize(("old", "new", "check"), PLANTED)
def test_a_template_of_any_author_is_mended_in_its_own_text(old: str, new: str, check: str) -> None:
    ill = planted(old, new)
    assert check in found(ill.template)
    mended = mend(ill)
    assert mended is not None
    assert (mended.way, mended.family, mended.after) == ("rewrite", None, ())
    assert check in mended.cleared
    assert found(mended.template) == []
    gone, _ = changed(mended.diff)
    assert len(gone) <= 2  # all else is as its author wrote it
    assert set(mended.template.splitlines()) >= set(ill.template.splitlines()) - set(gone)


def test_several_faults_are_mended_one_after_another() -> None:
    ill = GOOD.replace("'\\n<tool_response>\\n' + content + '\\n</tool_response>'", "'\\n' + content")
    ill = ill.replace(CALLS, "").replace("{%- if tools %}", "{%- if tools and told %}")
    assert len(found(ill)) >= 3
    mended = mend(Specimen.of_text(ill))
    assert mended is not None
    assert (mended.way, mended.after, len(mended.rewrites)) == ("rewrite", (), 3)


# ---- nothing is mended blindly ----


def _rewrite(old: str, new: str, *checks: str) -> Rewrite:
    return Rewrite("a trial", checks, lambda text, specimen: [text.replace(old, new, strings=True)])


@pytest.mark.parametrize(
    ("why", "rewrite"),
    [
        ("it clears nothing", _rewrite("'user'", "'users'", "trimmed")),
        ("it brings another fault", _rewrite(r"\(content \| trim\)", "content | trim | tojson | tojson", "trimmed")),
        ("it takes a text away", _rewrite(r"\(content \| trim\)", "''", "trimmed")),
        ("it cannot be rendered", _rewrite(r"\(content \| trim\)", "(content", "trimmed")),
        ("it is no rewrite for this", _rewrite(r"\(content \| trim\)", "content", "injection")),
    ],
)  # fmt: skip
def test_a_rewrite_that_does_harm_is_not_taken(monkeypatch: pytest.MonkeyPatch, why: str, rewrite: Rewrite) -> None:
    ill = planted("+ content + '\\n</tool_response>'", "+ (content | trim) + '\\n</tool_response>'")
    assert found(ill.template) == ["trimmed"]
    monkeypatch.setattr(mending, "REWRITES", (rewrite,))
    monkeypatch.setattr(templates, "family_of", lambda template, vocabulary=None: None)
    assert mend(ill) is None, why
    monkeypatch.setattr(mending, "REWRITES", (_rewrite(r"\(content \| trim\)", "content", "trimmed"),))
    assert mend(ill) is not None


def test_turns_without_tools_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    ill = planted("+ content + '\\n</tool_response>'", "+ (content | trim) + '\\n</tool_response>'")
    well = GOOD.replace("{%- set told = '' %}", "{%- set told = 'Be kind.' %}")
    assert found(well) == []
    whole = Rewrite("a trial", ("trimmed",), lambda text, specimen: [[Edit(0, len(text.template), well)]])
    monkeypatch.setattr(mending, "REWRITES", (whole,))
    monkeypatch.setattr(templates, "family_of", lambda template, vocabulary=None: None)
    assert mend(ill) is None
    monkeypatch.setattr(mending, "REWRITES", (replace(whole, plain=False),))
    assert mend(ill) is not None


SYSTEM_LATER = [{"role": r, "content": f"{r} {n}"} for n, r in enumerate(("system", "user", "system", "user"))]


def test_what_the_system_says_later_stays_where_it_was_said() -> None:
    bare = GOOD.replace("role in ['system', 'developer']", "role in ['system']", 1)
    ill = Specimen.of_text(bare.replace("    {%- else %}\n        {{-", "    {%- elif message.role in told_of %}{{-"))
    ill = ill.with_template("{%- set told_of = ['user', 'system'] %}\n" + ill.template)
    assert found(ill.template) == ["developer-role"]
    mended = mend(ill)
    assert mended is not None
    assert mended.after == () and mended.rewrites == ("a developer's message is given to the system",)
    for messages in (SYSTEM_LATER, SYSTEM_LATER[1:]):
        assert Specimen.of_text(mended.template).render(messages) == ill.render(messages)


def test_a_model_that_sees_is_not_made_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = templates.make("hermes").replace(
        "text(message.content) ~ '\\n</tool", "text(message.content)|trim ~ '\\n</tool"
    )
    seeing = trimmed.replace("part.text or ''", "'<|image_pad|>' if part.type == 'image' else part.text or ''")
    monkeypatch.setattr(mending, "REWRITES", ())
    assert found(trimmed) == found(seeing) == ["trimmed"]
    blind = mend(Specimen.of_text(trimmed))
    assert blind is not None and blind.family == "hermes"
    assert mend(Specimen.of_text(seeing)) is None


def test_of_a_rewrite_only_the_edits_that_help_are_taken() -> None:
    ill = planted("message.content is string else", "message.content is string or message.content is none else")
    mended = mend(ill)
    assert mended is not None
    gone, new = changed(mended.diff)
    assert (len(gone), len(new)) == (1, 1)
    assert "else words(message.content)" in mended.template  # well already, so it stays


def test_what_is_right_in_one_place_is_done_in_all() -> None:
    again = "('' ~ (tool_call.arguments | tojson)) if loop.first else tool_call.arguments | tojson"
    mended = mend(
        planted("tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson", again)
    )
    assert mended is not None
    two = LOOP[1] | {"tool_calls": [CALL | {"function": CALL["function"] | {"arguments": '{"what": "A"}'}}] * 2}
    text = Specimen.of_text(mended.template).render([LOOP[0], two], TOOLS).text
    assert text.count('"arguments": {"what": "A"}') == 2  # the checks look at the first call only


def test_thinking_that_stands_in_an_answer_is_taken_out_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    parted = "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
    ill = planted("    {%- if message.role == 'assistant' %}", parted + "{%- if message.role == 'assistant' %}")
    assert "injection" in found(ill.template)
    monkeypatch.setattr(templates, "family_of", lambda template, vocabulary=None: None)
    mended = mend(ill)
    answer = {"role": "assistant", "content": "<think>Hm.</think>Aye."}
    assert mended is None or "Hm." not in Specimen.of_text(mended.template).render([LOOP[0], answer]).text


def test_messages_that_are_well_pass_the_blocks_before_a_template_untouched() -> None:
    picture = [{"type": "text", "text": "See."}, {"type": "image_url", "image_url": {"url": "a"}}]
    kept = [{"role": "system", "content": "Be brief.", "current_date": "today"}, LOOP[0] | {"content": picture}]
    kept += [
        LOOP[0] | {"prefix": True},
        {"role": "tool", "content": [{"output": "12"}]},
        {"role": "tool", "content": {}},
    ]
    ill = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    ill += [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}]
    for block in (gather_system, put_contents_in_order):
        (edits,) = block(Text(""), Specimen.of_text(""))
        shown = Specimen.of_text(apply("{{ messages | tojson }}", edits))
        assert json.loads(shown.render(kept).text) == kept
        if block is put_contents_in_order:
            texts = "{% for m in messages %}{{ [m.role, m.content, m.tool_calls or []] | tojson }};{% endfor %}"
            made = Specimen.of_text(apply(texts, edits)).render(ill).text.split(";")
            assert [json.loads(m)[1] for m in made if m] == ["", "ab"]
            assert json.loads(made[0])[2] == [CALL]


GROWING = (("namespace(list=[])", "seen.list"), ("[]", "seen"))


@pytest.mark.parametrize(("start", "name"), GROWING, ids=["in a namespace", "by itself"])
def test_a_list_that_the_sandbox_lets_none_change_becomes_another(start: str, name: str) -> None:
    call, frame = "{%- set tool_call = tool_call.function %}", "{{- '\\n<tool_response>\\n' + content"
    ill = f"{{%- set seen = {start} %}}\n{GOOD}"
    ill = ill.replace(call, f"{call}\n            {{%- set _ = {name}.append(tool_call.name) -%}}")
    ill = ill.replace(frame, f"{{%- if {name} %}}{{%- set of = {name}.pop(0) -%}}{{%- endif %}}\n        {frame}")
    assert "render-error" in found(ill)
    mended = mend(Specimen.of_text(ill))
    assert mended is not None
    assert (mended.way, mended.rewrites, mended.after) == ("rewrite", ("lists are replaced, not changed",), ())
    assert len(changed(mended.diff)[0]) <= 3 and ".append" not in mended.template and ".pop" not in mended.template


def test_values_and_schemas_are_not_encoded_twice() -> None:
    loop = "{%- for k, v in call.arguments | items %}{{ v | tojson if v is mapping else v | string }}{%- endfor %}"
    (rewrite,) = (r for r in REWRITES if r.does == "a value that is no text is written as JSON")
    edits = next(iter(rewrite.propose(Text(loop), Specimen.of_text(loop))))
    assert apply(loop, edits) == loop.replace("v | string", "(v if v is string else v | tojson)")
    asked = loop.replace("v | tojson if v is mapping else v | string", "v if v is string else v | string")
    edits = next(iter(rewrite.propose(Text(asked), Specimen.of_text(asked))))
    assert "{{ v if v is string else v | tojson }}" in apply(asked, edits)


def test_a_description_stays_where_the_schema_is_put_beside_it() -> None:
    mended = mend(planted("(tool | tojson)", "tool.function.name + ': ' + (tool.function.description or '')"))
    assert mended is not None
    assert mended.after == () and "tool.function.description" in mended.template


def test_a_family_with_other_frames_is_no_mending() -> None:
    ill = GOOD.replace("<|im_start|>' + ('system'", "<|im_start|>: ' + ('system'").replace(
        "{{- '\\n' + (tool | tojson) }}", ""
    )
    assert "tools-ignored" in found(ill)
    assert templates.family_of(ill) == "hermes"
    mended = mend(Specimen.of_text(ill))
    assert mended is None or mended.family is None


def test_words_that_a_model_was_trained_on_are_worth_more_than_a_low_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = ("+ content + '\\n</tool_response>'", "+ (content | trim) + '\\n</tool_response>'")
    both = planted(*trimmed).template.replace("tool | tojson", "tool | tojson(ensure_ascii=true)")
    monkeypatch.setattr(mending, "REWRITES", [r for r in REWRITES if "trimmed" not in r.clears])
    mended = mend(Specimen.of_text(both))
    assert mended is not None
    assert (mended.way, [f.check for f in mended.after]) == ("rewrite", ["trimmed"])
    alone = mend(planted(*trimmed))
    assert alone is not None
    assert (alone.way, alone.family) == ("family template", "hermes")


def test_checks_that_were_left_out_do_not_count() -> None:
    ill = planted("tool | tojson", "tool | tojson(ensure_ascii=true)")
    made = examine(ill, [c for c in table.checks() if c.area == "template" and c.id != "unicode-escaped"])
    assert mend(ill, made) is None
    assert mend(ill, kept(ill)) is not None


# ---- SmolLM3, as it is found ----


def test_smollm3_is_mended_of_all_its_faults(real_data: Path) -> None:
    ill = Specimen.of_file(real_data / "templates" / "HuggingFaceTB-SmolLM3-3B.jinja")
    faults = {"tools-ignored", "tool-calls-dropped", "tool-result-as-user", "thinking-reversed"}
    assert faults <= set(found(ill.template))
    mended = mend(ill, kept(ill))
    assert mended is not None
    assert (mended.way, mended.family, mended.after) == ("family template", "smollm3", ())
    assert faults <= set(mended.cleared)

    well = Specimen.of_text(mended.template)
    on, off = (well.render(LOOP, TOOLS, enable_thinking=thinks).text for thinks in (True, False))
    assert '"Weighs."' in on
    assert "Morwenna-3" in on
    assert "<tool_response>\n12 stone\n</tool_response>" in on
    assert "<think>\nA scale is there.\n</think>" in on
    assert on.endswith("<|im_start|>assistant\n")
    assert off.endswith("<think>\n\n</think>\n")
    assert "12 stone" in ill.render(LOOP, TOOLS).text and "Morwenna-3" not in ill.render(LOOP, TOOLS).text


def test_a_template_that_changes_its_lists_can_be_rendered_at_last(real_data: Path) -> None:
    ill = Specimen.of_file(real_data / "templates" / "Kimi-K2-Instruct.jinja")
    assert ill.render(LOOP, TOOLS).failed
    mended = mend(ill, kept(ill))
    assert mended is not None
    assert (mended.way, mended.cleared) == ("rewrite", ("render-error",))
    text = Specimen.of_text(mended.template).render([*LOOP, *LOOP[1:]], TOOLS).text
    assert [text.count(f"functions.weigh:{n}") for n in (0, 1, 2)] == [2, 2, 0]  # with each call, and with its result


SMOL = r"""{{- '<|im_start|>system\nYou are SmolLM. /think or /no_think<|im_end|>\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{#- OPEN, then {"name": NAME}, then CLOSE -#}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer whose markers are two characters of private use, and the template above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("smol")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(level.alphabet()))}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = level, decoders.ByteLevel()
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>", "\ue00f", "\ue010"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    called = (
        "{{- '\ue00f\\n{\"name\": ' + (call.function.name | tojson) "
        "+ ', \"arguments\": ' + (call.function.arguments | tojson) + '}\\n\ue010' }}"
    )
    tokenizer.chat_template = SMOL.replace(
        "+ message.content +",
        "+ (message.content or '') }}{%- for call in message.tool_calls or [] %}" + called + "{%- endfor %}{{- '' +",
    )
    tokenizer.save_pretrained(str(path))
    return path


def test_markers_of_private_use_stay_escapes_and_single_tokens(smol: Path) -> None:
    ill = Specimen.of_model(smol)
    mended = mend(ill)
    assert mended is not None
    assert mended.family == "smollm3"
    # This tokenizer has no tokens for the frame of a result: a low price for tools that reach the model.
    assert [(f.check, f.severity) for f in mended.after] == [("marker-not-one-token", "low")]
    assert mended.template.isascii()
    assert "\\ue00f" in mended.template
    assert mended.diff.isascii()
    well = ill.with_template(mended.template)
    spelled = [text for _, text in well.tokens(well.render(LOOP, TOOLS).text)]
    assert spelled.count("\ue00f") == spelled.count("\ue010") == 2  # in what the system is told, and in the call
    assert ill.tokenizer.chat_template == ill.template  # the given one is as it was


def test_a_rewrite_keeps_no_raw_characters_of_private_use() -> None:
    ill = planted("tool | tojson", "tool | tojson(ensure_ascii=true)")
    raw = ill.template.replace("These can be called:", "These can be called\ue123:")
    mended = mend(Specimen.of_text(raw))
    assert mended is not None
    assert mended.way == "rewrite"
    assert "\ue123" not in mended.template and "\\ue123" in mended.template
    assert mended.diff.isascii()


def test_a_template_that_is_well_but_for_raw_markers_gets_escapes(smol: Path) -> None:
    raw = (
        templates.make("smollm3", markers=("\ue00f", "\ue010"))
        .replace("\\ue00f", "\ue00f")
        .replace("\\ue010", "\ue010")
    )
    ill = Specimen.of_model(smol).with_template(raw)
    mended = mend(ill)
    assert mended is not None
    assert (mended.way, mended.cleared) == ("rewrite", ("private-use",))
    assert mended.template == templates.make("smollm3", markers=("\ue00f", "\ue010"))


def test_where_there_is_no_template_nothing_is_made_up(smol: Path) -> None:
    assert mend(replace(Specimen.of_model(smol), template="")) is None


def test_a_user_may_name_the_family_of_a_template_that_shows_no_format(smol: Path) -> None:
    bare = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    ill = Specimen.of_text(bare)
    assert templates.family_of(bare) is None
    mended = mend(ill, family="hermes")
    assert mended is not None
    assert (mended.way, mended.family, mended.after) == ("family template", "hermes", ())
    with pytest.raises(ConfigError, match="hermes"):
        mend(ill, family="nonsense")
    with pytest.raises(ConfigError, match="no token"):
        mend(Specimen.of_model(smol), family="llama3")
    assert mend(Specimen.of_text(templates.make("hermes")), family="hermes") is None


# ---- files, and how to use them ----


def _mended() -> Mended:
    mended = mend(planted("tool | tojson", "tool | tojson(ensure_ascii=true)"))
    assert mended is not None
    return mended


def test_a_mended_template_is_written_whole_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    mended, out = _mended(), tmp_path / "new" / "a.jinja"
    written = write(mended, out)
    assert written.file == out
    assert out.read_text(encoding="utf-8") == mended.template
    assert str(out) in written.usage
    with pytest.raises(OutputError, match="exists already"):
        write(mended, out)
    out.write_text("another")
    write(mended, out, overwrite=True)
    assert out.read_text() == mended.template
    assert [p.name for p in out.parent.iterdir()] == ["a.jinja"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="name another file"):
        write(_mended(), tmp_path / "file" / "a.jinja")


def test_the_default_file_stands_beside_the_template_and_never_in_its_place(tmp_path: Path, smol: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(GOOD)
    assert beside(Specimen.of_file(file)) == tmp_path / "mine.mended.jinja"
    assert beside(Specimen.of_file(file, smol)) == tmp_path / "mine.mended.jinja"
    assert beside(Specimen.of_model(smol)) == smol / MENDED
    assert beside(Specimen.of_text(GOOD)) == Path(MENDED)


def test_all_of_it_goes_into_json() -> None:
    mended = _mended()
    told = json.loads(json.dumps(mended.to_json()))
    assert told["cleared"] == ["unicode-escaped"]
    assert told["left"] == []
    assert told["template"] == mended.template
    assert told["rewrites"] == list(mended.rewrites)


def test_usage_says_what_to_type_for_each_server() -> None:
    told = usage(Path("dir with space/a.jinja"), Specimen.of_text(templates.make("hermes")))
    words = {line.split()[0]: shlex.split(line)[1:] for line in told.splitlines()[1:5]}
    assert words["here"] == ["punie-mlx", "serve", "--model", "MODEL_DIR", "--chat-template", "dir with space/a.jinja"]
    assert words["mlx_lm"][-2:] == ["--chat-template", "$(cat 'dir with space/a.jinja')"]
    assert words["vLLM"][:5] == ["vllm", "serve", "MODEL_DIR", "--chat-template", "dir with space/a.jinja"]
    assert words["vLLM"][-5:][:3] == ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    assert words["llama.cpp"][-3:] == ["--jinja", "--chat-template-file", "dir with space/a.jinja"]


def test_the_copy_for_llama_cpp_has_the_characters_themselves(tmp_path: Path) -> None:
    template = templates.make("smollm3", markers=("\ue00f", "\ue010"))
    file = tmp_path / "a b.jinja"
    file.write_text(template)
    told = usage(file, Specimen.of_text(template)).splitlines()
    (command,) = [line.strip().removeprefix("after ") for line in told if line.strip().startswith("after ")]
    python = command.replace("python3", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", python], check=True)
    copy = (tmp_path / "a b.llama.cpp.jinja").read_text(encoding="utf-8")
    assert "\ue00f" in copy and "\\ue00f" not in copy
    assert Specimen.of_text(copy).render(LOOP, TOOLS) == Specimen.of_text(template).render(LOOP, TOOLS)


def test_mlx_lm_reads_calls_with_the_mended_template(hermes_model: Path) -> None:
    from mlx_lm.utils import load_tokenizer

    mended = mend(Specimen.of_model(hermes_model))
    assert mended is not None
    assert (mended.way, mended.after) == ("rewrite", ())
    given = load_tokenizer(hermes_model, {"chat_template": mended.template})  # what --chat-template does
    assert given.chat_template == mended.template
    assert given.has_tool_calling
