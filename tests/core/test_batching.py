"""Padding and packing: few shapes, nothing lost, and clear words where something does not fit."""

import jax
import numpy as np
import pytest
import quick_network
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

import jaxmlip.potential
from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.batching import BatchShape, round_up
from jaxmlip.derivatives.response import Response

pytestmark = pytest.mark.usefixtures("real_shapes")


@given(st.integers(1, 10**7))
def test_a_rung_of_the_ladder_holds_what_was_asked_and_wastes_less_than_a_quarter(n):
    rung = round_up(n)
    assert n <= rung
    assert rung < 1.25 * n or rung == 8
    assert round_up(rung) == rung


def test_the_ladder_has_four_rungs_to_a_doubling_and_eight_where_waste_is_large():
    assert len({round_up(n) for n in range(1, 257)}) <= 4 * np.log2(256 / 8) + 2
    assert len({round_up(n) for n in range(257, 100_001)}) <= 8 * np.log2(100_000 / 256) + 2
    assert all(round_up(n) < 1.125 * n for n in range(257, 3000))


@pytest.mark.parametrize("atoms", [8, 16, 32, 64, 128])
def test_as_many_atoms_as_a_rung_has_are_not_padded_to_the_next(atoms):
    shape = batching.padded_shape(BatchShape.holding((atoms, 6 * atoms, 6 * atoms, 0), 1))
    assert shape[:3] == (atoms + 1, 8 * atoms, 8 * atoms)


def test_hessians_of_more_than_few_atoms_take_a_shape_close_to_their_own(any_potential):
    few, more = ([any_potential.graph(bulk("NaCl", "rocksalt", 5.64) * (2, 2, n))] for n in (4, 5))
    assert batching.hessian_shape_for(few) == batching.shape_for(few)
    assert batching.hessian_shape_for(more) == batching.close_shape_for(more)
    assert batching.close_shape_for(more).messages < 0.8 * batching.shape_for(more).messages
    assert batching.shape_of(Response(any_potential, more[0]).graph) == batching.close_shape_for(more)


def test_packing_and_splitting_give_every_atom_back(any_potential, crystals):
    graphs = [any_potential.graph(c) for c in crystals]
    packed = batching.pack(graphs)
    assert packed.is_atom.sum() == sum(map(len, crystals))
    for part, c in zip(batching.split_atoms(packed.positions, graphs), crystals, strict=True):
        np.testing.assert_array_equal(part, c.positions)


def test_packed_bonds_join_the_atoms_that_they_joined(any_potential, crystals):
    graphs = [any_potential.graph(c) for c in crystals]
    packed = batching.pack(graphs)
    real = packed.is_atom[packed.first]
    assert real.sum() == sum(len(g.first) for g in graphs)
    np.testing.assert_array_equal(packed.crystal[packed.first], packed.crystal[packed.second])
    r = packed.positions
    cell = packed.cell[packed.crystal[packed.first]]
    length = np.linalg.norm(
        r[packed.second] + np.einsum("bk,bkx->bx", packed.shifts, cell) - r[packed.first], axis=1
    )
    assert (length[real] > 1).all()
    assert (length[~real] == 0).all()
    assert (length[: packed.short][real[: packed.short]] < any_potential.cutoffs.angle).all()
    assert (length[packed.short :][real[packed.short :]] >= any_potential.cutoffs.angle).all()


def test_what_does_not_fit_is_refused_with_what_it_needs(any_potential):
    graph = any_potential.graph(bulk("NaCl", "rocksalt", 5.64))
    shape = batching.exact_shape([graph])
    with pytest.raises(ValueError, match=r"need 4 atoms.*holds 2"):
        batching.pack([graph, graph], shape)


def test_crystals_side_by_side_are_each_in_one_batch_that_has_room_for_them(any_potential, crystals):
    large = crystals[0].repeat((3, 2, 2))
    graphs = [any_potential.graph(c) for c in [*crystals * 7, large]]
    shapes = batches.shapes_for(graphs, 500)
    assert 1 < len(shapes) < 5
    found = batches.side_by_side(graphs, 500)
    assert sorted(k for batch, _ in found for k in batch) == list(range(len(graphs)))
    assert len(found) < len(graphs) / 2
    for batch, shape in found:
        assert shape in shapes
        assert shape.fits(batching.exact_shape([graphs[k] for k in batch]))
    # The large one does not make all batches large, and shapes that are given serve as far as they do.
    assert sum(shape == shapes[-1] for _, shape in found) == 1
    given = batches.side_by_side(graphs, 500, shapes[:1])
    assert given[0][1] == shapes[0]
    assert sorted(k for batch, _ in given for k in batch) == list(range(len(graphs)))
    assert batches.side_by_side([], 500) == []


def test_crystals_in_flight_share_a_shape_that_grows_and_shrinks_with_them(any_potential):
    class Recorder:
        def __init__(self):
            self.shapes = []

        def predict_graphs(self, graphs, shape):
            assert shape.fits(batching.exact_shape(graphs))
            self.shapes.append(shape)
            return [len(g.species) for g in graphs]

    potential, few = Recorder(), [any_potential.graph(bulk("Cu").repeat((2, 2, n))) for n in (2, 3)]
    many = [any_potential.graph(bulk("Cu").repeat((4, 4, 4))) for _ in range(3)]
    compute = batches.InFlight(potential)
    assert compute(few) == [8, 12]
    assert compute(few[:1]) == [8]
    assert compute(many) == [64] * 3
    assert compute([]) == []
    for _ in range(batches.PATIENCE + 1):
        assert compute(few[::-1]) == [12, 8]
    first, same, grown, *later = potential.shapes
    assert first == same == later[-1]
    assert set(later[: batches.PATIENCE]) == {grown}
    assert compute.admits(few, few) == [False, False]
    assert compute.admits([], many) == [True, False, False]  # what is too large alone grows the shape
    assert batches.InFlight(potential, several=False)(few[:1]) == [8]
    assert potential.shapes[-1].crystals == 1


def test_screening_many_crystals_compiles_one_program(any_potential):
    rng = np.random.default_rng(0)
    crystals = []
    for symbol in ("Cu", "Al", "Si", "Fe", "Mg") * 12:
        atoms = bulk(symbol) * (1, 1, int(rng.integers(1, 4)))
        atoms.rattle(0.1, rng=rng)
        crystals.append(atoms)
    before = jaxmlip.potential._predict._cache_size()
    found = any_potential.predict(crystals)
    assert jaxmlip.potential._predict._cache_size() - before <= 1
    assert len(found) == len(crystals)


def test_predict_accepts_no_crystals_and_keeps_the_order(any_potential, crystals):
    assert any_potential.predict([]) == []
    found = any_potential.predict(crystals[::-1])
    assert [len(p["forces"]) for p in found] == [len(c) for c in crystals[::-1]]


def test_potentials_of_one_architecture_share_compiled_programs(any_potential, crystal):
    any_potential.predict(crystal)
    before = jaxmlip.potential._predict._cache_size()
    other = quick_network.potential(any_potential.model.config, seed=3, dtype=any_potential.dtype)
    other.predict(crystal)
    assert jaxmlip.potential._predict._cache_size() == before


def test_nothing_of_float64_outlives_a_prediction(any_potential, crystal):
    any_potential.predict(crystal)
    assert not jax.config.jax_enable_x64
    assert jax.numpy.ones(1).dtype == np.float32


def test_a_shape_holds_what_it_was_made_for_and_covers_each_of_several():
    small, flat = BatchShape.holding([3, 10, 20, 30, 0], 2), BatchShape.holding([9, 1, 2, 3, 40], 1)
    assert small.free.tolist() == [3, 10, 20, 30, 0, 2]
    both = BatchShape.covering([small, flat])
    assert both.fits(small)
    assert both.fits(flat)
    assert both.free.tolist() == [9, 10, 20, 30, 40, 2]
    assert all(type(n) is int for n in both)
