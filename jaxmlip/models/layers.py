"""Pieces that several networks share."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.models.activations import ACTIVATIONS
from jaxmlip.models.basis import Expansion
from jaxmlip.system.arrays import Array


class Linear(nn.Module):
    """x W + b, in the precision of x. `centred` subtracts the mean over the outputs of each group.

    A layer norm that follows needs outputs of zero mean. Subtracting the mean from W and b, a few thousand
    numbers, gives the same result as subtracting it from every row of the product.
    """

    features: int
    bias: bool = True
    centred: int = 0  # number of groups of outputs that a layer norm follows; 0: none does

    @nn.compact
    def __call__(self, x: Float[Array, "*n in"] | Expansion) -> Float[Array, "*n out"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = x @ self._centre(kernel)
        if self.bias:
            bias = self._centre(self.param("bias", nn.initializers.zeros, (self.features,)))
            y = y + jnp.expand_dims(bias, range(y.ndim - 1))
        return y

    def _centre(self, w):
        if not self.centred:
            return w
        groups = w.reshape(*w.shape[:-1], self.centred, -1)
        return (groups - groups.mean(axis=-1, keepdims=True)).reshape(w.shape)


class CentredNorm(nn.Module):
    """Layer norm (Ba et al. 2016) of rows whose mean is already zero."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "n f"]) -> Float[Array, "n f"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return normalise(x, self.epsilon)[0] * scale[None] + bias[None]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalise(x: Float[Array, "n f"], epsilon: float) -> tuple[Float[Array, "n f"], Float[Array, "n 1"]]:
    """ŷ = x r and r = 1/√(mean of x² over a row + ε), with derivatives of every order.

    The derivative is written in ŷ and r: dŷ = r (dx - ŷ ⟨ŷ dx⟩) and dr = -r² ⟨ŷ dx⟩. That needs half as many
    factors as differentiating the formula above.
    """
    r = jax.lax.rsqrt(row_mean(x, x) + epsilon)
    return x * r, r


@normalise.defjvp
def _(epsilon, primals, tangents):
    y, r = normalise(primals[0], epsilon)
    overlap = r * row_mean(y, tangents[0])
    return (y, r), (r * tangents[0] - y * overlap, -r * overlap)


def row_mean(x: Float[Array, "n f"], y: Float[Array, "n f"]) -> Float[Array, "n 1"]:
    """⟨x y⟩ of every row, as products: XLA on a CPU computes them four times as fast as a sum over a row."""
    return jnp.einsum("nf,nf->n", x, y)[:, None] / x.shape[-1]


class BatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) as after training: its mean and variance are constants."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "n f"]) -> Float[Array, "n f"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        mean = self.variable("constants", "mean", jnp.zeros, x.shape[-1:]).value
        variance = self.variable("constants", "variance", jnp.ones, x.shape[-1:]).value
        return (x - mean[None]) * (scale * jax.lax.rsqrt(variance + self.epsilon))[None] + bias[None]


NORMS = ("layer", "batch", "none")


def normed(kind: str, x: Float[Array, "n f"], name: str, centred: bool = False) -> Float[Array, "n f"]:
    """The norm called `name`, of a kind in NORMS, of the rows x; `centred` if their mean is already zero.

    It belongs to the module that calls this.
    """
    if kind == "layer":
        return CentredNorm(name=name)(x if centred else x - x.mean(axis=-1, keepdims=True))
    return BatchNorm(name=name)(x) if kind == "batch" else x


class MLP(nn.Module):
    """Linear layers with activations between them; the last one is plain."""

    features: tuple[int, ...]
    activation: str = "silu"

    @nn.compact
    def __call__(self, x: Float[Array, "n in"]) -> Float[Array, "n out"]:
        for k, width in enumerate(self.features):
            x = Linear(width, name=f"layer_{k}")(ACTIVATIONS[self.activation](x) if k else x)
        return x


class _Matrix(nn.Module):
    """A single matrix, under the name that a linear layer would give it."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", nn.initializers.lecun_normal(), self.shape)


def matrix(scope: nn.Module, name: str, shape: tuple[int, int]) -> Array:
    """The matrix `name` of the module `scope`, for an `Expansion`."""
    return _Matrix(shape, name=name, parent=scope)()


def multiples_of(unit: float, first: int = 1):
    """Initialises frequencies as `unit` times first, first + 1, …"""

    def initialise(key, shape, dtype=float):
        return unit * jnp.arange(first, first + shape[0], dtype=dtype)

    return initialise
