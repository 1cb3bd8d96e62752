"""phonopy finds in our force constants what we do, and we in its files what it does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import QUICK, small_potential
from phonopy_run import write_run

phonopy = pytest.importorskip("phonopy", reason="phonopy, the extra of that name, is not installed")

from jaxmlip.phonons.commensurate import (  # noqa: E402
    fourier,
    frequencies,
    interpolated_dynamical_matrices,
    mesh_frequencies,
)
from jaxmlip.phonons.lattice import mesh_force_constants  # noqa: E402
from jaxmlip.phonons.nac import NAC, long_range  # noqa: E402
from jaxmlip.phonons.phonopy_files import (  # noqa: E402
    from_phonopy,
    read_born,
    read_phonopy,
    to_phonopy,
    write_phonopy,
)
from jaxmlip.phonons.supercell import ForceConstants, with_sum_rule  # noqa: E402
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U  # noqa: E402

SUPERCELLS = {"(3, 2, 1)": ((3, 2, 1), (0, 0, 0)), "a matrix": ((1, 2, 3), (0, 0, 1))}


def made_up(repeats, twist) -> ForceConstants:
    """Random force constants of three atoms in a triclinic cell, two of them outside of it."""
    cell = [[3.0, 0.2, 0.1], [-0.4, 3.3, 0.3], [0.5, 0.1, 3.6]]
    atoms = Atoms(
        "INaI", cell=cell, pbc=True, scaled_positions=[[0, 0, 0], [0.4, 1.45, 0.6], [-0.3, 0.2, 0.8]]
    )
    phi = np.random.default_rng(1).normal(size=(*repeats, 3, 3, 3, 3))
    return with_sum_rule(ForceConstants(atoms, phi, twist))  # symmetric, as physics has them


@pytest.fixture(params=SUPERCELLS)
def constants(request) -> ForceConstants:
    return made_up(*SUPERCELLS[request.param])


def squares(phonon, q) -> np.ndarray:
    """Signed squares (THz²) of phonopy's frequencies, in our units: it takes other values of constants."""
    phonon.run_qpoints(q)
    thz = phonon.qpoints.frequencies * THZ_PER_ROOT_EV_PER_A2_U / phonon.unit_conversion_factor
    return np.sign(thz) * thz**2


def test_phonopy_finds_our_frequencies_at_the_commensurate_wave_vectors(constants):
    thz = frequencies(constants)
    found = squares(to_phonopy(constants), constants.q_points)
    np.testing.assert_allclose(found, np.sign(thz) * thz**2, atol=1e-8)


def test_phonopy_interpolates_as_we_do(constants):
    q = np.random.default_rng(2).uniform(-1, 1, (7, 3))
    D = interpolated_dynamical_matrices(constants, q)
    ours = np.linalg.eigvalsh(D) * THZ_PER_ROOT_EV_PER_A2_U**2
    np.testing.assert_allclose(squares(to_phonopy(constants), q), ours, atol=1e-8)


def test_masses_go_along(constants):
    heavy = constants.primitive.copy()
    heavy.set_masses([200.0, 30.0, 100.0])
    changed = ForceConstants(heavy, constants.phi, constants.twist)
    thz = frequencies(changed)
    assert np.abs(thz - frequencies(constants)).max() > 1
    found = squares(to_phonopy(changed), changed.q_points)
    np.testing.assert_allclose(found, np.sign(thz) * thz**2, atol=1e-8)


def test_there_and_back_nothing_changes(constants):
    """But the cells that atoms are counted in: phonopy takes them into the first."""
    once = from_phonopy(to_phonopy(constants))
    thz, found = frequencies(constants), frequencies(once)
    np.testing.assert_allclose(np.sign(found) * found**2, np.sign(thz) * thz**2, atol=1e-8)
    twice = from_phonopy(to_phonopy(once))
    assert twice.supercell.tolist() == constants.supercell.tolist()
    np.testing.assert_array_equal(twice.primitive.numbers, constants.primitive.numbers)
    np.testing.assert_allclose(twice.primitive.positions, once.primitive.positions, atol=1e-12)
    np.testing.assert_array_equal(twice.phi, once.phi)


def test_full_force_constants_of_phonopy_are_read_too(constants):
    phonon = to_phonopy(constants)
    from phonopy.harmonic.force_constants import compact_fc_to_full_fc

    phonon.force_constants = compact_fc_to_full_fc(phonon.primitive, phonon.force_constants)
    np.testing.assert_array_equal(from_phonopy(phonon).phi, from_phonopy(to_phonopy(constants)).phi)


def test_the_command_of_phonopy_goes_on_from_what_is_written(constants, tmp_path):
    charges = np.array([np.eye(3), -2 * np.eye(3), np.eye(3)])
    write_phonopy(constants, tmp_path, NAC(charges, 3 * np.eye(3)))
    new = int(phonopy.__version__.split(".")[0]) >= 4  # which calls phonopy-load deprecated
    command = Path(sys.executable).with_name("phonopy" if new else "phonopy-load")
    if not command.is_file():
        pytest.skip(f"the command {command.name} is not beside this Python")
    q = constants.q_points[1]
    done = subprocess.run(
        [str(command), "phonopy_params.yaml", "--nonac", "--qpoints", " ".join(f"{x:.12f}" for x in q)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in done.stdout
    import yaml

    (point,) = yaml.safe_load((tmp_path / "qpoints.yaml").read_text())["phonon"]
    found = np.array([band["frequency"] for band in point["band"]])
    np.testing.assert_allclose(found, frequencies(constants)[1], rtol=1e-6)
    again = read_phonopy(tmp_path)
    np.testing.assert_allclose(again.constants.phi, from_phonopy(to_phonopy(constants)).phi, atol=1e-14)
    np.testing.assert_array_equal(again.nac.born, charges)
    np.testing.assert_array_equal(again.nac.dielectric, 3 * np.eye(3))


@pytest.fixture(scope="module")
def salt_run(tmp_path_factory) -> Path:
    """A run on the cubic cell, whose primitive cell is a quarter of it."""
    folder = tmp_path_factory.mktemp("phonopy") / "salt"
    write_run(folder, small_potential(QUICK), bulk("NaCl", "rocksalt", 5.0, cubic=True), (1, 1, 1), "F")
    (folder / "BORN").write_text("14.4\n2 0 0 0 2 0 0 0 2\n1 0 0 0 1 0 0 0 1\n-1 0 0 0 -1 0 0 0 -1\n")
    return folder


def test_of_a_phono3py_run_those_supercells_are_read_in_which_one_atom_is_displaced(salt_run, tmp_path):
    run = read_phonopy(salt_run)
    sets = run.phonon.dataset["first_atoms"]
    text = (salt_run / "phonopy_disp.yaml").read_text()
    lines = ["displacement_pairs:"]
    for k, moved in enumerate(sets, 1):
        lines += [
            f"- atom: {moved['number'] + 1}",
            f"  displacement: {list(map(float, moved['displacement']))}",
        ]
        lines += [f"  displacement_id: {k}"]
    folder = tmp_path / "phono3py"
    folder.mkdir()
    cells = text[: text.index("\ndisplacements:")] if "\ndisplacements:" in text else text
    (folder / "phono3py_disp.yaml").write_text(cells + "\n" + "\n".join(lines) + "\n")
    pairs = np.random.default_rng(0).normal(size=(3, 8, 3))  # of atoms displaced together; not read
    forces = np.concatenate([run.forces, pairs]).reshape(-1, 3)
    np.savetxt(folder / "FORCES_FC3", forces, header="File: 1")
    found = read_phonopy(folder)
    np.testing.assert_allclose(found.forces, run.forces, atol=1e-12)
    np.testing.assert_allclose(found.constants.phi, run.constants.phi, atol=1e-9)
    np.savetxt(folder / "FORCES_FC3", forces[:9])
    with pytest.raises(ValueError, match=r"FORCES_FC3 cannot be used: it has an array \(9, 3\), needed"):
        read_phonopy(folder)


def test_a_run_is_read_for_its_primitive_cell(salt_run):
    run = read_phonopy(salt_run)
    assert len(run.constants.primitive) == 2
    assert np.prod(run.constants.repeats) == 4
    assert len(run.supercell) == 8
    assert run.forces.shape == (2, 8, 3)
    moved = np.array([a.positions - run.supercell.positions for a in run.displaced])
    np.testing.assert_allclose(np.sort(np.linalg.norm(moved, axis=2), axis=1)[:, -2:], [[0, 0.01]] * 2)
    np.testing.assert_allclose(run.nac.born[1], -np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(run.nac.dielectric, 2 * np.eye(3))
    np.testing.assert_allclose(run.with_forces(run.forces).phi, run.constants.phi, atol=1e-14)
    np.testing.assert_allclose(run.with_forces(0.5 * run.forces).phi, run.constants.phi / 2, atol=1e-12)


def test_a_yaml_file_names_its_folder(salt_run, monkeypatch, tmp_path):
    (tmp_path / "FORCE_SETS").write_text("what lies where the process runs does not matter")
    (tmp_path / "BORN").write_text("nor does this")
    monkeypatch.chdir(tmp_path)
    by_file = read_phonopy(salt_run / "phonopy_disp.yaml")
    np.testing.assert_array_equal(by_file.constants.phi, read_phonopy(salt_run).constants.phi)


@pytest.mark.filterwarnings("ignore:Atoms of Na, Cl are not grouped")
def test_force_constants_and_a_poscar_make_a_run(salt_run, tmp_path):
    from phonopy.file_IO import write_FORCE_CONSTANTS
    from phonopy.interface.vasp import write_vasp

    run = read_phonopy(salt_run)
    write_vasp(tmp_path / "POSCAR", run.phonon.unitcell)
    write_FORCE_CONSTANTS(run.phonon.force_constants, tmp_path / "FORCE_CONSTANTS")
    found = read_phonopy(tmp_path)
    assert found.nac is None
    np.testing.assert_allclose(
        mesh_frequencies(found.constants, (3, 3, 3)), mesh_frequencies(run.constants, (3, 3, 3)), atol=1e-5
    )
    with pytest.raises(ValueError, match="no forces of displaced supercells"):
        _ = found.forces
    with pytest.raises(ValueError, match=r"needed .* 64 atoms, as the supercell of POSCAR has; the argument"):
        read_phonopy(tmp_path, supercell=(2, 2, 2))


@pytest.fixture
def copy(salt_run, tmp_path) -> Path:
    return Path(shutil.copytree(salt_run, tmp_path / "copy"))


def test_forces_of_another_supercell_are_refused(copy):
    (copy / "FORCE_SETS").write_text("12\n1\n\n1\n0.01 0 0\n" + "0 0 0\n" * 12)
    with pytest.raises(
        ValueError, match="has forces on 12 atoms, needed 8 atoms, as the supercell of phonopy_d"
    ):
        read_phonopy(copy)


def test_forces_of_all_atoms_in_supercells_of_another_size_are_refused(copy):
    (copy / "FORCE_SETS").write_text("0.01 0 0 0.1 0 0\n" * 12)
    with pytest.raises(ValueError, match="has forces on 12 atoms, needed a multiple of 8 atoms"):
        read_phonopy(copy)


@pytest.mark.parametrize("all_at_once", [False, True])
def test_forces_are_read_from_the_output_of_vasp_in_the_order_of_the_displacements(copy, all_at_once):
    run = read_phonopy(copy)
    displaced, forces, phi = run.displaced, run.forces, run.constants.phi
    (copy / "FORCE_SETS").unlink()
    if all_at_once:
        moves = np.array([atoms.positions - run.supercell.positions for atoms in displaced])
        run.phonon.dataset = {"displacements": moves}
        run.phonon.save(copy / "phonopy_disp.yaml", settings={"force_sets": False, "displacements": True})
    for k, (atoms, its) in enumerate(zip(displaced, forces, strict=True), 1):
        atoms.calc = SinglePointCalculator(atoms, forces=its)
        write_vasprun(copy / f"vasprun.xml-{k:03}", atoms)
    found = read_phonopy(copy)
    np.testing.assert_allclose(found.forces, forces, atol=1e-7)
    np.testing.assert_allclose(found.constants.phi, phi, atol=1e-4)
    (copy / "vasprun.xml-001").unlink()
    with pytest.raises(ValueError, match=r"there are 1 files vasprun\.xml\*, needed 2, one for each"):
        read_phonopy(copy)
    write_vasprun(copy / "vasprun.xml-001", displaced[0][:7])
    with pytest.raises(ValueError, match=r"does not have forces on 8 atoms, as the supercell of phonopy_d"):
        read_phonopy(copy)


def write_vasprun(file: Path, atoms: Atoms) -> None:
    """What phonopy reads of VASP's output, with any forces."""
    forces = atoms.calc.results["forces"] if atoms.calc else np.zeros((len(atoms), 3))

    def rows(name: str, values: np.ndarray) -> str:
        lines = "".join(f"<v>{' '.join(f'{x:.12f}' for x in row)}</v>" for row in values)
        return f'<varray name="{name}">{lines}</varray>'

    species = "".join(f"<rc><c>{s}</c><c>1</c></rc>" for s in atoms.get_chemical_symbols())
    cell = f'<crystal>{rows("basis", atoms.cell.array)}<i name="volume">{atoms.get_volume()}</i></crystal>'
    structure = f"<structure>{cell}{rows('positions', atoms.get_scaled_positions())}</structure>"
    energies = (f'<i name="{name}">0.0</i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
    energy = f"<energy>{''.join(energies)}</energy>"
    file.write_text(
        '<modeling><generator><i name="version" type="string">6.4.3</i></generator>\n'
        f'<atominfo><array name="atoms"><set>{species}</set></array></atominfo>'
        f"<calculation>{structure}{rows('forces', forces)}{energy}</calculation></modeling>"
    )


@pytest.mark.parametrize("cubic", [False, True])
def test_charges_of_a_born_file_serve_the_primitive_cell_and_the_cubic_one(salt_run, cubic):
    found = read_born(salt_run / "BORN", bulk("NaCl", "rocksalt", 5.0, cubic=cubic))
    np.testing.assert_allclose(found.born[:, 0, 0], np.tile([1, -1], 4 if cubic else 1), atol=1e-12)
    np.testing.assert_array_equal(found.dielectric, 2 * np.eye(3))
    with pytest.raises(ValueError, match=r"BORN cannot be used: .*primitive cell of 1 atoms"):
        read_born(salt_run / "BORN", bulk("Cu", "fcc", 3.6))
    with pytest.raises(FileNotFoundError, match="BORN-2 is not a file"):
        read_born(salt_run / "BORN-2", bulk("Cu", "fcc", 3.6))


def test_force_sets_that_break_off_are_refused(copy):
    text = (copy / "FORCE_SETS").read_text()
    (copy / "FORCE_SETS").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="FORCE_SETS cannot be used"):
        read_phonopy(copy)


def test_charges_of_another_cell_are_refused(copy):
    text = (copy / "BORN").read_text()
    (copy / "BORN").write_text(text + "1 0 0 0 1 0 0 0 1\n")
    with pytest.raises(ValueError, match=r"BORN cannot be used: Too many atoms.*primitive cell of 2 atoms"):
        read_phonopy(copy)
    (copy / "BORN").write_text("\n".join(text.splitlines()[:3]) + "\n")
    with pytest.raises(ValueError, match=r"BORN cannot be used: .*not enough.*primitive cell of 2 atoms"):
        read_phonopy(copy)


def test_what_is_missing_is_named(copy, tmp_path):
    (copy / "FORCE_SETS").unlink()
    with pytest.raises(FileNotFoundError, match="neither forces nor force constants; needed FORCE_SETS"):
        read_phonopy(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has none of phonopy_params\.yaml"):
        read_phonopy(tmp_path / "empty")


def test_a_run_in_other_units_is_refused(copy):
    cell = read_phonopy(copy).phonon.unitcell
    phonopy.Phonopy(cell, np.eye(3, dtype=int), primitive_matrix="P", calculator="qe").save(
        copy / "phonopy_disp.yaml"
    )
    with pytest.raises(ValueError, match="in the units of qe, needed eV and Å"):
        read_phonopy(copy)


def test_a_yaml_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "phonopy.yaml").write_text("hello: world\n")
    with pytest.raises(ValueError, match=r"phonopy\.yaml cannot be used"):
        read_phonopy(tmp_path)


def test_without_phonopy_the_error_says_how_to_get_it(constants, monkeypatch):
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmlip\[phonopy\]'"):
        to_phonopy(constants)


# Highest and mean frequency on phonopy's own mesh of 12 x 12 x 12 wave vectors, with NAC where BORN is there,
# as they were computed when the files were gathered.
PUBLISHED = {"MgO": (19.96, 11.41), "NaCl": (7.38, 4.06), "SiO2-HP": (33.86, 19.21), "MgB2": (24.25, 14.26)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_examples_of_phonopy_have_the_frequencies_known_of_them(name):
    data = os.environ.get("JAXMLIP_DATA")
    if not data:
        pytest.skip("JAXMLIP_DATA does not name the folder of the reference data")
    run = read_phonopy(Path(data) / "phonopy_examples_PBE" / name)
    phonon = to_phonopy(run.constants, run.nac)
    phonon.run_mesh([12, 12, 12])
    thz, weights = phonon.mesh.frequencies, phonon.mesh.weights
    mean = np.average(thz.mean(axis=1), weights=weights)
    assert (round(thz.max(), 2), round(mean, 2)) == PUBLISHED[name]
    # Without the correction, and Γ-centred, ours is the same mesh.
    plain = to_phonopy(run.constants)
    plain.run_mesh([12, 12, 12], is_gamma_center=True)
    scale = THZ_PER_ROOT_EV_PER_A2_U / plain.unit_conversion_factor
    ours = mesh_frequencies(run.constants, (12, 12, 12))
    assert ours.max() == pytest.approx(scale * plain.mesh.frequencies.max(), rel=1e-9)
    assert (ours.max() < thz.max() - 0.1) == (run.nac is not None)


def test_the_long_range_part_is_that_of_phonopy(any_potential):
    """To a few per cent of it: phonopy cuts the sum over reciprocal vectors elsewhere."""
    salt = bulk("NaCl", "rocksalt", 5.0)
    constants = mesh_force_constants(any_potential, salt, (3, 3, 3))
    nac = NAC(np.array([1.1 * np.eye(3), -1.1 * np.eye(3)]), 2.4 * np.eye(3), (3, 3, 3))
    q = np.array([[0.02, 0.01, -0.03], [0.1, 0.05, 0.2], [0.5, 0.1, -0.2]])
    root = np.sqrt(np.repeat(salt.get_masses(), 3))

    def eigenvalues(D) -> np.ndarray:
        return np.linalg.eigvalsh(D / (root[:, None] * root)) * THZ_PER_ROOT_EV_PER_A2_U**2

    plain = fourier(constants, q).reshape(3, 6, 6)
    found = eigenvalues(plain + long_range(nac, salt, q))
    effect = np.abs(found - eigenvalues(plain)).max()
    assert effect > 1
    np.testing.assert_allclose(found, squares(to_phonopy(constants, nac), q), rtol=0, atol=0.03 * effect)
