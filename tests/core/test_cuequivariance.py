"""MACE's products as cuequivariance has them are those of our own; on a CPU, in its plain JAX."""

import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.build import bulk
from conftest import QUICK, small_potential

import jaxmlip
from jaxmlip.models.mace import MACE, MACEConfig
from jaxmlip.phonons import dynamical_matrix
from jaxmlip.potential import random_potential

SMALL = MACEConfig(
    elements=(11, 17),
    channels=2,
    hidden_l=1,
    harmonics_l=1,
    correlation=(3, 2),
    cutoff=3.5,
    radial=3,
    radial_widths=(4,),
)
NONLINEAR = replace(
    SMALL,
    blocks=("nonlinear-residual",) * 2,
    correlation=(2, 2),
    cutoff_on_basis=False,
    edge_channels=(3, 3),
    agnostic_product=True,
    repulsion=False,
)


@pytest.fixture
def theirs():
    pytest.importorskip("cuequivariance_jax", reason="pip install 'jaxmlip[cuequivariance]'")
    from jaxmlip.models import cuequivariance

    with jax.numpy_rank_promotion("allow"):  # which the package needs
        yield cuequivariance


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, NONLINEAR], ids=["density", "nonlinear"])
def test_predictions_hessians_and_dynamical_matrices_are_those_of_our_own_products(theirs, config, tmp_path):
    potential = random_potential(config, 0, "float64", name="small")
    for name, its in potential.params["network"].items():
        if "offset" in its:  # which at the start makes messages small
            potential.params["network"][name]["offset"] = np.ones_like(its["offset"])
    potential.save(tmp_path / "small")
    own, other = (
        jaxmlip.load(tmp_path / "small", "float64", products=its) for its in ("xla", "cuequivariance")
    )
    assert own.model != other.model
    salt = bulk("NaCl", "rocksalt", a=5.4)
    salt.rattle(0.1, seed=1)
    ours, its = own.predict(salt), other.predict(salt)
    for name, value in ours.items():
        assert np.ptp(value) > 1e-3 or name == "energy"
        np.testing.assert_allclose(its[name], value, atol=1e-12, err_msg=name)
    q = [[0.1, 0.2, 0.3]]
    D = dynamical_matrix(own, salt, q)
    assert np.abs(D).max() > 1e-2
    np.testing.assert_allclose(dynamical_matrix(other, salt, q), D, atol=1e-12)
    np.testing.assert_allclose(jaxmlip.hessian(other, salt), jaxmlip.hessian(own, salt), atol=1e-12)


def test_the_gpu_kernel_takes_the_polynomials_of_published_sizes(theirs):
    """It needs one mode, the channels, and segments of one shape in each operand."""
    made = [theirs.message_polynomial(4, 3, l, 128) for l in range(4)]
    made += [theirs.contraction_polynomial(3, L, (1, 2, 3), 128) for L in range(2)]
    for polynomial in made:
        for _, product in polynomial.operations:
            assert product.subscripts.modes() == ["u"]
            assert product.coefficient_subscripts == ""
            assert product.all_same_segment_shape()
            assert product.get_dims("u") == {128}


def test_products_that_cannot_be_had_are_told(tmp_path, monkeypatch):
    mace, other = (tmp_path / name for name in ("mace", "other"))
    random_potential(SMALL, 0, name="small").save(mace)
    small_potential(QUICK).save(other)
    with pytest.raises(ValueError, match="needed 'xla' or 'cuequivariance'"):
        jaxmlip.load(mace, products="triton")
    with pytest.raises(ValueError, match="needed a MACE"):
        jaxmlip.load(other, products="cuequivariance")
    monkeypatch.delitem(sys.modules, "jaxmlip.models.cuequivariance", raising=False)
    monkeypatch.setitem(sys.modules, "cuequivariance", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmlip\[cuequivariance\]'"):
        jaxmlip.load(mace, products="cuequivariance")


def test_a_potential_with_other_products_is_saved_as_any(theirs, tmp_path):
    made = random_potential(SMALL, 0, name="small")
    other = replace(made, model=MACE(SMALL, theirs.PRODUCTS))
    other.save(tmp_path / "other")
    assert jaxmlip.load(tmp_path / "other").model == made.model
