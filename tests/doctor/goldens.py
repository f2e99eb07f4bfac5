"""What the doctor finds in real templates, as it is kept in golden/*.json: `python -m tests.doctor.goldens` writes it.

Evidence is word for word, but sentences of the templates are no matter of ours: they are masked. What stays are our own
probe words, and the frame of control tokens, role names and tags around them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from punie_mlx.doctor import cases, table
from punie_mlx.doctor.findings import Finding, examine
from punie_mlx.doctor.specimen import Specimen

GOLDEN = Path(__file__).parent / "golden"
MASK = "⟨words of the template⟩"
RUN = 4  # so many words of a template one after the other are a sentence of it
_WORD, _GAP = re.compile(r"\w+"), re.compile(r"[\s,.;:!?'’\"()`-]+")
_OWN = sorted(
    {v for v in vars(cases).values() if isinstance(v, str) and " " in v}
    | {cases.ORBIT.result, cases.BERTH.result, "pieced Halvard-5", "Plot the course Ulveston", "Draw the reef"},
    key=len,
    reverse=True,
)


def masked(text: str, template: str) -> str:
    """`text` without the sentences that `template` holds."""
    spelled = template.replace("\\n", " ")  # line breaks in Jinja's strings
    known = f" {' '.join(_WORD.findall(spelled))} "
    parts = re.split(f"({'|'.join(map(re.escape, _OWN))})", text)
    return "".join(p if p in _OWN else _without_sentences(p, known) for p in parts)


def _without_sentences(text: str, known: str) -> str:
    """`text` with a mask for each longest run of words that stands in `known`."""
    words, out, at, i = list(_WORD.finditer(text)), [], 0, 0
    while i < len(words):
        j = i + 1
        while j < len(words) and _follows(text, words[j - 1], words[j]) and _stands(words[i : j + 1], known):
            j += 1
        if j - i >= RUN:
            out += [text[at : words[i].start()], MASK]
            at, i = words[j - 1].end(), j
        else:
            i += 1
    return "".join([*out, text[at:]])


def _follows(text: str, word: re.Match[str], other: re.Match[str]) -> bool:
    return bool(_GAP.fullmatch(text, word.end(), other.start()))


def _stands(words: list[re.Match[str]], known: str) -> bool:
    return f" {' '.join(w[0] for w in words)} " in known


def findings(specimen: Specimen) -> tuple[Finding, ...]:
    return examine(specimen, table.checks("template", "round-trip")).findings


def told(specimen: Specimen) -> list[dict[str, Any]]:
    """The findings of `specimen` as a golden file has them."""
    return [
        {
            "check": f.check,
            "severity": f.severity,
            "summary": masked(f.summary, specimen.template),
            "shown": {s.label: masked(s.text, specimen.template) for s in f.shown},
        }
        for f in findings(specimen)
    ]


def main(real: Path) -> None:
    """Write all golden files anew."""
    for file in sorted((real / "templates").glob("*.jinja")):
        text = json.dumps(told(Specimen.of_file(file)), indent=1, ensure_ascii=False)
        (GOLDEN / f"{file.stem}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parents[3] / "shared" / "real")
