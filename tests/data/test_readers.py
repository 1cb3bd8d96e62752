"""Readers: every format gives back the labels that it was written with, in one unit and sign."""

import gzip
import itertools
import json
import os
import re
import warnings
import zlib
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.data.labels import LabelError
from jaxmlip.data.readers import FORMATS, ReadError, read_labelled
from jaxmlip.data.readers.common import VASP_ORDER, VOIGT, symmetric

KILOBAR = 1 / 1602.176634  # eV/Å³
DATA = Path(os.environ.get("JAXMLIP_DATA", "shared/data"))


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there; JAXMLIP_DATA says where the data sets are")
    return DATA / name


def lennard_jones(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = LennardJones(sigma=1.6, epsilon=0.3, rc=6.0, smooth=True)
    return atoms


@pytest.fixture(scope="module")
def sheared() -> Atoms:
    """A low-symmetry crystal under stress: no two of six components are equal."""
    cell = [[3.4, 0.3, 0.1], [-0.2, 3.1, 0.4], [0.5, 0.1, 3.6]]
    rng = np.random.default_rng(5)
    return Atoms(
        "MgOSiH", cell=cell, pbc=True, scaled_positions=rng.random((4, 3)) * 0.1 + np.eye(4, 3) * 0.5
    )


@pytest.fixture(scope="module")
def truth(sheared):
    """Energy (eV), forces (eV/Å), stress (eV/Å³) by central differences of strained energies alone."""
    stress, h = np.zeros((3, 3)), 1e-5
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[i, j] += sign * h / 2
                strain[j, i] += sign * h / 2
                moved = sheared.copy()
                moved.set_cell(sheared.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                energies.append(lennard_jones(moved).get_potential_energy())
            stress[i, j] = (energies[0] - energies[1]) / (2 * h) / sheared.get_volume()
    labelled = lennard_jones(sheared)
    return labelled.get_potential_energy(), labelled.get_forces(), stress


def computed(atoms: Atoms) -> Atoms:
    """`atoms` with results as ASE's calculators have them."""
    full = lennard_jones(atoms)
    energy, forces, stress = full.get_potential_energy(), full.get_forces(), full.get_stress()
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress, magmoms=MOMENTS)
    return atoms


MOMENTS = [1.5, -0.5, 0.0, 2.0]


def document(atoms: Atoms) -> dict:
    from pymatgen.io.ase import AseAtomsAdaptor

    return AseAtomsAdaptor.get_structure(atoms.copy()).as_dict()


def as_vasp(atoms: Atoms) -> np.ndarray:
    """The stress as VASP prints it: kbar, positive in compression."""
    return -lennard_jones(atoms).get_stress(voigt=False) / KILOBAR


def write_extxyz(folder, atoms):
    ase.io.write(folder / "a.extxyz", computed(atoms))
    return folder / "a.extxyz"


def write_extxyz_gz(folder, atoms):
    with gzip.open(folder / "a.xyz.gz", "wb") as file:
        file.write(write_extxyz(folder, atoms).read_bytes())
    return folder / "a.xyz.gz"


def write_extxyz_ref(folder, atoms):
    full, named = lennard_jones(atoms), atoms.copy()
    named.info |= {"REF_energy": full.get_potential_energy(), "REF_stress": full.get_stress()}
    named.info["energy"] = 99.0
    named.arrays["REF_forces"] = full.get_forces()
    named.arrays["REF_magmoms"] = np.array(MOMENTS)
    ase.io.write(folder / "ref.xyz", named)
    return folder / "ref.xyz"


def write_extxyz_voigt(folder, atoms):
    full = computed(atoms)
    text = write_extxyz(folder, atoms).read_text()
    six = " ".join(str(x) for x in full.get_stress())
    (folder / "six.xyz").write_text(re.sub('stress="[^"]*"', f'stress="{six}"', text))
    return folder / "six.xyz"


def write_extxyz_virial(folder, atoms):
    full, named = computed(atoms), atoms.copy()
    named.info["virial"] = -atoms.get_volume() * full.get_stress(voigt=False)
    named.calc = SinglePointCalculator(
        named, energy=full.get_potential_energy(), forces=full.get_forces(), magmoms=MOMENTS
    )
    ase.io.write(folder / "virial.extxyz", named)
    return folder / "virial.extxyz"


def write_traj(folder, atoms):
    ase.io.write(folder / "a.traj", computed(atoms))
    return folder / "a.traj"


def write_db(folder, atoms):
    from ase.db import connect

    connect(folder / "a.db").write(computed(atoms), material="mp-1")
    return folder / "a.db"


def write_lmdb(folder, atoms):
    import lmdb
    from ase.io.jsonio import encode

    full = computed(atoms)
    row = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
    row |= full.calc.results | {"key_value_pairs": {}, "data": {}}
    write_rows(lmdb, folder / "a.aselmdb", [zlib.compress(encode(row).encode())])
    return folder / "a.aselmdb"


def write_rows(lmdb, path, rows):
    with lmdb.open(str(path), subdir=False, map_size=1 << 20) as database, database.begin(write=True) as txn:
        for number, row in enumerate(rows, 1):
            txn.put(str(number).encode(), row)
        txn.put(b"nextid", zlib.compress(str(len(rows) + 1).encode()))


def write_mptrj(folder, atoms):
    full = lennard_jones(atoms)
    frame = {
        "structure": document(atoms),
        "uncorrected_total_energy": full.get_potential_energy(),
        "corrected_total_energy": full.get_potential_energy() - 1,
        "energy_per_atom": (full.get_potential_energy() - 1) / len(atoms),
        "force": full.get_forces().tolist(),
        "stress": as_vasp(atoms).tolist(),
        "magmom": MOMENTS,
        "mp_id": "mp-1",
    }
    return dump(folder / "MPtrj.json", {"mp-1": {"mp-1-0-0": frame}})


def write_matpes(folder, atoms):
    full, structure = lennard_jones(atoms), document(atoms)
    for site, moment in zip(structure["sites"], MOMENTS, strict=True):
        site["properties"]["magmom"] = moment
    found = {
        "structure": structure,
        "energy": full.get_potential_energy(),
        "forces": full.get_forces().tolist(),
        "stress": as_vasp(atoms)[VOIGT].tolist(),
        "matpes_id": "matpes-1",
        "provenance": {"original_mp_id": "mp-1"},
    }
    path = folder / "MatPES.json.gz"
    path.write_bytes(gzip.compress(json.dumps([found]).encode()))
    return path


def write_wbm(folder, atoms):
    full = lennard_jones(atoms)
    frame = {
        "structure": document(atoms),
        "vasp_f": full.get_forces().tolist(),
        "vasp_e": full.get_potential_energy(),
        "vasp_s": as_vasp(atoms).tolist(),
    }
    return dump(folder / "wbm.json", {"wbm-1-2": {"0": frame}})


def write_mlearn(folder, atoms):
    full = lennard_jones(atoms)
    outputs = {
        "energy": full.get_potential_energy(),
        "forces": full.get_forces().tolist(),
        "virial_stress": as_vasp(atoms)[VASP_ORDER].tolist(),
    }
    found = {"structure": document(atoms), "group": "AIMD", "outputs": outputs, "num_atoms": len(atoms)}
    return dump(folder / "training.json", [found])


def write_vasprun(folder, atoms, electronic=(1,), nelm=60):
    """vasprun.xml with so many electronic steps in each ionic one; the free energy is 0.25 eV below
    E(sigma->0)."""
    full = lennard_jones(atoms)

    def rows(name, values):
        lines = "".join(f"<v>{' '.join(f'{x:.12f}' for x in row)}</v>" for row in values)
        return f'<varray name="{name}">{lines}</varray>'

    cell = f'<crystal>{rows("basis", atoms.cell.array)}<i name="volume">{atoms.get_volume()}</i></crystal>'
    structure = f"{cell}{rows('positions', atoms.get_scaled_positions())}"
    species = "".join(f"<rc><c>{s}</c><c>1</c></rc>" for s in atoms.get_chemical_symbols())
    energy = full.get_potential_energy()
    energies = f'<i name="e_fr_energy">{energy - 0.25:.12f}</i><i name="e_0_energy">{energy:.12f}</i>'
    steps = (
        f"<calculation>{count * f'<scstep><energy>{energies}</energy></scstep>'}"
        f"<structure>{structure}</structure>{rows('forces', full.get_forces())}"
        f"{rows('stress', as_vasp(atoms))}<energy>{energies}</energy></calculation>"
        for count in electronic
    )
    (folder / "vasprun.xml").write_text(
        f'<modeling><incar><i type="int" name="NELM"> {nelm}</i></incar>'
        f"<kpoints>{rows('kpointlist', np.zeros((1, 3)))}{rows('weights', [[1]])}</kpoints>"
        f'<atominfo><array name="atoms"><set>{species}</set></array></atominfo>'
        f'<structure name="initialpos">{structure}</structure>{"".join(steps)}</modeling>'
    )
    return folder / "vasprun.xml"


def write_outcar(folder, atoms, electronic=(1,), nelm=60, said=(), moments=()):
    """OUTCAR with so many electronic steps in each ionic one; those numbered in `said` are said to do.

    `moments` (steps, axes, atoms) are printed along x, or along x, y and z.
    """
    full = lennard_jones(atoms)
    rows = np.hstack([atoms.positions, full.get_forces()])
    table = "".join("".join(f"{x:14.8f}" for x in row) + "\n" for row in rows)
    cell = "".join("".join(f"{x:14.8f}" for x in [*row, *row]) + "\n" for row in atoms.cell.array)
    species = atoms.get_chemical_symbols()
    lines = [f" POTCAR:    PAW_PBE {symbol} 01Jan2000" for symbol in species] * 2
    lines += [f"   ions per type =  {'   1' * len(species)}", f"   NELM   = {nelm:6d};   NELMIN=  2"]
    for ionic, count in enumerate(electronic):
        for k in range(count):
            lines.append(f"--------- Iteration {ionic + 1:6d}({k + 1:4d})  ---------")
        if ionic in said:
            lines.append("------------------------ aborting loop because EDIFF is reached ---------")
        lines.append(f"      direct lattice vectors                 reciprocal lattice vectors\n{cell}")
        for axis, values in zip("xyz", moments[ionic] if len(moments) else (), strict=False):
            lines += [
                f" magnetization ({axis})",
                "",
                "# of ion       s       p       d       tot",
                " " + 40 * "-",
            ]
            lines += [f"{k + 1:5d} {0:8.3f} {0:7.3f} {m:7.3f} {m:7.3f}" for k, m in enumerate(values)]
            lines += [" " + 40 * "-", f"tot {sum(values):20.3f}", "", "", ""]
        lines.append(f" POSITION          TOTAL-FORCE (eV/Angst)\n ------------\n{table} ------------")
        energy = full.get_potential_energy()
        lines.append("  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  -------------------")
        lines.append(f"  free  energy   TOTEN  = {energy - 0.25:16.8f} eV\n")
        lines.append(f"  energy  without entropy= {energy:16.8f}  energy(sigma->0) = {energy:16.8f}")
    lines.append(" General timing and accounting informations for this job:")
    (folder / "OUTCAR").write_text("\n".join(lines) + "\n")
    return folder / "OUTCAR"


def write_chgnet(folder, atoms):
    """As chgnet's parse_vasp_dir(save_path=...) does."""
    frame = json.loads(write_mptrj(folder, atoms).read_text())["mp-1"]["mp-1-0-0"]
    names = ("structure", "uncorrected_total_energy", "energy_per_atom", "force", "magmom", "stress")
    return dump(folder / "parsed.json", {name: [frame[name]] for name in names})


def dump(path, found):
    path.write_text(json.dumps(found))
    return path


WRITERS = {
    "extxyz": write_extxyz,
    "extxyz.gz": write_extxyz_gz,
    "extxyz with REF_ names": write_extxyz_ref,
    "extxyz with six numbers": write_extxyz_voigt,
    "extxyz with a virial": write_extxyz_virial,
    "traj": write_traj,
    "db": write_db,
    "aselmdb": write_lmdb,
    "mptrj": write_mptrj,
    "matpes": write_matpes,
    "wbm": write_wbm,
    "chgnet": write_chgnet,
    "mlearn": write_mlearn,
    "vasprun": write_vasprun,
}


@pytest.mark.filterwarnings("ignore:(?s).*did not read energy")
@pytest.mark.parametrize("format", WRITERS)
def test_a_stress_read_from_any_format_is_the_slope_of_the_energy(format, sheared, truth, tmp_path):
    energy, forces, stress = truth
    path = WRITERS[format](tmp_path, sheared)
    (found,) = read_labelled(path)
    assert list(found.atoms.symbols) == list(sheared.symbols)
    np.testing.assert_allclose(found.atoms.cell.array, sheared.cell.array, atol=1e-8)
    np.testing.assert_allclose(found.labels.energy, energy, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.labels.forces, forces, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.labels.stress, stress, rtol=0, atol=1e-7)
    assert len(set(np.abs(found.labels.stress[VOIGT]).round(4))) == 6  # no order of them passes by chance
    if found.labels.magmoms is not None:
        np.testing.assert_allclose(found.labels.magmoms, np.abs(MOMENTS))


def test_materials_are_those_that_the_file_names(sheared, tmp_path):
    for format, material in {
        "mptrj": "mp-1",
        "matpes": "mp-1",
        "wbm": "wbm-1-2",
        "db": "mp-1",
        "extxyz": "HMgOSi",
    }.items():
        (found,) = read_labelled(WRITERS[format](tmp_path, sheared))
        assert found.material == material, format


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6), st.sampled_from([VOIGT, VASP_ORDER]))
def test_six_components_keep_their_places(six, order):
    full = symmetric(six, order)
    assert full[order].tolist() == six
    np.testing.assert_array_equal(full, full.T)
    np.testing.assert_array_equal(symmetric(full.ravel()), full)


def test_frames_without_a_level_of_materials_are_read(sheared, truth, tmp_path):
    nested = json.loads(write_mptrj(tmp_path, sheared).read_text())
    (found,) = read_labelled(dump(tmp_path / "flat.json", nested["mp-1"]))
    assert found.material == "mp-1"
    np.testing.assert_allclose(found.labels.stress, truth[2], atol=1e-7)


@pytest.mark.filterwarnings("ignore:(?s).*1 of 1 frames")
def test_an_energy_per_atom_is_of_the_whole_crystal(sheared, truth, tmp_path):
    path = write_mptrj(tmp_path, sheared)
    (found,) = read_labelled(path, energy_key="energy_per_atom")
    np.testing.assert_allclose(found.labels.energy, truth[0] - 1)
    (found,) = read_labelled(path, energy_key="not there")
    assert found.labels.known == ("forces", "stress", "magmoms")


@pytest.mark.filterwarnings("ignore:(?s).*without magnet")
def test_a_folder_a_pattern_and_a_list_give_the_same_crystals(sheared, tmp_path):
    (tmp_path / "deep").mkdir()
    for write in (write_extxyz, write_mptrj, write_vasprun):
        write(tmp_path / "deep", sheared)
    (tmp_path / "deep" / "notes.txt").write_text("nothing")
    (tmp_path / "deep" / "OUTCAR").write_text("the same run as vasprun.xml")
    names = sorted(crystal.name for crystal in read_labelled(tmp_path))
    assert len(names) == 3
    files = [tmp_path / "deep" / name for name in ("MPtrj.json", "a.extxyz", "vasprun.xml")]
    assert sorted(crystal.name for crystal in read_labelled(files)) == names
    assert sorted(c.name for c in read_labelled(f"{tmp_path}/**/[aMv]*.*")) == names


def test_rows_that_ase_db_backends_writes_are_read(sheared, truth, tmp_path):
    pytest.importorskip("ase_db_backends", reason="the package ase-db-backends is not installed")
    from ase.db import connect

    with connect(tmp_path / "their.aselmdb", type="aselmdb") as database:
        for k in range(12):
            database.write(computed(sheared), material=f"mp-{k}")
    found = list(read_labelled(tmp_path / "their.aselmdb"))
    assert [crystal.material for crystal in found] == [f"mp-{k}" for k in range(12)]
    np.testing.assert_allclose(found[-1].labels.stress, truth[2], atol=1e-7)


def test_every_and_limit_and_properties_are_kept_to(sheared, tmp_path):
    frames = [computed(sheared) for _ in range(7)]
    for k, frame in enumerate(frames):
        frame.info["mine"] = f"mat-{k}"
    ase.io.write(tmp_path / "a.extxyz", frames)
    options = {"material_key": "mine", "properties": ["forces"], "weight": 0.5}
    found = list(read_labelled(tmp_path / "a.extxyz", every=2, limit=3, **options))
    assert [crystal.material for crystal in found] == ["mat-0", "mat-2", "mat-4"]
    assert {crystal.labels.known for crystal in found} == {("forces",)}
    assert {crystal.labels.weight for crystal in found} == {0.5}


def test_a_label_that_is_not_a_number_is_named_with_file_and_frame(sheared, tmp_path):
    frames = [computed(sheared) for _ in range(4)]
    frames[2].calc.results["forces"][1, 1] = np.nan
    ase.io.write(tmp_path / "bad.extxyz", frames)
    found = read_labelled(tmp_path / "bad.extxyz")
    assert next(found) is not None
    assert next(found) is not None
    with pytest.raises(LabelError, match=r"bad\.extxyz frame 2: found forces"):
        next(found)
    assert next(found).name.endswith("frame 3")


@pytest.mark.parametrize("format", sorted(WRITERS))
@settings(max_examples=8, deadline=None)
@given(part=st.floats(0.05, 0.98))
def test_a_truncated_file_is_named(format, sheared, tmp_path_factory, part):
    folder = tmp_path_factory.mktemp("cut")
    path = WRITERS[format](folder, sheared)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ReadError, match=path.name.replace(".", r"\.")):
        list(read_labelled(path))


def test_frames_before_the_break_are_read_and_counted(sheared, tmp_path):
    path = tmp_path / "a.extxyz"
    ase.io.write(path, [computed(sheared)] * 4)
    path.write_bytes(path.read_bytes()[:-150])
    found = read_labelled(path)
    assert len([next(found) for _ in range(3)]) == 3
    with pytest.raises(ReadError, match=r"a\.extxyz cannot be read as extended XYZ .* beyond 3 crystals"):
        next(found)


def test_a_pickle_in_a_database_is_refused(tmp_path):
    import pickle

    import lmdb

    write_rows(lmdb, tmp_path / "old.lmdb", [pickle.dumps({"numbers": [1]}, protocol=4)])
    with pytest.raises(ReadError, match="pickle, which can run code"):
        list(read_labelled(tmp_path / "old.lmdb"))
    (tmp_path / "old.traj").write_bytes(pickle.dumps("PickleTrajectory"))
    with pytest.raises(ReadError, match=r"no known format|pickle"):
        list(read_labelled(tmp_path / "old.traj"))


def test_an_unknown_file_is_answered_with_what_is_known(tmp_path):
    (tmp_path / "a.csv").write_text("energy,forces\n1,2\n")
    for path in (tmp_path / "a.csv", tmp_path):
        with pytest.raises(ReadError, match="Known are") as error:
            read_labelled(path)
        assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_labelled(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="needed one of extxyz"):
        read_labelled(tmp_path / "a.csv", "csv")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.xyz", "1\nLattice='4 0 0 0 4 0 0 0 4' Properties=species:S:1:pos:R:3\nQq 0 0 0\n", "'Qq'"),
        ("a.xyz", "1\nLattice='4 0 0 0 4 0 0 0 4' Properties=species:S:1:pos:R:3\nX 0 0 0\n", "no element"),
        ("a.xyz", "-3\n", "'-3', needed the number of atoms"),
        ("a.xyz", "99999999999\nfoo\n", "ends after 0 of them"),
        ("a.xyz", "", "holds no crystal"),
        ("a.json", '["vasp_f", 1]', "document 0 is of type str, needed an object"),
        ("a.json", '{"vasp_f": 1}', "needed an object"),
        ("a.json", '[{"matpes_id": "a", "energy": NaN}]', "invalid char"),
        ("vasprun.xml", "<modeling></modeling>", "holds no crystal"),
        ("OUTCAR", "nothing", "OUTCAR cannot be read"),
    ],
)
def test_a_file_that_is_wrong_is_answered_with_what_is_wrong(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ReadError, match=re.escape(said)):
        list(read_labelled(tmp_path / name))


def test_json_is_read_as_a_stream(sheared, tmp_path):
    frame = json.loads(write_mptrj(tmp_path, sheared).read_text())["mp-1"]
    with open(tmp_path / "big.json", "w") as file:
        file.write('{"mp-1": ' + json.dumps(frame))
        for k in range(2, 4000):
            file.write(f', "mp-{k}": ' + json.dumps(frame))
        file.write(', "mp-4000": broken')
    import tracemalloc

    tracemalloc.start()
    found = read_labelled(tmp_path / "big.json")
    assert len([next(found) for _ in range(50)]) == 50
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6 < (tmp_path / "big.json").stat().st_size


def test_force_constants_are_columns_of_the_hessian(tmp_path):
    """Compact ones and full ones of a crystal with bonds of three stiffnesses, by phonopy's own files."""
    pytest.importorskip("phonopy")
    from ase.build import bulk

    from jaxmlip.phonons.phonopy_files import _phonon, as_phonopy

    phonon = _phonon(as_phonopy(bulk("NaCl", "rocksalt", 5.6)), 2 * np.eye(3, dtype=int), "P")
    phonon.generate_displacements(distance=0.01)
    forces = []
    for cell in phonon.supercells_with_displacements:
        atoms = Atoms(cell.numbers, cell.positions, cell=cell.cell, pbc=True)
        atoms.calc = LennardJones(sigma=2.5, epsilon=0.1, rc=8.0)
        forces.append(atoms.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    full = phonon.force_constants
    from phonopy.file_IO import write_FORCE_CONSTANTS, write_FORCE_SETS

    for name, written in (("full", full), ("compact", full[phonon.primitive.p2s_map])):
        folder = tmp_path / name
        folder.mkdir()
        phonon.save(folder / "phonopy.yaml", settings={"force_sets": False, "displacements": False})
        write_FORCE_CONSTANTS(written, folder / "FORCE_CONSTANTS", p2s_map=phonon.primitive.p2s_map)
        (found,) = read_labelled(folder)
        assert found.material == name
        assert len(found.labels.columns) == 3 * len(written)
        for column, row in zip(found.labels.columns, found.labels.hessian, strict=True):
            np.testing.assert_allclose(row, full[column // 3, :, column % 3], atol=1e-9)
    (tmp_path / "sets").mkdir()
    phonon.save(tmp_path / "sets" / "phonopy_disp.yaml", settings={"force_sets": False})
    write_FORCE_SETS(phonon.dataset, tmp_path / "sets" / "FORCE_SETS")
    *displaced, rest = read_labelled(tmp_path / "sets")
    assert len(displaced) == len(forces)
    for crystal, force in zip(displaced, forces, strict=True):
        np.testing.assert_allclose(crystal.labels.forces, force, atol=1e-8)
        moved = (crystal.atoms.positions - rest.atoms.positions).ravel()
        (atom,) = np.nonzero(np.abs(moved.reshape(-1, 3)).max(1) > 1e-4)[0]
        rows = [np.flatnonzero(rest.labels.columns == 3 * atom + axis)[0] for axis in range(3)]
        linear = -np.einsum("a,ajx->jx", moved.reshape(-1, 3)[atom], rest.labels.hessian[rows])
        np.testing.assert_allclose(linear, force, atol=0.05 * np.abs(force).max())


@pytest.mark.parametrize("write", [write_vasprun, write_outcar])
def test_ionic_steps_whose_electrons_did_not_converge_are_left_out_and_counted(sheared, tmp_path, write):
    path = write(tmp_path, sheared, electronic=(3, 5, 2, 5, 7), nelm=5)  # 7: as of linear response
    with pytest.warns(UserWarning, match=f"{path.name}: left out 2 of 5 ionic steps .* within NELM=5 steps"):
        found = list(read_labelled(path))
    assert [c.name.rpartition(" ")[2] for c in found] == ["0", "2", "4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every = list(read_labelled(path, unconverged=True))
    assert len(every) == 5
    energy = lennard_jones(sheared).get_potential_energy()
    np.testing.assert_allclose([c.labels.energy for c in every], energy, atol=1e-7)
    write(tmp_path, sheared, electronic=(5,), nelm=5)
    with pytest.raises(ReadError, match=r"only 1 of 1 ionic steps .*unconverged=True"):
        list(read_labelled(path))


def test_a_last_electronic_step_that_vasp_says_was_enough_is_enough(sheared, tmp_path):
    path = write_outcar(tmp_path, sheared, electronic=(5, 5), nelm=5, said=(1,))
    with pytest.warns(UserWarning, match="left out 1 of 2"):
        assert [c.name.rpartition(" ")[2] for c in read_labelled(path)] == ["1"]


def test_vasprun_and_outcar_of_one_real_run_agree():
    folder = real("phonopy_examples_PBE/NaCl-VASPdfpt")
    (one,) = read_labelled(folder / "vasprun.xml", limit=1)
    (other,) = read_labelled(folder / "OUTCAR", limit=1)
    np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, atol=1e-4)
    np.testing.assert_allclose(one.labels.forces, other.labels.forces, atol=1e-5)
    np.testing.assert_allclose(one.labels.energy, other.labels.energy, atol=1e-5)
    np.testing.assert_allclose(one.labels.stress, other.labels.stress, atol=1e-5)


def test_real_matpes_documents_are_under_the_pressure_of_their_strain():
    """Elements of MatPES-PBE lie at Materials Project's volumes; a stress of the wrong sign or unit would
    move them off by the bulk modulus: iron in the file is expanded by 3 % and must be in tension."""
    found = list(read_labelled(real("matcalc_elemental_refs_PBE_r2SCAN/MatPES-PBE-Element-Refs.json.gz")))
    assert len(found) > 80
    iron = next(c for c in found if set(c.atoms.symbols) == {"Fe"})
    pressure = -np.trace(iron.labels.stress) / 3 * 160.2176634
    assert iron.atoms.get_volume() / len(iron.atoms) > 11.5  # Å³; at rest in PBE 11.35
    assert -8 < pressure < -5
    assert iron.material == "mp-13"
    assert iron.labels.magmoms.min() > 2


def test_real_phonopy_runs_give_forces_and_columns():
    *displaced, rest = read_labelled(real("phonopy_examples_PBE/NaCl"))
    assert [crystal.labels.known for crystal in displaced] == [("forces",)] * 2
    assert rest.labels.hessian.shape == (6, 64, 3)
    np.testing.assert_allclose(rest.labels.hessian.sum(axis=1), 0, atol=1e-6)  # acoustic sum rule


def test_the_energy_of_real_strained_silicon_rises_by_the_work_of_its_stress():
    path = real("mlearn/Si.extxyz.gz")
    info = [frame.info for frame in ase.io.iread(path, index=":", format="extxyz")]
    found = list(read_labelled(path))
    for mode in range(6):
        chosen = [k for k, i in enumerate(info) if i["group"] == "Elastic" and i.get("mode") == mode]
        line = [found[k] for k in sorted(chosen, key=lambda k: info[k]["strain"])]
        assert len(line) >= 8
        work = 0.0
        for a, b in itertools.pairwise(line):
            strain = np.linalg.solve(a.atoms.cell.array, b.atoms.cell.array) - np.eye(3)
            stress = (a.labels.stress + b.labels.stress) / 2
            work += (a.atoms.get_volume() + b.atoms.get_volume()) / 2 * np.sum(stress * strain)
        rise = line[-1].labels.energy - line[0].labels.energy
        steps = np.ptp([c.labels.energy for c in line])
        assert abs(work - rise) < 0.05 * steps, mode


HEAD = 'Lattice="4.2 0 0 0 4.2 0 0 0 4.2" pbc="T T T" '
COLUMNS = "Properties=species:S:1:pos:R:3"


def write_frames(path, *frames):
    """Extended XYZ of NaCl in a box of 4.2 Å: each frame a comment, and numbers behind the positions."""
    text = ""
    for comment, *rows in frames:
        rows = rows or ("", "")
        text += f"2\n{HEAD}{comment}\nNa 0 0 0 {rows[0]}\nCl 2.1 2.1 2.1 {rows[1]}\n"
    path.write_text(text)
    return path


def said_while_reading(path, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(read_labelled(path, **options))
    return found, [str(w.message) for w in caught]


FORCES = ("0.1 0 0", "-0.1 0 0")
SIX_OF_CALCULATOR = 'stress="0.5 0 0 0 0.5 0 0 0 0.5" energy=-5.5'


def test_labels_of_one_crystal_come_from_one_source_and_the_rest_is_said(tmp_path):
    reference = f"{COLUMNS}:REF_forces:R:3 REF_energy=-6.0 {SIX_OF_CALCULATOR}"
    path = write_frames(tmp_path / "a.xyz", (reference, *FORCES), (reference, *FORCES))
    found, said = said_while_reading(path)
    assert [c.labels.known for c in found] == [("energy", "forces")] * 2
    assert found[0].labels.energy == -6
    assert len(said) == 1
    assert re.search(r"a\.xyz: 2 of 2 frames: did not read (energy, stress|stress, energy)", said[0])
    assert "REF_energy" in said[0]
    virial = f'{reference} REF_virials="-0.7 0 0 0 -0.7 0 0 0 -0.7"'
    ((found,), _) = said_while_reading(write_frames(tmp_path / "b.xyz", (virial, *FORCES)))
    np.testing.assert_allclose(found.labels.stress, 0.7 / 4.2**3 * np.eye(3))
    ((found,), _) = said_while_reading(path, stress_key="stress", limit=1)  # the user's choice counts
    np.testing.assert_allclose(found.labels.stress, 0.5 * np.eye(3))


def test_frames_of_one_file_with_labels_of_different_sources_are_said(tmp_path):
    reference, bare = f"{COLUMNS} REF_energy=-6.0", f"{COLUMNS} energy=-5.5"
    path = write_frames(tmp_path / "a.xyz", (reference,), (bare,), (reference,))
    found, said = said_while_reading(path)
    assert [c.labels.energy for c in found] == [-6, -5.5, -6]
    assert re.search(r"different sources \(2 with REF_names, 1 with bare names\)", said[0])
    found, said = said_while_reading(path, energy_key="REF_energy")
    assert [c.labels.energy for c in found] == [-6, None, -6]
    assert said == []


def test_names_that_say_the_same_twice_are_not_worth_a_word(tmp_path):
    both = f"{COLUMNS}:REF_forces:R:3 REF_energy=-6.0 energy=-6.0"
    _, said = said_while_reading(write_frames(tmp_path / "a.xyz", (both, *FORCES)))
    assert said == []


@pytest.mark.parametrize("format", ["traj", "db", "aselmdb"])
def test_databases_and_trajectories_have_one_source_too(format, sheared, tmp_path):
    atoms = computed(sheared)
    if format == "traj":
        atoms.info["REF_energy"] = -99.0
        ase.io.write(tmp_path / "a.traj", atoms)
        path = tmp_path / "a.traj"
    elif format == "db":
        from ase.db import connect

        connect(tmp_path / "a.db").write(atoms, REF_energy=-99.0)
        path = tmp_path / "a.db"
    else:
        import lmdb
        from ase.io.jsonio import encode

        row = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}
        row |= {"pbc": atoms.pbc, "key_value_pairs": {"REF_energy": -99.0}} | atoms.calc.results
        path = tmp_path / "a.aselmdb"
        write_rows(lmdb, path, [zlib.compress(encode(row).encode())])
    ((found,), said) = said_while_reading(path)
    assert found.labels.known == ("energy",)
    assert found.labels.energy == -99
    assert all(name in said[0] for name in ("forces", "stress", "magmoms"))


def test_an_energy_in_info_that_the_calculator_contradicts_is_said(sheared, tmp_path):
    atoms = computed(sheared)
    atoms.info["energy"] = -99.0
    ase.io.write(tmp_path / "a.traj", atoms)
    (_, said) = said_while_reading(tmp_path / "a.traj")
    assert "two different values of energy" in said[0]
    assert "REF_energy" in said[0]


def test_a_virial_and_a_stress_that_contradict_each_other_are_refused(tmp_path):
    comment = f'{COLUMNS} energy=-6.0 stress="{{}} 0 0 0 {{}} 0 0 0 {{}}" virial="-0.7 0 0 0 -0.7 0 0 0 -0.7"'
    value = 0.7 / 4.2**3
    path = write_frames(tmp_path / "a.xyz", (comment.format(*3 * [value]),), (comment.format(*3 * [-value]),))
    found = read_labelled(path)
    np.testing.assert_allclose(next(found).labels.stress, value * np.eye(3), rtol=1e-6)
    with pytest.raises(LabelError, match=r"stress and virial that contradict.*stress_key=virial"):
        next(found)


@pytest.mark.parametrize("name", ["dft_force", "force", "REF_force", "DFT_forces"])
def test_names_of_forces_that_people_use_are_read(name, tmp_path):
    energy = name.rpartition("_")[0] + "_energy" if "_" in name else "energy"
    path = write_frames(tmp_path / "a.xyz", (f"{COLUMNS}:{name}:R:3 {energy}=-6.0", *FORCES))
    (found,) = read_labelled(path)
    assert found.labels.known == ("energy", "forces")
    np.testing.assert_allclose(found.labels.forces[:, 0], [0.1, -0.1])


def test_a_bare_magmom_is_not_taken_for_a_label_and_named(tmp_path):
    """ASE's is the moment of the whole cell, pymatgen's may be where the calculation began."""
    path = write_frames(tmp_path / "a.xyz", (f"{COLUMNS}:magmom:R:1 energy=-1", "5", "5"))
    ((found,), said) = said_while_reading(path)
    assert found.labels.known == ("energy",)
    assert "--magmoms-key magmom" in said[0]
    path = write_frames(tmp_path / "b.xyz", (f"{COLUMNS}:dft_magmom:R:1 dft_energy=-1", "5", "-4"))
    (found,) = read_labelled(path)
    np.testing.assert_allclose(found.labels.magmoms, [5, 4])


def test_what_looks_like_labels_and_is_not_read_is_named_with_the_remedy(tmp_path):
    comment = (
        f'{COLUMNS}:my_force:R:3 vasp_energy=-6.0 VirialTensor="1 0 0 0 1 0 0 0 1" config_energy_weight=2'
    )
    path = write_frames(tmp_path / "a.xyz", (comment, *FORCES))
    ((found,), said) = said_while_reading(path)
    assert found.labels.known == ()
    assert len(said) == 3
    for name, key in (("my_force", "forces"), ("vasp_energy", "energy"), ("VirialTensor", "stress")):
        assert any(f"{name} looks like {key}" in line and f"--{key}-key {name}" in line for line in said)
    ((found,), said) = said_while_reading(path, forces_key="my_force", energy_key="vasp_energy")
    assert found.labels.known == ("energy", "forces")
    assert len(said) == 1


def test_isolated_atoms_are_no_crystals_whatever_their_box(tmp_path):
    frames = [
        ("config_type=IsolatedAtom", 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"'),
        ("config_type=isolated_atom", 'pbc="F F F"'),
        ("", 'Lattice="15 0 0 0 15 0 0 0 15" pbc="T T T"'),
        ("", 'Lattice="15 0 0 0 15 0 0 0 15" pbc="F F F"'),
        ("", 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"'),  # a crystal of one atom
        ("", 'Lattice="9 0 0 8.7 2.3 0 8.7 1.2 2" pbc="T T T"'),  # long vectors of a dense crystal
    ]
    text = "".join(
        f"1\n{box} {COLUMNS} REF_energy=-{k}.0 {kind}\nNa 0 0 0\n" for k, (kind, box) in enumerate(frames)
    )
    (tmp_path / "a.xyz").write_text(text)
    found, said = said_while_reading(tmp_path / "a.xyz")
    assert [c.labels.energy for c in found] == [-4, -5]
    assert len(said) == 1
    assert "left out 4 isolated atom(s)" in said[0]
    alone, said = said_while_reading(tmp_path / "a.xyz", isolated="only")
    assert [c.labels.energy for c in alone] == [0, -1, -2, -3]
    assert said == []
    both, _ = said_while_reading(tmp_path / "a.xyz", isolated="too", every=2)
    assert [c.labels.energy for c in both] == [0, -1, -2, -3, -4]
    path = write_frames(tmp_path / "b.xyz", (f"{COLUMNS} energy=-1 config_type=IsolatedAtom",))
    with pytest.raises(LabelError, match="of 2 atoms, needed one"):
        list(read_labelled(path))


def test_moments_that_are_vectors_are_read_as_lengths(sheared, tmp_path):
    path = write_frames(tmp_path / "a.xyz", (f"{COLUMNS}:magmoms:R:3 energy=-1", "0 3 4", "0 0 -0.5"))
    (found,) = read_labelled(path)
    np.testing.assert_allclose(found.labels.magmoms, [5, 0.5])
    document = json.loads(write_mptrj(tmp_path, sheared).read_text())["mp-1"]["mp-1-0-0"]
    vectors = [[0, 3, 4], [0, 0, -1], [0, 0, 0], [2, 0, 0]]
    for moments in (vectors, [{"@class": "Magmom", "moment": v, "saxis": [0, 0, 1]} for v in vectors]):
        (found,) = read_labelled(dump(tmp_path / "m.json", {"mp-1": {"0": document | {"magmom": moments}}}))
        np.testing.assert_allclose(found.labels.magmoms, [5, 1, 0, 2])


def test_moments_of_outcar_are_lengths_where_spins_are_not_collinear(sheared, tmp_path):
    vectors = np.array([[0, 3, 4], [0, 0, 0.5], [-2, 0, 0], [0, 0, 0]])
    (found,) = read_labelled(write_outcar(tmp_path, sheared, moments=[vectors.T]))
    np.testing.assert_allclose(found.labels.magmoms, [5, 0.5, 2, 0])
    (found,) = read_labelled(write_outcar(tmp_path, sheared, moments=[vectors.T[2:]]))  # ISPIN = 2
    np.testing.assert_allclose(found.labels.magmoms, [4, 0.5, 0, 0])


def test_moments_of_outcar_join_the_steps_of_vasprun(sheared, tmp_path):
    steps = np.arange(8.0).reshape(2, 1, 4)
    outcar = write_outcar(tmp_path, sheared, electronic=(1, 1), moments=steps)
    write_vasprun(tmp_path, sheared, electronic=(1, 1))
    for packed in (False, True):
        if packed:
            (tmp_path / "OUTCAR.gz").write_bytes(gzip.compress(outcar.read_bytes()))
            outcar.unlink()
        found, said = said_while_reading(tmp_path)
        assert [c.name.rpartition("/")[2] for c in found] == ["vasprun.xml step 0", "vasprun.xml step 1"]
        np.testing.assert_allclose([c.labels.magmoms for c in found], steps[:, 0])
        assert said == []


def test_an_outcar_of_another_run_beside_vasprun_is_not_joined_and_said(sheared, tmp_path):
    write_vasprun(tmp_path, sheared)
    other = sheared.copy()
    other.rattle(0.1)
    write_outcar(tmp_path, other, moments=[[[1.0, 2.0, 3.0, 4.0]]])
    ((found,), said) = said_while_reading(tmp_path)
    assert found.labels.magmoms is None
    assert re.search(
        r"1 of 1 frames: without magnetic moments: .*OUTCAR has no step of these forces", said[0]
    )
    (tmp_path / "OUTCAR").rename(tmp_path / "OUTCAR.relax2")
    assert "OUTCAR.relax2 is not read" in said_while_reading(tmp_path)[1][0]


def test_a_broken_file_is_read_as_far_as_it_goes_and_others_after_it(sheared, tmp_path):
    for name, steps in (("a", 2), ("b", 3), ("c", 1)):
        (tmp_path / name).mkdir()
        write_vasprun(tmp_path / name, sheared, electronic=steps * (1,))
    cut = tmp_path / "b" / "vasprun.xml"
    text = cut.read_text()
    cut.write_text(text[: text.rindex("<calculation>") + 100])
    with pytest.raises(ReadError, match=r"b/vasprun\.xml cannot be read .* beyond 2 .*--skip-bad"):
        list(read_labelled(tmp_path))
    found, said = said_while_reading(tmp_path, skip_bad=True)
    assert [c.name.split("/")[-2:][0] for c in found] == ["a", "a", "b", "b", "c"]
    assert len(said) == 1
    assert "b/vasprun.xml: left out 1 that cannot be used" in said[0]
    (tmp_path / "notes.csv").write_text("nothing")
    paths = [tmp_path / "notes.csv", tmp_path / "a"]
    found, said = said_while_reading(paths, skip_bad=True)
    assert len(found) == 2
    assert "notes.csv is of no known format" in said[0]
    with pytest.raises(ReadError, match="notes"):
        read_labelled(paths[:1], skip_bad=True)


@pytest.mark.filterwarnings("ignore:(?s).*left out 1 that cannot be used")
def test_a_bad_frame_is_left_out_by_itself(tmp_path):
    good, bad = f"{COLUMNS} energy=-6.0", f'{COLUMNS} energy="-6.0 eV"'
    path = write_frames(tmp_path / "a.xyz", (good,), (bad,), (f'{good} stress="1 2 3 4 5"',), (good,))
    found, said = said_while_reading(path, skip_bad=True)
    assert [c.name.rpartition(" ")[2] for c in found] == ["0", "3"]
    assert "left out 2 that cannot be used" in said[0]
    assert all(f"a.xyz, after {n} crystals" in said[0] for n in (1, 2))
    found = read_labelled(path)
    assert next(found).name.endswith("frame 0")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"--skip-bad"):
            next(found)
    assert next(found).name.endswith("frame 3")
    with pytest.raises(ReadError, match="no crystal that can be used"):
        list(read_labelled(write_frames(tmp_path / "b.xyz", (bad,)), skip_bad=True))


def test_weights_of_crystals_and_of_their_labels_are_read(tmp_path):
    comment = (
        f'{COLUMNS}:REF_forces:R:3 REF_energy=-6.0 REF_virials="1 0 0 0 1 0 0 0 1" config_weight=10 '
        "config_energy_weight=0.5 config_virials_weight=0.0"
    )
    path = write_frames(tmp_path / "a.xyz", (comment, *FORCES), (f"{COLUMNS} energy=-1 config_weight=-1",))
    with pytest.warns(UserWarning, match=r"REF_virials has weight 0"):
        (crystal,) = read_labelled(path, weight=2, limit=1)
    found = crystal.labels
    assert [found.weight_of(p) for p in ("energy", "forces")] == [10, 20]
    assert found.stress is None
    with pytest.raises(LabelError, match="found weight -1"):
        list(read_labelled(path))


def test_json_lines_are_read_as_the_same_documents_in_a_list(sheared, truth, tmp_path):
    matpes = json.loads(gzip.decompress(write_matpes(tmp_path, sheared).read_bytes()))[0]
    mptrj = json.loads(write_mptrj(tmp_path, sheared).read_text())["mp-1"]["mp-1-0-0"]
    mlearn = json.loads(write_mlearn(tmp_path, sheared).read_text())[0]
    for document, material in ((matpes, "mp-1"), (mptrj, "mp-1"), (mlearn, "HMgOSi")):
        line = json.dumps(document)
        for count, text in ((3, f"{line}\n{line}\n{line}\n"), (2, f"[{line}, {line}]"), (1, line)):
            (tmp_path / "a.jsonl").write_text(text)
            found = list(read_labelled(tmp_path / "a.jsonl"))
            assert [c.material for c in found] == count * [material]
            np.testing.assert_allclose(found[-1].labels.stress, truth[2], atol=1e-7)


def test_lists_of_chgnets_parser_may_lack_labels_and_must_be_of_one_length(sheared, truth, tmp_path):
    columns = json.loads(write_chgnet(tmp_path, sheared).read_text())
    del columns["uncorrected_total_energy"]
    path = dump(tmp_path / "p.json", columns | {"magmom": [], "stress": None})
    (found,) = read_labelled(path)
    assert found.labels.known == ("energy", "forces")
    np.testing.assert_allclose(found.labels.energy, truth[0] - 1)  # energy_per_atom times N
    with pytest.raises(ReadError, match=r"1 structures and \{'force': 2\}"):
        list(read_labelled(dump(path, columns | {"force": 2 * columns["force"]})))


def test_an_energy_per_atom_of_a_frame_is_of_the_whole_crystal(tmp_path):
    path = write_frames(tmp_path / "a.xyz", (f"{COLUMNS} energy_per_atom=-3.0",))
    (found,) = read_labelled(path, energy_key="energy_per_atom")
    assert found.labels.energy == -6


def test_a_molecule_has_no_virial_and_a_site_that_is_partly_occupied_no_labels(tmp_path):
    molecule = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    molecule.info.update(REF_energy=-3.0, REF_virial=np.eye(3))
    ase.io.write(tmp_path / "molecule.xyz", molecule, format="extxyz")
    with pytest.warns(UserWarning, match="REF_virial of a molecule"):
        (found,) = read_labelled(tmp_path / "molecule.xyz")
    assert found.labels.known == ("energy",)
    salt = bulk("NaCl", "rocksalt", 5.6)
    salt.info.update(REF_energy=-6.0)
    salt.set_array("occupancy", np.array([1.0, 0.5]))
    ase.io.write(tmp_path / "partly.xyz", salt, format="extxyz")
    with pytest.raises(LabelError, match=r"site 1 .*0\.5 Cl"):
        next(read_labelled(tmp_path / "partly.xyz"))
