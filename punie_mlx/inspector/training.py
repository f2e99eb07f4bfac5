"""On which positions training puts a loss: the samples that `train` makes of the row, unabridged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from punie_mlx.corpus.rows import Row
from punie_mlx.train.samples import Sample, SampleOptions, make_samples

MOST = np.iinfo(np.int32).max  # tokens: a sample that training would leave out is shown, with a note


@dataclass(frozen=True)
class Training:
    """The samples of a row, in order, and why turns have none."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]

    def learned(self, length: int, tokens: list[int]) -> list[bool] | None:
        """For `length` positions of `tokens`: whether a sample that begins like them has a loss there.

        None where there is no sample at all.
        """
        if not self.samples:
            return None
        out = [False] * length
        for sample in self.samples:
            if self.holds(tokens, sample):
                for start, stop, _ in sample.spans:
                    out[start:stop] = [True] * (stop - start)
        return out

    @staticmethod
    def holds(tokens: list[int], sample: Sample) -> bool:
        """Whether `tokens` begin with all of `sample`."""
        return tokens[: len(sample.tokens)] == sample.tokens.tolist()


def training(row: Row, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> Training:
    """What training learns from `row`, with the settings that it has by default; nothing of a mere question."""
    if row.text is None and all(m["role"] != "assistant" for m in row.messages):
        return Training((), ())
    options = SampleOptions(template_kwargs=template_kwargs)
    made = make_samples([row], tokenizer, replace(options, max_seq_length=MOST))
    notes = [f"left out of training: {reason} ({n})" for reason, n in made.dropped.items()]
    if made.first_failure:
        notes.append(made.first_failure)
    notes += [f"{note} ({n})" for note, n in made.notes.items()]
    longest = max((len(s.tokens) for s in made.items), default=0)
    if longest > options.max_seq_length:
        notes.append(
            f"{longest:,} tokens are more than training takes by default ({options.max_seq_length:,}): "
            "give `train` a larger --max-seq-length"
        )
    return Training(tuple(made.items), tuple(notes))
