"""Laws of physics and of the library that hold for every model, each written once."""

from functools import partial

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import make_supercell
from conftest import QUICK, small_potential

from jaxmlip import hessian, hessian_columns
from jaxmlip.crystals import batching
from jaxmlip.derivatives.gradients import gradient, hvp
from jaxmlip.derivatives.response import Response
from jaxmlip.models.matgl_chgnet import MatglCHGNetConfig

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
STEP, STRAIN = 1e-4, 1e-5  # Å; of differences
APART = 1e-3  # Å; of neighbours that cross a cutoff
PAIRS = [(a, b) for a in range(3) for b in range(a, 3)]
OPEN = {"slab": (True, False, True), "wire": (False, False, True), "molecule": (False, False, False)}
ORDER = np.array([3, 0, 4, 1, 2])


def rotation() -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def assert_same(a, b, **tolerance):
    for name in ("energy", "forces", "stress", "site_energies", "magmoms"):
        if name in a or name in b:
            np.testing.assert_allclose(a[name], b[name], err_msg=name, **(tolerance or TIGHT))


def moved_by(crystal: Atoms, step: float) -> list[Atoms]:
    """`crystal` with each coordinate in turn a step forward and a step back."""
    moved = []
    for k in range(3 * len(crystal)):
        for sign in (1, -1):
            atoms = crystal.copy()
            atoms.positions.reshape(-1)[k] += sign * step
            moved.append(atoms)
    return moved


def strained_by(crystal: Atoms, step: float) -> list[Atoms]:
    """`crystal` under each of the strains of PAIRS in turn, a step forward and a step back."""
    moved = []
    for a, b in PAIRS:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            atoms = crystal.copy()
            atoms.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            moved.append(atoms)
    return moved


def with_cell(crystal: Atoms, cell: np.ndarray, scale_atoms: bool) -> Atoms:
    other = crystal.copy()
    other.set_cell(cell, scale_atoms=scale_atoms)
    return other


@pytest.fixture(scope="module")
def variants(crystal) -> dict[str, list[Atoms]]:
    """What the laws compare with `crystal`."""
    shifted = crystal.copy()
    shifted.positions += [1.3, -2.1, 9.7]
    wrapped = shifted.copy()
    wrapped.wrap()
    cell = crystal.cell.array
    return {
        "itself": [crystal],
        "turned": [with_cell(crystal, cell @ rotation().T, True)],
        "mirrored": [with_cell(crystal, cell * [1, 1, -1], True)],
        "shifted": [shifted, wrapped],
        "by other vectors": [with_cell(crystal, np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]]) @ cell, False)],
        "in another order": [crystal[ORDER]],
        "supercell": [make_supercell(crystal, [[2, 0, 0], [0, 1, 0], [1, 0, 1]], order="cell-major")],
        "moved": moved_by(crystal, STEP),
        "strained": strained_by(crystal, STRAIN),
        **{name: boxed_and_open(crystal, pbc) for name, pbc in OPEN.items()},
        "atoms alone": [Atoms(s, cell=[10, 10, 10], pbc=True) for s in ("Mg", "O")],
        "atoms apart": [Atoms("MgO", [[0, 0, 0], [0, 0, 4 - 1e-10]], cell=[20, 20, 20], pbc=True)],
    }


def boxed_and_open(crystal: Atoms, pbc: tuple[bool, bool, bool]) -> list[Atoms]:
    """`crystal` that repeats along some vectors: in a box too wide for images to touch, open, without box."""
    vectors = np.where(np.array(pbc)[:, None], crystal.cell.array, [[17, 0, 1], [0, 18, 0], [1, 2, 19]])
    boxed = with_cell(crystal, vectors, False)
    open_ = boxed.copy()
    open_.pbc = pbc
    flat = with_cell(open_, vectors * open_.pbc[:, None], False)
    flat.positions += (~open_.pbc * [40, -70, 100]) @ vectors  # no box that it could have left
    return [boxed, open_, flat]


def trimer(d: float) -> Atoms:
    """Al is d away from Mg, which is bonded to O."""
    return Atoms("MgOAl", [[0, 0, 0], [2, 0, 0], [0, d, 0]], cell=[14, 14, 14], pbc=True)


def crossing(cutoff: float) -> list[Atoms]:
    """A bond or an angle appears there."""
    return [trimer(d) for d in cutoff + APART * np.arange(-4, 5)]


@pytest.fixture(scope="module")
def predicted(potential, variants):
    """Predictions for `variants`, all at once: one program instead of one for each size of crystal."""
    crossings = {f"crossing {cutoff}": crossing(cutoff) for cutoff in potential.cutoffs[:2] if cutoff}
    asked = variants | crossings
    found = iter(potential.predict([atoms for each in asked.values() for atoms in each]))
    return {name: [next(found) for _ in each] for name, each in asked.items()}


def test_energy_is_unchanged_and_forces_and_stress_turn_with_the_crystal(predicted):
    (p,), (q,), turn = predicted["itself"], predicted["turned"], rotation()
    assert_same(q, {**p, "forces": p["forces"] @ turn.T, "stress": turn @ p["stress"] @ turn.T})


def test_a_reflection_changes_no_energy(predicted):
    (p,), (q,) = predicted["itself"], predicted["mirrored"]
    np.testing.assert_allclose(q["energy"], p["energy"], **TIGHT)


def test_nothing_changes_when_the_crystal_is_shifted_across_its_cell(predicted):
    (p,), (shifted, wrapped) = predicted["itself"], predicted["shifted"]
    assert_same(shifted, p)
    assert_same(wrapped, p)


def test_another_choice_of_lattice_vectors_changes_nothing(predicted):
    assert_same(*predicted["by other vectors"], *predicted["itself"])


@pytest.mark.parametrize("name", OPEN)
def test_slabs_wires_and_molecules_are_crystals_whose_images_are_out_of_reach(predicted, variants, name):
    boxed, *others = predicted[name]
    stress = boxed.pop("stress")
    for p, atoms in zip(others, variants[name][1:], strict=True):
        found = p.pop("stress", None)
        assert_same(p, boxed)
        # As far as it lies along the vectors that repeat, and only where the box has a height to refer it to.
        rows = atoms.cell.array[atoms.pbc]
        along = np.linalg.pinv(rows) @ rows if len(rows) else np.zeros((3, 3))
        assert (found is None) == (name == "molecule" or atoms.cell.rank < 3)
        if found is not None:
            np.testing.assert_allclose(found, along @ stress @ along, **TIGHT)
            assert np.abs(found).max() > 1e-8


def test_atoms_can_be_listed_in_any_order(predicted):
    (p,), (q,) = predicted["itself"], predicted["in another order"]
    per_atom = ("forces", "site_energies", "magmoms")
    assert_same(q, {k: x[ORDER] if k in per_atom else x for k, x in p.items()})


def test_a_supercell_has_the_energy_of_its_cells_and_their_forces(predicted):
    (p,), (q,) = predicted["itself"], predicted["supercell"]
    per_atom = {"forces", "site_energies", "magmoms"} & p.keys()
    twice = {k: np.concatenate([p[k], p[k]]) for k in per_atom}
    assert_same(q, {**twice, "energy": 2 * p["energy"], "stress": p["stress"]})


def test_a_batch_gives_what_each_crystal_gives_alone(architecture, crystals):
    graphs = [architecture.graph(atoms) for atoms in crystals]
    room = batching.shape_for(graphs)
    for graph, one in zip(graphs, architecture.predict_graphs(graphs, room), strict=True):
        (alone,) = architecture.predict_graphs([graph], room)
        assert_same(one, alone)


def test_crystals_come_in_any_iterable_and_a_bad_one_is_named_by_its_number(any_potential, crystals):
    expected = [p["energy"] for p in any_potential.predict(crystals)]
    array = np.empty(len(crystals), object)
    array[:] = crystals
    for given in (iter(crystals), (atoms for atoms in crystals), array, tuple(crystals)):
        np.testing.assert_allclose([p["energy"] for p in any_potential.predict(given)], expected)
    bad = crystals[0].copy()
    bad.numbers[0] = 104
    with pytest.raises(ValueError, match=r"crystal 2: .*Rf"):
        any_potential.predict([*crystals[:2], bad])
    with pytest.raises(TypeError, match=r"crystal 1: .*str"):
        any_potential.predict([crystals[0], "NaCl.cif"])


def test_site_energies_add_up_to_the_energy(predicted):
    for p in (p for each in predicted.values() for p in each):
        np.testing.assert_allclose(p["site_energies"].sum(), p["energy"], **TIGHT)


@pytest.mark.slow
def test_padding_changes_nothing_up_to_second_derivatives(architecture, crystal):
    """What is padded widely has the energy and forces of a batch, and the Hessian of the crystal alone."""
    graph = architecture.graph(crystal)
    exact = batching.exact_shape([graph])
    packed = batching.pack([graph], batching.BatchShape(*(n + 13 for n in exact[:4]), crystals=3))
    v = np.random.default_rng(1).normal(size=(len(crystal), 3))
    padded = np.zeros_like(packed.positions)
    padded[: len(v)] = v

    def derivatives(packed, padded):
        slope, curvature = jax.jvp(gradient(architecture.energy, packed), (packed.positions,), (padded,))
        return architecture.energy(packed), slope, curvature

    with architecture.precision():
        e, slope, curvature = jax.jit(derivatives)(packed, padded)
    assert np.isfinite(slope).all()
    assert np.isfinite(curvature).all()
    np.testing.assert_array_equal(e[1:], 0)
    np.testing.assert_array_equal(slope[len(v) :], 0)
    np.testing.assert_array_equal(curvature[len(v) :], 0)
    p = architecture.predict(crystal)
    np.testing.assert_allclose(e[0], p["energy"], **TIGHT)
    np.testing.assert_allclose(slope[: len(v)], -p["forces"], **TIGHT)
    np.testing.assert_allclose(
        np.ravel(curvature[: len(v)]), hessian(architecture, crystal) @ v.ravel(), **TIGHT
    )


def test_a_potential_can_first_be_used_inside_a_function_that_is_compiled(crystal):
    fresh = small_potential(QUICK)
    packed = batching.pack([fresh.graph(crystal)])
    with fresh.precision():
        jax.jit(fresh.energy)(packed)
        assert np.isfinite(jax.jit(lambda graph: fresh.energy(graph))(packed)).all()


def test_forces_are_differences_of_energies(predicted):
    energies = np.array([p["energy"] for p in predicted["moved"]]).reshape(-1, 2)
    slope = (energies[:, 1] - energies[:, 0]) / (2 * STEP)
    (p,) = predicted["itself"]
    np.testing.assert_allclose(p["forces"].ravel(), slope, rtol=1e-5, atol=1e-6)


def test_stress_is_differences_of_energies_under_strain(predicted, crystal):
    energies = np.array([p["energy"] for p in predicted["strained"]]).reshape(-1, 2)
    stress = np.zeros((3, 3))
    for (a, b), (up, down) in zip(PAIRS, energies, strict=True):
        stress[a, b] = stress[b, a] = (up - down) / (2 * STRAIN) / crystal.get_volume()
    (p,) = predicted["itself"]
    np.testing.assert_allclose(p["stress"], stress, rtol=1e-5, atol=1e-8)


def test_the_hessian_is_differences_of_forces_and_symmetric_with_three_zero_modes(
    potential, predicted, crystal
):
    h = hessian(potential, crystal)
    forces = np.array([p["forces"].ravel() for p in predicted["moved"]]).reshape(-1, 2, len(h))
    scale = np.abs(h).max()
    np.testing.assert_allclose(h, (forces[:, 1] - forces[:, 0]) / (2 * STEP), atol=1e-5 * scale)
    np.testing.assert_allclose(h, h.T, atol=1e-10 * scale)
    shifts = np.tile(np.eye(3), (len(crystal), 1))
    np.testing.assert_allclose(h @ shifts, 0, atol=1e-10 * scale)


def test_hessian_columns_are_hessian_vector_products(any_potential, crystal):
    columns = [4, 0, 13]
    rows = hessian_columns(any_potential, crystal, columns, block_size=2)
    packed = batching.pack([any_potential.graph(crystal)])
    product = jax.jit(partial(hvp, any_potential.energy, packed))
    for row, k in zip(rows, columns, strict=True):
        v = np.zeros_like(packed.positions)
        v.reshape(-1)[k] = 1
        with any_potential.precision():
            column = product(v)
        np.testing.assert_allclose(row, np.ravel(column)[: len(row)], **TIGHT)


def test_second_derivatives_bring_the_energy_and_its_slopes(any_potential, crystal):
    found, wanted = Response(any_potential, crystal), any_potential.predict(crystal)
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(found, name), wanted[name], err_msg=name, **TIGHT)


def third_derivatives(potential, crystal: Atoms, *directions: np.ndarray) -> list[np.ndarray]:
    """∂³E/∂w∂r∂r, (3N, 3N) in eV/Å³, along each of `directions`, in the programs that all laws share."""
    response = Response(potential, crystal, along=directions[0])
    columns = np.arange(3 * len(crystal))
    return [np.concatenate([rows for _, rows in response.turned(w).columns(columns)]) for w in directions]


def test_third_derivatives_are_differences_of_the_hessian_in_any_order_and_add_up_to_zero(network, crystal):
    w, v = np.random.default_rng(4).normal(size=(2, len(crystal), 3))
    along_w, along_v = third_derivatives(network, crystal, w, v)
    moved = [crystal.copy() for _ in range(2)]
    for atoms, sign in zip(moved, (1, -1), strict=True):
        atoms.positions += sign * STEP * w
    slope = np.subtract(*(hessian(network, atoms) for atoms in moved)) / (2 * STEP)
    scale = np.abs(slope).max()
    np.testing.assert_allclose(along_w, slope, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(along_w, along_w.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(along_w @ v.ravel(), along_v @ w.ravel(), rtol=0, atol=1e-9)
    shifts = np.tile(np.eye(3), (len(crystal), 1))
    np.testing.assert_allclose(along_w @ shifts, 0, atol=1e-8)


def test_the_energy_is_smooth_where_a_neighbour_crosses_a_cutoff(potential, predicted):
    """A bond appears at one cutoff, an angle at the other."""
    cutoffs = [cutoff for cutoff in potential.cutoffs[:2] if cutoff]
    skip_if_it_jumps_at_cutoffs(potential)
    if potential.name == QUICK:
        pytest.skip("its forces vanish where a neighbour leaves, and leave no scale to compare with")
    if not getattr(potential.model.config, "smooth", True):
        cutoffs = cutoffs[1:]  # see the next test
    for cutoff in cutoffs:
        counts = {(g.short, len(g.first)) for g in map(potential.graph, crossing(cutoff))}
        assert len(counts) == 2, "no neighbour crosses the cutoff"
        pull = np.array([p["forces"][2, 1] for p in predicted[f"crossing {cutoff}"]])
        slope = np.diff(pull) / APART
        # A kink of the force would show as a step of its slope that does not shrink with the spacing.
        assert np.abs(np.diff(slope)).max() < 0.05 * np.abs(pull).max() + 1e-4
        assert np.abs(np.diff(pull)).max() < 0.05 * np.abs(pull).max() + 1e-6


def test_spherical_bessel_functions_let_forces_jump_at_the_cutoff_but_not_energies():
    """The radial functions of Chen & Ong without the smooth recursion vanish there with a slope."""
    potential = small_potential("m3gnet-spherical")
    below, above = potential.predict([trimer(4.0 + d) for d in (-1e-9, 1e-9)])
    assert (
        len(potential.graph(trimer(4.0 - 1e-9)).first) == len(potential.graph(trimer(4.0 + 1e-9)).first) + 1
    )
    np.testing.assert_allclose(below["energy"], above["energy"], rtol=0, atol=1e-7)
    assert np.abs(below["forces"] - above["forces"]).max() > 1e-3


def skip_if_it_jumps_at_cutoffs(potential) -> None:
    if isinstance(potential.model.config, MatglCHGNetConfig):
        pytest.skip(
            "its radial functions vanish at the cutoff with a slope, and with learnt frequencies not at all"
        )


def test_an_isolated_atom_is_the_limit_of_pulling_atoms_apart(potential, predicted):
    skip_if_it_jumps_at_cutoffs(potential)
    single, (both,) = predicted["atoms alone"], predicted["atoms apart"]
    np.testing.assert_allclose(both["site_energies"], [p["energy"] for p in single], atol=1e-9)
    for p in single:
        np.testing.assert_array_equal(p["forces"], 0)
        np.testing.assert_array_equal(p["stress"], 0)


def test_an_isolated_atom_has_no_curvature(potential, crystal, variants):
    # With the shape and the number of columns of the Hessian above, whose programs serve here too.
    shape = batching.shape_for([potential.graph(crystal)])
    columns = np.arange(3 * len(crystal)) % 3
    rows = hessian_columns(potential, variants["atoms alone"][0], columns, shape=shape)
    np.testing.assert_array_equal(rows, 0)


def test_float32_is_close_to_float64(architecture, crystal):
    single = architecture.astype("float32").predict(crystal)
    assert single["forces"].dtype == np.float32
    assert_same(single, architecture.predict(crystal), rtol=1e-4, atol=2e-4)
