"""Shapes and dtypes that annotations declare are checked at each call, by jaxtyping and beartype.

pyproject.toml names `check` to jaxtyping. Annotations of anything but arrays are left alone.
"""

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

ARRAYS = ("Float[", "Int[", "Bool[", "Complex[", "Num[", "Inexact[")
CONFIG = BeartypeConf(is_pep484_tower=True)  # an int is a float, as in annotations everywhere


def of_arrays(what: Any) -> dict[str, Any]:
    """The annotations of arrays that a function has. Of classes none: JAX puts anything into its trees."""
    annotations = {} if isinstance(what, type) else getattr(what, "__annotations__", {})
    return {name: hint for name, hint in annotations.items() if any(a in str(hint) for a in ARRAYS)}


def check(function: Callable) -> Callable:
    """`function`, whose annotations of arrays are checked at each call."""
    function.__annotations__ = of_arrays(function)
    return beartype(function, conf=CONFIG) if function.__annotations__ else function


def where_there_are_arrays(jaxtyped: Callable) -> Callable:
    """jaxtyping's decorator, which leaves alone what declares no arrays.

    By itself it binds the arguments of each call of every function and class, which costs the tests a tenth.
    """

    def decorator(**options) -> Callable:
        decorate = jaxtyped(**options)
        return lambda what: decorate(what) if of_arrays(what) else what

    return decorator


# jaxtyping imports this module at the first function that it decorates.
jaxtyping.jaxtyped = where_there_are_arrays(jaxtyping.jaxtyped)
