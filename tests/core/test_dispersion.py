"""D3(BJ) is Grimme's, obeys the laws of every model, and is refused where its parameters are of no use."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from conftest import QUICK, small_potential

# The laws themselves: pytest finds them here, and proves them with the potential of this file.
from test_laws import (  # noqa: F401
    predicted,
    test_a_reflection_changes_no_energy,
    test_a_supercell_has_the_energy_of_its_cells_and_their_forces,
    test_another_choice_of_lattice_vectors_changes_nothing,
    test_atoms_can_be_listed_in_any_order,
    test_energy_is_unchanged_and_forces_and_stress_turn_with_the_crystal,
    test_forces_are_differences_of_energies,
    test_nothing_changes_when_the_crystal_is_shifted_across_its_cell,
    test_site_energies_add_up_to_the_energy,
    test_slabs_wires_and_molecules_are_crystals_whose_images_are_out_of_reach,
    test_stress_is_differences_of_energies_under_strain,
    test_the_hessian_is_differences_of_forces_and_symmetric_with_three_zero_modes,
    test_third_derivatives_are_differences_of_the_hessian_in_any_order_and_add_up_to_zero,
    variants,
)

from jaxmlip import hessian, load, sparse_hessian
from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import Cutoffs, from_atoms, sum_over_crystals
from jaxmlip.data.dataset import DatasetError, MemorySplit
from jaxmlip.data.dataset import check as check_data
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.derivatives.gradients import with_derivatives
from jaxmlip.models import dispersion
from jaxmlip.models.dispersion import HIGHEST, TABLES, Damping, Dispersed, site_energies
from jaxmlip.phonons.bloch import dynamical_matrix
from jaxmlip.phonons.supercell import force_constants
from jaxmlip.potential import ManifestError, Potential
from jaxmlip.training.functionals import join
from jaxmlip.zoo.dispersion import DAMPING, split_name, with_dispersion
from jaxmlip.zoo.dispersion import tables as published_tables
from jaxmlip.zoo.download import FetchError

FAR = 6.0  # Å, of pairs in these tests
PBE = DAMPING["PBE"]


@pytest.fixture(scope="module", autouse=True)
def short_sums():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispersion, "PAIRS", FAR)
        yield


def made_tables() -> dict[str, np.ndarray]:
    """Tables as D3's are, of made-up references: two or three for each element."""
    rng = np.random.default_rng(5)
    c6 = rng.uniform(100, 300, TABLES["c6"])
    coordination = np.sort(rng.uniform(0, 6, TABLES["coordination"]), axis=1)
    coordination[:, 3:] = coordination[::2, 2] = -1
    c6[0] = c6[:, 0] = 0
    coordination[0] = -1
    return {
        "c6": (c6 + c6.transpose(1, 0, 3, 2)) / 2,
        "coordination": coordination,
        "radius": rng.uniform(1, 2, HIGHEST + 1),
        "moment": rng.uniform(2, 4, HIGHEST + 1),
    }


def dispersed() -> Potential:
    bare = small_potential(QUICK)
    return replace(
        bare, model=Dispersed(bare.model, PBE), params={**bare.params, "dispersion": made_tables()}
    )


@pytest.fixture(scope="module")
def potential() -> Potential:
    return dispersed()


@pytest.fixture(scope="module")
def network(potential) -> Potential:
    return potential


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    try:
        return published_tables()
    except FetchError as error:
        pytest.skip(f"D3's tables cannot be had: {error}")


def rattled(atoms: Atoms) -> Atoms:
    atoms.rattle(0.05, seed=1)
    return atoms


def layer() -> Atoms:
    atoms = graphene("C2", vacuum=8.0)
    atoms.pbc = (True, True, False)
    return atoms


# What s-dftd3 1.7.0, the authors' program, gives with cutoffs of 60 and 40 Bohr and without three-body terms:
# eV, the force on the first atom (eV/Å), and σ_xx and σ_yz (eV/Å³).
RECORDED = {
    "silicon": (
        rattled(bulk("Si")),
        "PBE",
        -0.63074874654,
        [0.02745692, -0.0168677293, 0.0192340145],
        [0.0143581527, 0.000746610819],
    ),
    "rock salt": (
        rattled(bulk("NaCl", "rocksalt", a=5.64)),
        "r2SCAN",
        -0.20390395575,
        [0.000198312263, -0.000108290131, 0.000130074099],
        [0.00466930726, 8.19849354e-07],
    ),
    "gold": (rattled(bulk("Au")), "PBEsol", -0.633329386448, [0, 0, 0], [0.0380431113, 0]),
    "graphene": (
        rattled(layer()),
        "PBE",
        -0.177759270583,
        [0.00748207042, -0.00425730774, -9.41934145e-05],
        None,
    ),
    "benzene": (
        rattled(molecule("C6H6")),
        "SCAN",
        -0.068581167078,
        [3.750335e-05, -0.000931351539, 3.91793415e-06],
        None,
    ),
    "cerium oxide": (
        rattled(bulk("CeO2", "fluorite", a=5.41)),
        "PBE",
        -0.749209356982,
        [0.000736786217, -0.000334886835, 0.000219596577],
        [0.0199627436, -3.0816048e-05],
    ),
}


@partial(jax.jit, static_argnames="damping")
def dispersion_of(damping, tables, graph):
    def energy(graph):
        return sum_over_crystals(site_energies(damping, tables, graph), graph), {}

    return with_derivatives(energy, graph)[:3]


def test_energies_forces_and_stress_are_those_of_the_authors_program(tables):
    names, far = list(RECORDED), 60 * dispersion.Bohr
    graphs = [from_atoms(RECORDED[name][0], Cutoffs(3.0, pairs=far)) for name in names]
    shape = batching.any_number(batching.close_shape_for(graphs))
    packed = batching.pack(graphs, shape)
    with jax.enable_x64(True):
        for functional in {RECORDED[name][1] for name in names}:
            e, forces, stress = dispersion_of(DAMPING[functional], tables, packed)
            first = np.cumsum([0, *(len(g.species) for g in graphs)])
            for k, name in enumerate(names):
                _, own, known, force, of_stress = RECORDED[name]
                if own != functional:
                    continue
                np.testing.assert_allclose(e[k], known, rtol=1e-7, err_msg=name)
                np.testing.assert_allclose(forces[first[k]], force, rtol=0, atol=2e-7, err_msg=name)
                if of_stress is not None:
                    found = stress[k][[0, 1], [0, 2]]
                    np.testing.assert_allclose(found, of_stress, rtol=0, atol=2e-8, err_msg=name)


@pytest.mark.slow
def test_it_adds_to_the_energies_of_the_network_whatever_their_scale(potential, crystals):
    bare = small_potential(QUICK)
    tables = potential.params["dispersion"]
    for scale in (1.0, 0.5):
        scaled, both = (replace(p, params={**p.params, "scale": np.array(scale)}) for p in (bare, potential))
        for network, total, atoms in zip(
            scaled.predict(crystals), both.predict(crystals), crystals, strict=True
        ):
            packed = batching.pack([potential.graph(atoms)])
            with potential.precision():
                added = np.asarray(site_energies(PBE, tables, packed))[: len(atoms)]
            assert len(atoms) == 1 or added.max() < -1e-4
            np.testing.assert_allclose(total["site_energies"] - network["site_energies"], added, atol=1e-12)
            np.testing.assert_allclose(total["energy"] - network["energy"], added.sum(), atol=1e-12)


def test_weights_of_references_hold_far_from_all_of_them(tables):
    """The most crowded atoms have more neighbours than any reference, and exponentials of 0 there."""
    crowded = bulk("Mg", "fcc", a=2.2)
    for dtype in (np.float32, np.float64):
        packed = batching.pack([from_atoms(crowded, Cutoffs(3.0, pairs=12.0))], dtype=dtype)
        with jax.enable_x64(dtype == np.float64):
            its = {name: x.astype(dtype) for name, x in tables.items()}
            (energy, *_) = np.asarray(site_energies(PBE, its, packed))
        assert -50 < energy < -0.1


@pytest.mark.slow
def test_a_dynamical_matrix_is_the_fourier_sum_of_a_supercells_hessian(potential, cell):
    constants = force_constants(potential, cell, (2, 1, 3))
    sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward").reshape(-1, 9, 9)
    found = dynamical_matrix(potential, cell, constants.q_points)
    np.testing.assert_allclose(found, sums, rtol=0, atol=1e-12)
    bare = dynamical_matrix(small_potential(QUICK), cell, constants.q_points)
    assert np.abs(found - bare).max() > 1e-4


def test_a_sparse_hessian_knows_that_pairs_reach_farther_than_bonds(potential, crystal):
    long = crystal.repeat((1, 1, 2))
    found = sparse_hessian(potential, long)
    np.testing.assert_allclose(found.toarray(), hessian(potential, long), rtol=0, atol=1e-10)


def test_a_single_atom_has_no_dispersion_and_is_computed(potential):
    alone = Atoms("He", cell=[20, 20, 20], pbc=True)
    bare = small_potential(QUICK).predict(alone)
    np.testing.assert_allclose(potential.predict(alone)["energy"], bare["energy"], rtol=1e-12)


def test_a_graph_without_pairs_is_refused(potential, crystal):
    graph = batching.pack([small_potential(QUICK).graph(crystal)])
    with potential.precision(), pytest.raises(ValueError, match="pairs"):
        potential.energy(graph)


def test_a_saved_potential_keeps_its_dispersion(potential, crystal, tmp_path):
    assert potential.parameter_count == small_potential(QUICK).parameter_count
    potential.save(tmp_path / "saved")
    again = Potential.from_folder(tmp_path / "saved", "float64")
    assert again.model == potential.model
    np.testing.assert_array_equal(again.predict(crystal)["forces"], potential.predict(crystal)["forces"])
    with pytest.raises(ValueError, match="d3bj"):
        with_dispersion(again, "d3bj-pbe")


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"functional": "PBE"},
        {"functional": "PBE", "a1": 0.4, "a2": "4", "s8": 0.8, "s6": 1},
        {"functional": "PBE", "a1": float("nan"), "a2": 4.4, "s8": 0.8, "s6": 1},
        {"functional": 3, "a1": 0.4, "a2": 4.4, "s8": 0.8, "s6": 1},
        {"functional": "PBE", "a1": 0.4, "a2": 1e9, "s8": 0.8, "s6": 1},
    ],
)
def test_a_file_with_other_parameters_of_dispersion_is_refused(potential, tmp_path, wrong):
    potential.save(tmp_path / "saved")
    path = tmp_path / "saved/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dispersion": wrong}))
    with pytest.raises(ManifestError, match="dispersion"):
        Potential.from_folder(tmp_path / "saved")


def fitted_to(functional: str) -> Potential:
    bare = small_potential(QUICK)
    return replace(bare, manifest={**bare.manifest, "functional": functional})


@pytest.mark.parametrize(
    ("functional", "method", "taken"),
    [
        ("PBE", "d3bj", "PBE"),
        ("PBE and PBE+U, mixed as in the Materials Project", "d3bj", "PBE"),
        ("R2SCAN", "d3bj", "r2SCAN"),
        ("", "d3bj-r2scan", "r2SCAN"),
        ("PBE", "D3BJ-pbe", "PBE"),
    ],
)
def test_parameters_are_those_of_the_functional(tables, functional, method, taken):
    found = with_dispersion(fitted_to(functional), method)
    assert found.model.damping == DAMPING[taken]
    assert found.name == f"{QUICK}+{method}"
    assert max(found.elements) == HIGHEST


@pytest.mark.parametrize(
    ("functional", "method", "said"),
    [
        ("ωB97M-D3(BJ)", "d3bj", "ωB97M-D3"),
        ("LDA", "d3bj", "LDA.*PBE, PBEsol"),
        ("", "d3bj", "d3bj-pbe"),
        ("PBE", "d3bj-r2scan", "fitted to PBE"),
        ("PBE", "d4", "'d4'.*'d3bj'"),
        ("", "d3bj-b97", "b97"),
    ],
)
def test_dispersion_of_another_functional_is_refused(functional, method, said):
    with pytest.raises(ValueError, match=said):
        with_dispersion(fitted_to(functional), method)


def test_energy_functions_and_joined_potentials_are_refused(potential):
    of_function = Potential.from_energy(lambda graph: 0.0, 3.0, ["Mg"])
    of_function = replace(of_function, manifest={"functional": "PBE"})
    with pytest.raises(ValueError, match="energy function"):
        with_dispersion(of_function, "d3bj")
    with pytest.raises(ValueError, match="PBE, r2SCAN"):
        with_dispersion(join(small_potential(QUICK), ["PBE", "r2SCAN"]), "d3bj-pbe")
    with pytest.raises(ValueError, match="dispersion"):
        join(potential, ["PBE", "r2SCAN"])


def test_a_name_can_end_in_dispersion():
    assert split_name("chgnet-0.3.0+d3bj") == ("chgnet-0.3.0", "d3bj")
    assert split_name("runs/a+b/model+d3bj-r2scan") == ("runs/a+b/model", "d3bj-r2scan")
    assert split_name("runs/a+b") == ("runs/a+b", None)
    with pytest.raises(ValueError, match=r"'d3bj-pbe'.*'d3bj'"):
        load("chgnet-0.3.0+d3bj", dispersion="d3bj-pbe")


def test_a_folder_of_any_name_is_loaded_with_dispersion(tables, crystal, tmp_path):
    folder = tmp_path / "a+d3bj"
    fitted_to("PBE").save(folder)
    bare, both = load(str(folder), "float64"), load(f"{folder}+d3bj", "float64")
    assert (bare.cutoffs.pairs, both.cutoffs.pairs) == (0.0, FAR)
    assert both.predict(crystal)["energy"] < bare.predict(crystal)["energy"] - 0.1


def test_training_on_labels_without_dispersion_is_refused(potential, crystal):
    labelled = [LabelledCrystal(crystal, Labels(energy=0.0))]
    split = MemorySplit.from_crystals(labelled, small_potential(QUICK).cutoffs)
    with pytest.raises(DatasetError, match="dispersion"):
        check_data(split, potential)


def test_models_with_other_parameters_of_dispersion_share_no_programs(potential):
    network = small_potential(QUICK).model
    assert Dispersed(network, PBE) == potential.model
    assert Dispersed(network, Damping("PBE", 0.4, 4.4, 0.8)) != potential.model
    assert Dispersed(network, PBE).identity({}) != Dispersed(network, DAMPING["SCAN"]).identity({})
