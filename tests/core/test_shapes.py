"""Annotations of arrays are true: tests check them at every call."""

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
