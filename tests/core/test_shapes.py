"""What tests hold the library to: annotations of arrays are true, and nothing is mixed or said by mistake."""

import os
import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxmlip.models import safe


def test_an_array_of_another_shape_than_declared_is_refused():
    assert safe.norm(np.ones((2, 3))).shape == (2,)
    with pytest.raises(TypeCheckError, match=r"safe\.norm"):
        safe.norm(np.ones((2, 4)))


def test_an_array_of_another_dtype_than_declared_is_refused():
    with pytest.raises(TypeCheckError, match=r"safe\.norm"):
        safe.norm(np.ones((2, 3), int))


MIXED = {
    "ranks": "jnp.ones((2, 3)) + jnp.ones(3)",
    "precisions": "jnp.ones(3, jnp.float32) * jnp.ones(3, jnp.bfloat16)",
    "whole numbers and others": "jnp.arange(3) * jnp.ones(3)",
}


@pytest.mark.parametrize("what", MIXED)
def test_arrays_are_mixed_only_where_the_code_says_so(what):
    with pytest.raises(ValueError, match=r"jax_numpy_(rank|dtype)_promotion"):
        eval(MIXED[what], {"jnp": jnp})


def test_processes_that_tests_start_mix_nothing_either():
    script = f"import jax.numpy as jnp; {MIXED['ranks']}"
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True)
    assert "jax_numpy_rank_promotion" in ended.stderr


def test_a_warning_that_no_test_expects_is_an_error():
    with pytest.raises(UserWarning, match="unexpected"):
        warnings.warn("unexpected", stacklevel=1)
