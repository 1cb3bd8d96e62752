"""Crystals as jraph.GraphsTuple, and back."""

import jax
import jraph
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, bond_vectors, from_atoms

ANGLES = Cutoffs(4.5, 3.0)


@pytest.fixture(scope="module")
def all_kinds(crystals) -> list[Atoms]:
    """Crystals, a slab, a wire and a molecule."""
    slab = fcc111("Cu", (1, 2, 2), vacuum=8.0, orthogonal=True)
    wire = Atoms("CO", [[0, 0, 0], [1.1, 0.1, 0]], cell=[3.1, 0, 0], pbc=[True, False, False])
    molecule = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    return [*crystals, slab, wire, molecule]


def same(one: CrystalGraph, other: CrystalGraph) -> bool:
    """Whether two graphs are the same in every array and its precision."""
    flat, others = vars(one), vars(other)
    return all(np.array_equal(x, others[k]) for k, x in flat.items()) and all(
        np.asarray(x).dtype == np.asarray(others[k]).dtype for k, x in flat.items()
    )


@pytest.mark.parametrize("cutoffs", [ANGLES, Cutoffs(4.5, 3.0, listed=False), Cutoffs(6.0)])
def test_the_graph_of_a_crystal_comes_back_as_it_was(cutoffs, all_kinds):
    for atoms in all_kinds:
        graph = from_atoms(atoms, cutoffs)
        assert same(CrystalGraph.from_jraph(graph.to_jraph(), cutoffs), graph)
        elements = sorted(set(atoms.numbers.tolist()))
        counted = graph.to_jraph(elements)
        assert counted.nodes["species"].max() < len(elements)
        assert same(CrystalGraph.from_jraph(counted, cutoffs, elements), graph)


def test_edges_run_from_senders_whose_image_the_shift_tells_to_receivers(all_kinds):
    """Against ASE's neighbour list, which counts the same edges from the centre."""
    from ase.neighborlist import neighbor_list

    for atoms in all_kinds:
        graph = from_atoms(atoms, 4.0).to_jraph()
        cell = np.repeat(graph.globals["cell"], graph.n_edge, axis=0)
        there = np.einsum("ek,ekx->ex", graph.edges["shifts"], cell)
        r = graph.nodes["positions"]
        vectors = r[graph.senders] + there - r[graph.receivers]
        i, j, D = neighbor_list("ijD", atoms, 4.0)
        found = np.column_stack([graph.receivers, graph.senders, vectors]).round(6) + 0.0
        wanted = np.column_stack([i, j, D]).round(6) + 0.0
        assert np.array_equal(np.unique(found, axis=0), np.unique(wanted, axis=0))
        assert len(found) == len(wanted)
        assert (np.diff(graph.receivers) >= 0).all()


def test_a_padded_batch_comes_back_without_its_padding(all_kinds):
    graphs = [from_atoms(atoms, 5.0) for atoms in all_kinds]
    shape = batching.shape_for(graphs)._replace(crystals=len(graphs) + 3)
    packed = batching.pack(graphs, shape)
    back = CrystalGraph.from_jraph(packed.to_jraph())
    with jax.enable_x64(True):
        assert same(CrystalGraph.from_jraph(packed.to_jraph(padded=True)), back)
    starts = np.cumsum([0, *(len(g.species) for g in graphs)])
    for name in ("positions", "species", "cell", "periodic", "shifts"):
        assert np.array_equal(getattr(back, name), np.concatenate([getattr(g, name) for g in graphs]))
    for name in ("first", "second"):
        parts = [getattr(g, name) + start for g, start in zip(graphs, starts, strict=False)]
        assert np.array_equal(getattr(back, name), np.concatenate(parts))
    assert np.array_equal(back.crystal, np.repeat(np.arange(len(graphs)), np.diff(starts)))


@pytest.mark.slow
def test_padding_is_where_the_masks_of_jraph_look_for_it(all_kinds):
    graphs = [from_atoms(atoms, 5.0) for atoms in all_kinds]
    for packed in (
        batching.pack(graphs),
        batching.pack(graphs, batching.shape_for(graphs)._replace(crystals=len(graphs) + 3)),
        graphs[0],
    ):
        padded = jax.jit(lambda graph: graph.to_jraph(padded=True))(packed)
        plain = packed.to_jraph()
        crystals, atoms, edges = (len(x) for x in (plain.n_node, plain.nodes["species"], plain.senders))
        assert padded.n_node.sum() == len(padded.nodes["species"]) == len(packed.species) + 1
        assert padded.n_edge.sum() == len(padded.senders) == 2 * len(packed.first)
        assert jraph.get_graph_padding_mask(padded).sum() == crystals
        assert jraph.get_node_padding_mask(padded).sum() == atoms
        assert jraph.get_edge_padding_mask(padded).sum() == edges
        unpadded = jraph.unpad_with_graphs(padded)
        for found, wanted in zip(jax.tree.leaves(unpadded), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(found, wanted.astype(found.dtype))
        # No edge of padding has zero length.
        cell = np.repeat(padded.globals["cell"], padded.n_edge, axis=0)
        r = padded.nodes["positions"]
        there = np.einsum("ek,ekx->ex", padded.edges["shifts"], cell)
        assert np.linalg.norm(r[padded.senders] + there - r[padded.receivers], axis=1).min() > 0.5


def test_a_graph_of_others_is_taken_with_its_edges_in_any_order(crystal):
    graph = from_atoms(crystal, ANGLES)
    theirs = graph.to_jraph()
    order = np.random.default_rng(0).permutation(len(theirs.senders))
    theirs = theirs._replace(
        senders=theirs.senders[order],
        receivers=theirs.receivers[order],
        edges={"shifts": theirs.edges["shifts"][order].astype(np.float32)},
        nodes={name: theirs.nodes[name] for name in ("positions", "species")},
        globals={"cell": theirs.globals["cell"]},
    )
    found = CrystalGraph.from_jraph(theirs, ANGLES)
    assert (found.short, len(found.angle_from)) == (graph.short, len(graph.angle_from))
    lengths = [np.sort(np.linalg.norm(bond_vectors(g), axis=1)) for g in (found, graph)]
    np.testing.assert_allclose(*lengths, atol=1e-5)
    molecule = theirs._replace(globals={"cell": None}, edges={"shifts": 0 * theirs.edges["shifts"]})
    with pytest.raises(ValueError, match=r"occurs \d+ times"):
        CrystalGraph.from_jraph(molecule)


def test_graphs_that_are_none_are_refused(crystal):
    graph = from_atoms(bulk("Cu"), 4.0).to_jraph()
    with pytest.raises(ValueError, match=r"edge 0 .* occurs 1 times"):
        CrystalGraph.from_jraph(
            graph._replace(
                **{name: x[:1] for name, x in (("senders", graph.senders), ("receivers", graph.receivers))},
                edges={"shifts": graph.edges["shifts"][:1]},
            )
        )
    with pytest.raises(ValueError, match="whole lattice vectors"):
        CrystalGraph.from_jraph(graph._replace(edges={"shifts": 0.7 * graph.edges["shifts"]}))
    with pytest.raises(ValueError, match="species 0"):
        CrystalGraph.from_jraph(
            from_atoms(crystal, 4.0)
            .to_jraph(sorted(set(crystal.numbers)))
            ._replace(nodes={"positions": crystal.positions, "species": np.arange(len(crystal))})
        )
    with pytest.raises(ValueError, match=r"atomic numbers \[1, 8, 13\]"):
        from_atoms(crystal, 4.0).to_jraph([12])


@pytest.mark.parametrize("end", ["receivers", "senders"])
@pytest.mark.parametrize("number", [-1, 99])
def test_an_edge_to_what_is_no_atom_is_refused(end, number, crystal):
    graph = from_atoms(crystal, Cutoffs(4.0)).to_jraph()
    if end == "receivers" and number > 0:  # a padding edge, which is left out: its reverse is found alone
        number = -2
    index = np.array(getattr(graph, end))
    index[3] = number
    with pytest.raises(ValueError, match=f"{end[:-1]} {number}"):
        CrystalGraph.from_jraph(graph._replace(**{end: index}))
