"""Shapes and dtypes that annotations declare are checked at each call, by jaxtyping and beartype.

pyproject.toml names `check` to jaxtyping. Annotations of anything but arrays are left alone.
"""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

ARRAYS = ("Float[", "Int[", "Bool[", "Complex[", "Num[", "Inexact[")
CONFIG = BeartypeConf(is_pep484_tower=True)  # an int is a float, as in annotations everywhere


def check(function: Callable) -> Callable:
    """`function`, whose annotations of arrays are checked at each call."""
    annotations = getattr(function, "__annotations__", {})
    if function.__name__ == "__init__":  # JAX puts anything into the fields of its trees
        return function
    kept = {name: hint for name, hint in annotations.items() if any(a in str(hint) for a in ARRAYS)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(function, conf=CONFIG)
