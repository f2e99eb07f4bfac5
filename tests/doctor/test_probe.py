"""A model is asked and judged by its raw tokens: the tiny base, an adapter trained here, and models that say what they
are told to."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from random import Random

import mlx.core as mx
import pytest

from punie_mlx import direct, raw
from punie_mlx.chat.render import safe_prompt
from punie_mlx.corpus.skills import SKILLS
from punie_mlx.corpus.world import TOOLS
from punie_mlx.doctor import probe as probing
from punie_mlx.doctor import table
from punie_mlx.doctor.behaviour import CHECKS
from punie_mlx.doctor.findings import examine
from punie_mlx.doctor.probe import Limits, opener_of, probe
from punie_mlx.doctor.probes import PROBES
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.run import train

BY_ID = {p.id: p for p in PROBES}
FIRST = ("one-call", "number", "to-escape")
STEPS, BATCH = 12, 8


def findings(probed):
    return {f.check: f for f in examine(probed, CHECKS).findings}


def answers(probed):
    return {a.probe.id: a for a in probed.answers}


@pytest.fixture(autouse=True)
def compiling():
    yield
    mx.enable_compile()


# ---- must show: the tiny base writes fences, its adapter native tokens ----


@pytest.fixture(scope="module")
def base(tiny_base):
    return direct.Model(tiny_base)


@pytest.fixture(scope="module")
def specimen(tiny_base):
    return Specimen.of_model(tiny_base)


@pytest.fixture(scope="module")
def of_base(base, specimen):
    return probe(base, specimen)


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a few steps on rows with native calls, and nothing but calls."""
    path, random = tmp_path_factory.mktemp("adapter"), Random(1)
    names = ("read_file", "write_file", "start_server")
    asks = [SKILLS[names[i % 3]](random) for i in range(STEPS * BATCH)]
    rows = [
        {
            "messages": [
                {"role": "user", "content": ask.query},
                {"role": "assistant", "content": "", "tool_calls": [ToolCall(ask.tool, ask.arguments).to_openai()]},
            ],
            "tools": [TOOLS[n] for n in names],
        }
        for ask in asks
    ]
    (path / "rows").mkdir()
    (path / "rows" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = path / "adapter"
    config = TrainConfig(
        model=str(tiny_base), data=str(path / "rows"), out=str(out), iters=STEPS, batch_size=BATCH, learning_rate=2e-4
    )
    train(config, quiet=True)
    return out


def test_the_tiny_base_writes_fences(of_base):
    assert of_base.verdict == "writes fences" and of_base.format == "qwen3_coder" and of_base.left_out == ()
    for id in FIRST:
        answer = answers(of_base)[id]
        assert answer.written.kind == "fence" and answer.text.startswith("```json")
        assert answer.opens < 0.05 < 0.4 < answer.chances["fence"]
        assert answer.likeliest == ("`", pytest.approx(answer.chances["fence"]))
    found = findings(of_base)["no-native-calls"]
    assert found.severity == "high" and "writes fences" in found.summary
    assert "the parser is saving you then, the model never emits <tool_call>" in found.summary
    assert "Constrained decoding" in found.remedy and "--rescue" in found.remedy
    assert "punie-mlx convert" in found.remedy and "punie-mlx train" in found.remedy and "--fix" not in found.remedy
    assert "the opener of a call <tool_call> 0.00" in found.evidence and "```json" in found.evidence
    assert next(s for s in found.shown if s.tokens).tokens[0][1] == "`"


def test_what_follows_the_beginning_of_a_call_that_is_put_there(of_base):
    """The body is right where the model only lacks the opener: that is what constrained decoding mends."""
    answer = answers(of_base)["one-call"]
    assert answer.forced is not None and answer.forced.kind == "native" and answer.right_when_forced
    assert list(answer.forced.calls) == [BY_ID["one-call"].wants]
    label = next(s for s in findings(of_base)["no-native-calls"].shown if "put where" in s.label)
    assert "the call that was wanted" in label.text


def test_its_adapter_emits_native_tokens(tiny_base, specimen, adapter, of_base):
    probed = probe(direct.Model(tiny_base, adapter), specimen)
    assert probed.verdict == "emits native tokens"
    first = answers(probed)["one-call"]
    assert first.opens > 0.9 and first.right and first.raw[0][:2] == (probed.opener.tokens[0], "<tool_call>")
    assert first.raw[0][2] == pytest.approx(first.opens)
    assert first.opens > 100 * answers(of_base)["one-call"].opens
    found = findings(probed)
    assert "no-native-calls" not in found and "parser-saves-you" not in found
    assert found["needless-call"].severity == "medium"  # no row of its answers in words


def test_what_is_told_as_json(of_base):
    told = json.loads(json.dumps(of_base.to_json(), allow_nan=False))
    assert told["verdict"] == "writes fences" and told["opener"]["how"] == "one token"
    assert [a["probe"] for a in told["answers"]] == [p.id for p in PROBES]
    for answer in told["answers"]:
        assert "".join(spelling for _, spelling, _ in answer["tokens"]).startswith(answer["text"])
        assert answer["opener"]["whole"] == answer["opener"]["tokens"][0] == answer["chances"]["opener"]


def test_all_is_bounded(base, specimen):
    none = probe(base, specimen, limits=Limits(seconds=0))
    assert none.answers == () and len(none.left_out) == len(PROBES) and none.verdict is None
    examined = examine(none, CHECKS)
    assert examined.findings == () and examined.passed == ()
    assert all("0 seconds" in why for _, why in examined.skipped)
    few = probe(base, specimen, probes=PROBES[:1], limits=Limits(answer=5, thinking=0))
    assert len(few.answers[0].raw) == 5 and few.answers[0].cut


# ---- models that say what a test wants ----


def replay(tmp_path: Path, ids: tuple[str, ...], scripts: dict[str, str], template: str = "", **options):
    """What comes of asking a real model that answers a prompt holding a key of `scripts` with its script."""
    place = Path(__file__).parent.parent / "e2e" / "conftest.py"
    spec = importlib.util.spec_from_file_location("replaying", place)
    assert spec is not None and spec.loader is not None
    building = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(building)
    path = tmp_path / "model"
    path.mkdir()
    building.build_replaying_model(path, scripts)
    shown = Specimen.of_model(path)
    shown = shown.with_template(template.replace("@", shown.template)) if template else shown
    return probe(direct.Model(path), shown, probes=[BY_ID[i] for i in ids], **options)


SERVE = "<tool_call>\n<function=start_server>\n<parameter=port>\n8123\n</parameter>\n</function>\n</tool_call>"
CALL = "<tool_call>\n<function=read_file>\n<parameter=path>\nsrc/app.py\n</parameter>\n</function>\n</tool_call>"


def test_code_that_calls_the_tool_and_words(tmp_path):
    scripts = {
        "Show me the file": '```python\nread_file("src/app.py")\n```',
        "Start the server": "print(start_server(port=8123))",
        "Write '": "I cannot do that.",
    }
    probed = replay(tmp_path, FIRST, scripts)
    assert {i: a.written.kind for i, a in answers(probed).items()} == {
        "one-call": "code", "number": "prose", "to-escape": "prose",
    }  # fmt: skip
    assert probed.verdict == "prose"
    found = findings(probed)
    assert list(found) == ["no-native-calls"] and "3 of 3" in found["no-native-calls"].summary


def test_most_of_it_decides_and_the_rest_is_named(tmp_path):
    scripts = {
        "Show me the file": '```python\nread_file("src/app.py")\n```',
        "Start the server": SERVE,
        "Write '": '```py\nwrite_file("src/app.py", "x")\n```',
    }  # fmt: skip
    probed = replay(tmp_path, FIRST, scripts)
    assert probed.verdict == "writes code that calls the tool"
    assert "2 of 3" in findings(probed)["no-native-calls"].summary


def test_thinking_comes_before_the_answer(tmp_path):
    probed = replay(tmp_path, ("one-call",), {"Show me the file": f"<think>Which file is it?</think>\n\n{CALL}"})
    (answer,) = probed.answers
    assert probed.verdict == "emits native tokens" and answer.right and findings(probed) == {}
    assert answer.raw[answer.begins][1] == "<tool_call>" and answer.begins > 2
    assert answer.opens > 0.5


def test_text_before_a_call_moves_the_opener_and_not_the_beginning(tmp_path):
    probed = replay(tmp_path, ("one-call",), {"Show me the file": f"Let us look.\n\n{CALL}"})
    (answer,) = probed.answers
    assert answer.right and answer.begins == 0 and answer.raw[answer.opened][1] == "<tool_call>"
    assert answer.opens == answer.raw[answer.opened][2] > 0.5 > answer.chances["opener"]


def test_thinking_that_does_not_end_is_no_verdict(tmp_path):
    scripts = {"Show me the file": "<think>One may look at it in many ways, and each of them has its merits."}
    probed = replay(tmp_path, ("one-call",), scripts, limits=Limits(answer=4, thinking=4))
    assert probed.answers[0].written.kind == "unfinished" and probed.verdict is None
    examined = examine(probed, CHECKS)
    assert examined.findings == () and "no-native-calls" in dict(examined.skipped)


@pytest.mark.parametrize(("thinking", "kind", "behind"), [(10, "unfinished", None), (14, "prose", 4)])
def test_thinking_takes_no_token_from_an_answer(tmp_path, thinking, kind, behind):
    """It ends at the 12th token: that is too late for an answer, or soon enough for a whole one."""
    said = (
        "<think>One may look at it in many ways, and each of them has its merits.</think>\n\nIt goes on: a, b; c. D! E?"
    )
    probed = replay(tmp_path, ("no-tool",), {"What is": said}, limits=Limits(answer=4, thinking=thinking))
    (answer,) = probed.answers
    assert probed.left_out == () and answer.written.kind == kind and not answer.ended
    assert (None if answer.begins is None else len(answer.raw) - answer.begins) == behind


def test_a_call_without_its_opener_is_saved_by_the_parser(tmp_path):
    bare = CALL.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    probed = replay(tmp_path, ("one-call",), {"Show me the file": bare})
    found = findings(probed)
    assert probed.verdict == "malformed" and list(found) == ["parser-saves-you"]
    assert "the model never emits <tool_call>" in found["parser-saves-you"].summary
    assert "Constrained decoding" not in found["parser-saves-you"].remedy or probed.answers[0].right_when_forced


def test_a_call_that_breaks_off(tmp_path):
    probed = replay(tmp_path, ("one-call",), {"Show me the file": "<tool_call>\n<function=read the file"})
    found = findings(probed)
    assert probed.verdict == "malformed" and list(found) == ["broken-calls"]
    assert found["broken-calls"].severity == "high"


def test_after_a_result_the_same_call_again(tmp_path):
    probed = replay(tmp_path, ("one-call", "after-result"), {"Show me the file": CALL})
    found = findings(probed)
    assert list(found) == ["repeats-call"] and "read_file" in found["repeats-call"].summary
    assert "amber harbor" in found["repeats-call"].evidence  # how the prompt ended


def test_calls_of_the_wrong_tool_and_of_none_that_was_offered(tmp_path):
    scripts = {
        "Show me the file": CALL.replace("src/app.py", "src/other.py"),
        "Delete the file": CALL.replace("read_file", "delete_file"),
    }
    found = findings(replay(tmp_path, ("one-call", "no-fitting-tool"), scripts))
    assert set(found) == {"wrong-arguments", "made-up-tool"}
    assert "src/other.py" in found["wrong-arguments"].evidence and "delete_file" in found["made-up-tool"].summary


def test_a_needless_call(tmp_path):
    scripts = {
        "Delete the file": CALL.replace("read_file", "start_server").replace("path", "port").replace("src/app.py", "1")
    }
    assert list(findings(replay(tmp_path, ("no-fitting-tool",), scripts))) == ["needless-call"]


def test_a_turn_that_ends_where_nobody_listens(tmp_path):
    """The template ends turns with a token that is none of the model's end tokens."""
    template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|endoftext|>\n"
    template += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    scripts = {"What is recursion?": "A way to say it again.<|endoftext|>Moreover one asks: <|im_start|>user, why?"}
    probed = replay(tmp_path, ("no-tool",), scripts, template, limits=Limits(answer=6))
    found = findings(probed)["never-ends"]
    assert probed.turn_end == "<|endoftext|>" and found.severity == "high"
    assert "eos_token_id" in found.remedy and "<|endoftext|>" in found.remedy


def test_a_template_that_does_not_show_the_tools_comes_first(tmp_path):
    template = "{# <tool_call> #}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    template += "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    probed = replay(tmp_path, ("one-call",), {"Show me the file": "It is not here."}, template)
    found = findings(probed)["no-native-calls"]
    assert not probed.tools_shown and probed.format == "" and "--fix" in found.remedy
    assert "<tool_call> 0.0" in found.evidence  # watched all the same, since the vocabulary has it


def test_a_format_that_only_the_template_keeps_to_itself(tmp_path):
    template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    template += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    probed = replay(tmp_path, ("one-call",), {"Show me the file": CALL}, template)
    assert probed.verdict == "emits native tokens" and probed.answers[0].written.note == "qwen3_coder"
    assert "another format (qwen3_coder)" in findings(probed)["no-native-calls"].summary


# ---- openers of several tokens, templates that raise, broken weights ----


def test_an_opener_of_several_tokens_token_by_token(base, specimen):
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    )
    template += "{{ tools | tojson }}{% if messages | length > 90 %}[TOOL_CALLS]{% endif %}"
    other = specimen.with_template(template + "{{ '<|im_start|>assistant\\n' }}")
    probed = probe(base, other, probes=PROBES[:1])
    (answer,) = probed.answers
    assert probed.format == "mistral" and not probed.opener.single and len(answer.opening) == len(probed.opener.tokens)
    asked = safe_prompt(other.tokenizer, PROBES[0].messages, PROBES[0].tools).tokens
    one_by_one = []
    for i, token in enumerate(probed.opener.tokens):
        (step,) = raw.watch(base, [*asked, *probed.opener.tokens[:i]], {"it": token}, most=1)
        one_by_one.append(step.watched["it"])
    assert answer.opening == pytest.approx(one_by_one, rel=1e-2, abs=1e-9)
    assert answer.opens == pytest.approx(math.prod(one_by_one), rel=1e-2)
    assert "several tokens" in probed.to_json()["opener"]["how"]
    assert "(token by token)" in findings(probed)["no-native-calls"].evidence


@pytest.mark.parametrize("name", [n for n, f in formats.FORMATS.items() if f.native])
def test_the_opener_of_each_format_begins_what_it_writes(name, base):
    wire = formats.get(name)
    opener = opener_of(wire, base.tokenizer)
    written = wire.render([ToolCall("list_dir", {"path": "y"})])
    assert opener is not None and opener.text and written.startswith(opener.text) and written.startswith(opener.head)
    assert base.tokenizer.decode(list(opener.tokens)) in written
    assert opener.tokens == opener.head_tokens[: len(opener.tokens)]
    assert len(opener.head_tokens) <= probing.LONGEST


def test_a_template_that_raises_leaves_a_probe_out(base, specimen):
    template = "{% if messages[-1].role == 'tool' %}{{ raise_exception('no results, please') }}{% endif %}"
    probed = probe(base, specimen.with_template(template + specimen.template), probes=PROBES[2:4])
    assert [a.probe.id for a in probed.answers] == ["to-escape"]
    ((left_out, why),) = probed.left_out
    assert left_out == "after-result" and "no results, please" in why
    skipped = dict(examine(probed, CHECKS).skipped)
    assert "no results, please" in skipped["repeats-call"]


def test_weights_that_are_no_numbers(tiny_base, specimen):
    model = direct.Model(tiny_base)
    model.network.model.norm.weight = model.network.model.norm.weight * float("nan")
    probed = probe(model, specimen, probes=PROBES[:2], limits=Limits(answer=4))
    assert list(findings(probed)) == ["not-a-number"]
    json.dumps(probed.to_json(), allow_nan=False)


# ---- the table ----


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.id)
def test_each_check_has_its_page(check):
    page = table.explanation(check.id).splitlines()
    assert page[0].startswith(f"# {check.id}: ") and 8 <= len(page) <= 20
    assert check in table.checks("behaviour")
