"""How to use a mended template: what to type here, for mlx_lm, vLLM and llama.cpp.

Each takes another thing by another flag: a file here, in vLLM and in llama.cpp; the template's text in mlx_lm.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from punie_mlx.doctor import flags
from punie_mlx.doctor.specimen import Specimen

_MODEL = "MODEL_DIR"
_ESCAPES = r"\\u[0-9a-f]{4}"
_UNESCAPE = (
    """python3 -c 'import re, sys; print(re.sub(r"\\\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), """
    """open(sys.argv[1]).read()), end="")' """
)


def usage(file: Path, specimen: Specimen) -> str:
    """What to type so that the template in `file`, which is that of `specimen`, is used. A command has one line."""
    model = shlex.quote(str(specimen.directory)) if specimen.directory else _MODEL
    name = shlex.quote(str(file))
    for_llama = shlex.quote(str(file.with_name(f"{file.stem}.llama.cpp.jinja"))) if _escapes(specimen) else name
    llama = f"llama-server -m MODEL.gguf --jinja --chat-template-file {for_llama}"
    lines = [
        "How to use it:",
        f"  here       punie-mlx serve --model {model} --chat-template {name}",
        f'  mlx_lm     mlx_lm.server --model {model} --chat-template "$(cat {name})"',
        f"  vLLM       {' '.join(['vllm serve', model, '--chat-template', name, *flags.vllm_flags(specimen)])}",
        f"  llama.cpp  {llama}",
        *([f"             after {_UNESCAPE}{name} > {for_llama}"] if _escapes(specimen) else []),
        "",
        "mlx_lm.server takes the text of a template and no file; mlx_lm.generate takes none. For good, everywhere: "
        f"cp {name} {model}/chat_template.jinja, which goes before a template in tokenizer_config.json. Keep the old "
        "one: the model's fingerprint changes with its template, and what was measured belongs to the old one.",
    ]
    if _escapes(specimen):
        lines.append(
            "The template spells tokens of private use as escapes, so that no editor loses them. The Jinja of "
            "llama.cpp reads no escapes, so it gets a copy with the characters themselves."
        )
    return "\n".join(lines)


def _escapes(specimen: Specimen) -> bool:
    return re.search(_ESCAPES, specimen.template) is not None
