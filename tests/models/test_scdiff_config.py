"""Heads share the width of the network evenly, or the sizes are refused when they are named."""

import pytest

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiffConfig


def test_width_is_a_multiple_of_the_heads():
    with pytest.raises(ScreproError, match="multiple of its heads") as caught:
        ScDiffConfig(n_genes=10, width=30, heads=4)
    assert "width 32" in str(caught.value) or "width 28" in str(caught.value)
    assert ScDiffConfig(n_genes=10, width=32, heads=4).width == 32
    assert ScDiffConfig(n_genes=10, width=7, heads=3, head_width=5).head_width == 5  # a head may have its own
