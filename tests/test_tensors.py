"""Arrays of safetensors files, as mlx writes them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from punie_mlx import tensors
from punie_mlx.errors import ModelError


def test_arrays_are_read_as_mlx_reads_them(tmp_path):
    given = mx.array([[1.5, -2.0], [0.0, 3.25]])
    kinds = {"a": mx.float32, "b": mx.float16, "c": mx.bfloat16, "d": mx.int32}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {n: given.astype(k) for n, k in kinds.items()})
    head = tensors.head(tmp_path / "x.safetensors")
    assert {n: e.shape for n, e in head.items()} == dict.fromkeys(kinds, (2, 2))
    read = dict(tensors.values(tmp_path / "x.safetensors"))
    assert set(read) == {"a", "b", "c"}, "integers are no adapter's"
    assert all(np.array_equal(array, np.array(given)) for array in read.values())


NO_FILES = (b"", b"\xff" * 9, b"\x02" + b"\x00" * 7 + b"[]", b"\x02" + b"\x00" * 7 + b"{")


@pytest.mark.parametrize("content", NO_FILES)
def test_what_is_no_such_file_is_said(tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="no safetensors file"):
        tensors.head(file)
    with pytest.raises(ModelError, match="no safetensors file"):
        list(tensors.values(file))
