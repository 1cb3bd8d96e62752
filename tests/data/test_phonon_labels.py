"""Readers of phonon frequencies: every format gives back the numbers that it was written with."""

import gzip
import json
import lzma
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import bulk
from ase.units import Bohr

from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.inspection import inspect
from jaxmlip.data.labels import Averages, LabelError, Labels
from jaxmlip.data.readers import ReadError, guess, read_labelled, spectra
from jaxmlip.data.readers.phonondb import FREQUENCIES_FILE, STRUCTURES_FILE
from jaxmlip.phonons.phono3py_files import write_third_order
from jaxmlip.phonons.third import SmallSupercellWarning, third_order
from jaxmlip.training.evaluate import compare
from jaxmlip.units import EV_PER_THZ, PER_CM_PER_THZ

DATA = Path(os.environ.get("JAXMLIP_DATA", "shared/data"))
SALT = bulk("NaCl", "rocksalt", 5.6)
MASSES = [22.98976928, 36.96590258]  # of sodium, and of one isotope of chlorine
SPLIT = "depend on the direction of approach"


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there; JAXMLIP_DATA says where the data sets are")
    return DATA / name


def said_while_reading(path, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(read_labelled(path, **options))
    return found, [str(each.message) for each in caught]


def of_springs(atoms: Atoms, stiffness: float = 3.0, reach: float = 4.3):
    """phonopy's object for a crystal of springs (eV/Å²) between atoms closer than `reach` (Å)."""
    phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed")
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(numbers=atoms.numbers, cell=atoms.cell.array, positions=atoms.positions)
    found = phonopy.Phonopy(cell, supercell_matrix=2 * np.eye(3, dtype=int), primitive_matrix="P")
    scaled = found.supercell.scaled_positions
    apart = scaled[:, None] - scaled
    apart = (apart - np.rint(apart)) @ found.supercell.cell
    r = np.linalg.norm(apart, axis=-1)
    bonds = stiffness * (r > 0.1) * (r < reach) / np.maximum(r, 0.1) ** 2
    constants = -np.einsum("ij,ija,ijb->ijab", bonds, apart, apart)
    own = np.arange(len(r))
    constants[own, own] = -constants.sum(axis=1)
    found.force_constants = constants
    found.masses = MASSES
    return found


def modes_at(phonon, q_points) -> np.ndarray:
    phonon.run_qpoints(q_points)
    return np.array(phonon.qpoints.frequencies)


def write_bands(phonon, path: Path, *ends, comment=None, **options) -> Path:
    phonon.run_band_structure([np.linspace(*each, 3) for each in ends], **options)
    phonon.band_structure.write_yaml(comment, path, "gzip" if path.suffix == ".gz" else None)
    return path


@pytest.fixture(scope="module")
def phonon():
    return of_springs(SALT)


@pytest.fixture(scope="module")
def mesh(phonon, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("phonopy") / "mesh.yaml"
    phonon.run_mesh([4, 4, 4], is_gamma_center=True)
    phonon.mesh.write_yaml(path)
    return path


def test_a_mesh_of_phonopy_is_read_with_weights_and_isotopes(phonon, mesh, tmp_path):
    (tmp_path / "other.yml.xz").write_bytes(lzma.compress(mesh.read_bytes()))
    for path in (mesh, tmp_path / "other.yml.xz"):
        (found,) = read_labelled(path)
        its = found.labels.frequencies
        assert found.labels.known == ("frequencies",)
        np.testing.assert_allclose(found.atoms.cell.array, phonon.primitive.cell, atol=1e-12)
        np.testing.assert_allclose(found.atoms.positions, phonon.primitive.positions, atol=1e-12)
        assert list(found.atoms.symbols) == ["Na", "Cl"]
        np.testing.assert_allclose(its.masses, MASSES, atol=1e-6)
        assert its.weights.sum() == 4**3 != len(its.weights)
        np.testing.assert_allclose(its.thz, modes_at(phonon, its.q_points), atol=1e-6)
        assert its.thz.max() > 5
        assert its.assigned.all()
        assert np.isnan(its.error).all()


def test_wave_vectors_that_bands_repeat_count_once(phonon, tmp_path):
    ends = [[[0.5, 0, 0.5], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]]
    full = {"with_eigenvectors": True, "with_group_velocities": True, "comment": {"calculator": "vasp"}}
    for name, options in (("band.yaml", {}), ("bands.yaml.gz", full)):
        (found,), said = said_while_reading(write_bands(phonon, tmp_path / name, *ends, **options))
        its = found.labels.frequencies
        # Γ ends one segment, begins the next, and ends it as (1 1 1).
        needed = [[0.5, 0, 0.5], [0.25, 0, 0.25], [0, 0, 0], [0.5, 0.5, 0.5]]
        np.testing.assert_allclose(its.q_points, needed, atol=1e-7)
        np.testing.assert_allclose(its.thz, modes_at(phonon, needed), atol=1e-6)
        assert its.weights.tolist() == [1, 1, 1, 1]
        assert not said


def test_frequencies_that_depend_on_the_direction_are_left_out_and_said(phonon, tmp_path):
    long = SALT.copy()
    long.set_cell(SALT.cell.array * [1, 1, 1.02], scale_atoms=True)
    ends = [[[0.5, 0.5, 0], [0, 0, 0]], [[0, 0, 0], [0.5, 0, 0]]]
    needed = [[0.5, 0.5, 0], [0.25, 0.25, 0], [0.25, 0, 0], [0.5, 0, 0]]
    for k, atoms in enumerate((long, SALT)):
        polar = of_springs(atoms)
        polar.nac_params = {
            "born": np.multiply.outer([1, -1], np.eye(3)), "dielectric": np.diag([2, 2, 4]), "factor": 14.4
        }  # fmt: skip
        (tmp_path / str(k)).mkdir()
        path = write_bands(polar, tmp_path / str(k) / "band.yaml", *ends)
        if atoms is SALT:  # cubic, so that Γ is the same in all directions
            assert len(next(read_labelled(path)).labels.frequencies.q_points) == 5
            (path.parent / "BORN").touch()
            assert len(next(read_labelled(path)).labels.frequencies.q_points) == 4
            (path.parent / "BORN").unlink()
            polar.save(path.parent / "phonopy.yaml")
        (found,), said = said_while_reading(path)
        np.testing.assert_allclose(found.labels.frequencies.q_points, needed, atol=1e-7)
        np.testing.assert_allclose(found.labels.frequencies.thz, modes_at(polar, needed), atol=1e-6)
        assert len(said) == 1
        assert SPLIT in said[0]


def test_lattices_in_bohr_are_converted_if_the_file_says_so_and_else_refused(tmp_path):
    large = SALT.copy()
    large.set_cell(SALT.cell.array / Bohr, scale_atoms=True)
    phonon = of_springs(large, reach=4.3 / Bohr)
    path = write_bands(
        phonon, tmp_path / "band.yaml", [[0.1, 0, 0], [0.5, 0, 0]], comment={"length_unit": "au"}
    )
    (found,) = read_labelled(path)
    np.testing.assert_allclose(found.atoms.cell.array, SALT.cell.array, atol=1e-9)
    path.write_text(path.read_text().replace("length_unit: au", ""))
    with pytest.raises(ReadError, match=r"(?s)band\.yaml.*in bohr.*Quantum ESPRESSO.*length_unit: au"):
        list(read_labelled(path))
    path.write_text("length_unit: furlong\n" + path.read_text())
    with pytest.raises(ReadError, match="found length_unit 'furlong', needed angstrom or au"):
        list(read_labelled(path))


def last(value: str):
    """A change of the last frequency of a file of phonopy."""
    return lambda text: f"{text[: text.rindex('frequency:')]}frequency: {value}\n"


WRONG = {
    "in 1/cm": (last("250.0"), r"found a frequency of 250, needed THz.*33\.36"),
    "imaginary": (last("-1.5"), r"imaginary frequencies, the lowest -1\.5 THz at q = "),
    "of another cell": (
        lambda text: text.replace("reciprocal_lattice:", "reciprocal_lattice: [[0.1, 0, 0], [0, 0.1, 0], "
                                  "[0, 0, 0.1]]\nother:"),
        r"reciprocal lattice vectors 0\.1 0\.1 0\.1 1/Å long.*0\.30929.*another cell",
    ),
    "without its cell": (
        lambda text: text.replace("lattice:", "was:").replace("points:", "were:"),
        r"no cell.*needed mesh\.yaml or band\.yaml of phonopy 1\.10",
    ),
    "a branch short": (
        lambda text: text.rpartition("  - #")[0],
        r"frequencies of wave vector 8 of shape \(5,\), needed \(6,\)",
    ),
    "no number": (last("[1, [2]]"), "found frequencies of wave vector 8 .*needed 6 numbers"),
    "not finite": (last("nan"), "frequencies of wave vector 8 with numbers that are not finite"),
    "without wave vectors": (lambda text: text.partition("phonon:")[0], "no list of wave vectors"),
    "a mixture": (
        lambda text: text.replace("- symbol: Cl", "- mixture: [[Cl, 0.5], [Br, 0.5]]\n  symbol: Cl"),
        "a mixture of elements in the place of atom 2",
    ),
    "no element": (lambda text: text.replace("symbol: Cl", "symbol: Xy"), "found element 'Xy'"),
    "flat": (
        lambda text: re.sub(r"lattice:\n(- .*\n){3}p", "lattice: [[1,0,0],[0,1,0],[1,1,0]]\np", text),
        "needed lattice vectors that span space",
    ),
    "an alias": (
        lambda text: text.replace("- q-position:", "- &a\n  q-position:", 1).rstrip() + "\n- *a\n",
        r"an alias \(\*'a'\)",
    ),
    "deep": (lambda text: f"{text}\nmore: {21 * '['}{21 * ']'}\n", "more than 20 levels"),
    "far too deep": (lambda text: f"{text}\nmore: {100_000 * '['}\n", "maximum nesting depth|20 levels"),
    "an object": (last("!!python/object/apply:os._exit [7]"), "frequencies of wave vector 8"),
    "cut": (lambda text: text[: text.rindex("[") + 5], "did not find expected node content"),
    "no text": (lambda text: text.replace("natom", "nat\x01m"), "control characters"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_faulty_file_of_phonopy_is_refused_by_name(fault, mesh, tmp_path):
    change, said = WRONG[fault]
    path = tmp_path / "band.yaml"
    text = mesh.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises((ReadError, LabelError), match=f"(?s){said}") as refused:
        list(read_labelled(path))
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 1000


Q = np.array([[0.5, 0, 0.5], [0.25, 0, 0.25], [0, 0, 0], [0, 0, 0], [0.1, 0.2, 0.3]])
BANDS = np.arange(30.0).reshape(5, 6)[:, ::-1] / 5
BANDS[3] = BANDS[2]


def pymatgen_bands(atoms=SALT, bands=BANDS, **more) -> dict:
    """What pymatgen writes, with Γ at the end of one segment and at the start of the next."""
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.phonon.bandstructure import PhononBandStructureSymmLine

    structure = AseAtomsAdaptor.get_structure(atoms.copy())
    labels = {"X": Q[0], "\\Gamma": Q[2], "P": Q[4]}
    lattice = structure.lattice.reciprocal_lattice
    found = PhononBandStructureSymmLine(
        Q, bands.T, lattice, labels_dict=labels, structure=structure,
        eigendisplacements=np.zeros((6, len(Q), 2, 3), complex),
    )  # fmt: skip
    return json.loads(json.dumps(found.as_dict() | more))


def dump(path: Path, *documents) -> Path:
    path.write_text("\n".join(json.dumps(each) for each in documents))
    return path


def test_band_structures_of_pymatgen_are_read_wherever_documents_have_them(tmp_path):
    bands = pymatgen_bands()
    document = {"material_id": "mp-1", "functional": "PBEsol", "last": 1, "phonon_bandstructure": bands}
    emmet = {"material_id": "mp-2", "_id": {"structure": "x"}, "ph_bs": bands, "ph_dos": None}
    for documents, materials, functionals in (
        ([bands], ["ClNa"], [""]),
        ([document], ["mp-1"], ["PBEsol"]),
        ([document, emmet], ["mp-1", "mp-2"], ["PBEsol", ""]),
        ([[emmet, document, bands]], ["mp-2", "mp-1", "ClNa"], ["", "PBEsol", ""]),
        ([{"a": bands, "b": document}], ["a", "mp-1"], ["", "PBEsol"]),
    ):
        path = dump(tmp_path / "bands.json", *documents)
        assert guess(path) == "pymatgen-modes"
        found, said = said_while_reading(path)
        assert [each.material for each in found] == materials
        assert [each.functional for each in found] == functionals
        assert not said
        for each in found:
            its = each.labels.frequencies
            np.testing.assert_allclose(each.atoms.cell.array, SALT.cell.array)
            np.testing.assert_allclose(its.q_points, Q[[0, 1, 2, 4]])
            np.testing.assert_allclose(its.thz, BANDS[[0, 1, 2, 4], ::-1])
            np.testing.assert_allclose(its.masses, SALT.get_masses())


def test_band_structures_of_pymatgen_leave_out_what_depends_on_the_direction(tmp_path):
    other = BANDS.copy()
    other[3, 0] += 0.002
    for bands in (pymatgen_bands(has_nac=True), pymatgen_bands(bands=other)):
        (found,), said = said_while_reading(dump(tmp_path / "a.json", bands))
        np.testing.assert_allclose(found.labels.frequencies.q_points, Q[[0, 1, 4]])
        assert len(said) == 1
        assert f"1 of 1 frames: left out the wave vectors at which frequencies {SPLIT}" in said[0]


def test_band_structures_of_pymatgen_keep_isotopes(tmp_path):
    bands = pymatgen_bands(bulk("LiH", "rocksalt", 4.0))
    sites = bands["structure"]["sites"]
    sites[1]["species"][0]["element"] = "D"
    (found,) = read_labelled(dump(tmp_path / "a.json", bands))
    np.testing.assert_allclose(found.labels.frequencies.masses, [6.94, 2.014], atol=1e-3)
    assert list(found.atoms.symbols) == ["Li", "H"]
    for site, mass in zip(sites, (6.015, 3.016), strict=True):
        site["properties"]["phonopy_masses"] = mass
    (found,) = read_labelled(dump(tmp_path / "a.json", bands))
    assert found.labels.frequencies.masses.tolist() == [6.015, 3.016]


def test_band_structures_of_pymatgen_that_cannot_be_used_are_refused(tmp_path):
    bands = pymatgen_bands()
    cube = bulk("NaCl", "rocksalt", 5.6, cubic=True)
    wrong_cell = pymatgen_bands(cube, np.tile(BANDS, 4))["structure"]
    for document, said in (
        (
            {k: v for k, v in bands.items() if k != "structure"},
            r"has no structure, needed the cell.*structure=",
        ),
        (bands | {"structure": wrong_cell}, "the wave vectors refer to another cell"),
        (pymatgen_bands(bands=BANDS * PER_CM_PER_THZ), r"needed THz.*1/cm are 33\.36"),
        (pymatgen_bands(bands=BANDS - 2.0), r"imaginary frequencies, the lowest -2 THz"),
        (bands | {"bands": bands["bands"][:5]}, r"bands of shape \(5, 5\), needed \(6, 5\)"),
        (bands | {"bands": [[1], [2, 3]]}, "found bands .*needed 6×5 numbers"),
        (bands | {"qpoints": []}, "found qpoints"),
        ({"ph_bs": None, "a": 1}, "found no band structure with bands and qpoints"),
        ({"ph_bs": [bands], "a": 1}, "found no band structure with bands and qpoints"),
    ):
        path = dump(tmp_path / "bands.json", document)
        with pytest.raises((ReadError, LabelError), match=f"(?s)bands.json.*{said}"):
            list(read_labelled(path))


def test_band_structures_of_electrons_are_none_of_phonons(tmp_path):
    path = dump(tmp_path / "electrons.json", {"lattice_rec": {"matrix": []}, "kpoints": [], "bands": {}})
    assert guess(path) is None


TABLE = """# Measured at 80 K by somebody: see there.
# crystal: salt.extxyz

q1 q2 q3 branch thz error
0.5 0 0   2  2.5  0.1
0.5 0 0   1  2.0  -
0.5 0 0   -  4.0  0.2   # of either branch
0.5 0 0   -  3.9
0.25 0 0  6  6.5  0.3
"""


@pytest.fixture
def salt_file(tmp_path) -> Path:
    atoms = SALT.copy()
    atoms.set_masses(MASSES)
    ase.io.write(tmp_path / "salt.extxyz", atoms)
    return tmp_path / "salt.extxyz"


def table(folder: Path, text: str, name: str = "salt.phonons.txt") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_tables_give_rows_of_known_and_of_unknown_branches(salt_file, tmp_path):
    nan = np.nan
    commas = re.sub(
        r"(?<=\d|-)[ ]+(?=\d|-)",
        ", ",
        TABLE.replace("q1 q2 q3 branch thz error", "q1,q2, q3,branch ,thz,error"),
    )
    for path in (table(tmp_path, TABLE), table(tmp_path, "\ufeff" + commas, "salt.phonons.csv")):
        (found,) = read_labelled(path)
        its = found.labels.frequencies
        assert its.q_points.tolist() == [[0.5, 0, 0], [0.5, 0, 0], [0.25, 0, 0]]
        assert its.assigned.tolist() == [True, False, True]
        np.testing.assert_array_equal(
            its.thz, [[2, 2.5, nan, nan, nan, nan], [4, 3.9, nan, nan, nan, nan], [nan] * 5 + [6.5]]
        )
        np.testing.assert_array_equal(
            its.error, [[nan, 0.1, nan, nan, nan, nan], [0.2, *[nan] * 5], [nan] * 5 + [0.3]]
        )
        assert its.masses.tolist() == MASSES
        np.testing.assert_allclose(found.atoms.cell.array, SALT.cell.array)


def test_tables_in_other_units_and_without_errors_are_converted(salt_file, tmp_path):
    for unit, factor in (("cm-1", PER_CM_PER_THZ), ("meV", 1e3 * EV_PER_THZ), ("THz", 1.0)):
        rows = f"0 0 0 - {5 * factor}\n"
        path = table(tmp_path, f"#crystal: salt.extxyz\nq1 q2 q3 branch {unit}\n{rows}")
        (found,) = read_labelled(path)
        np.testing.assert_allclose(found.labels.frequencies.thz[0, 0], 5.0, rtol=1e-12)
        path = table(tmp_path, f"#crystal: salt.extxyz\nbranch {unit} error q1 q2 q3\n1 0.1 {factor} 0 0 0\n")
        (found,) = read_labelled(path)
        np.testing.assert_allclose(found.labels.frequencies.error[0, 0], 1.0, rtol=1e-12)


def test_a_deuteride_in_a_cif_keeps_its_masses(tmp_path):
    cif = tmp_path / "LiD.cif"
    ase.io.write(cif, bulk("LiH", "rocksalt", 4.0, cubic=True))
    cif.write_text(re.sub(r"^  H  ", "  D  ", cif.read_text(), flags=re.MULTILINE))
    (found,) = read_labelled(table(tmp_path, "# crystal: LiD.cif\nq1 q2 q3 branch thz\n0 0 0 24 20\n"))
    assert set(found.atoms.symbols) == {"Li", "H"}
    np.testing.assert_allclose(found.labels.frequencies.masses[found.atoms.numbers == 1], 2.014, atol=1e-3)


HEAD = "# crystal: salt.extxyz\nq1 q2 q3 branch thz error\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABLE.replace("q1 q2 q3", "qx qy qz"), "line 4 names Cartesian wave vectors.*needed q1, q2, q3"),
        (TABLE.replace("thz", "ev"), "line 4 is the header .*needed q1 q2 q3 branch, one of thz, cm-1"),
        (TABLE.replace("thz", "thz mev"), "line 4 is the header"),
        (TABLE.replace(" branch", ""), "line 4 is the header"),
        (HEAD + "0 0 0 7 1 -", r"line 3 has branch '7', needed a number from 1 to 6"),
        (HEAD + "0 0 0 0 1 -", r"line 3 has branch '0'"),
        (HEAD + "0 0 0 1.0 1 -", r"line 3 has branch '1\.0'"),
        (HEAD + "0 0 0 ² 1 -", r"line 3 has branch '²'"),
        (HEAD + "0 0 0 1 1 -\n0 0 0 1 2 -", "lines 3 and 4 have branch 1 of one wave vector"),
        (HEAD + 7 * "0 0 0 - 1 -\n", "line 9 is point 7 of one wave vector, needed at most 6"),
        (HEAD + "0 0 0 1 high -", "line 3 has thz 'high', needed a number"),
        (HEAD + "0 nan 0 1 1 -", "line 3 has q2 'nan', needed a number"),
        (HEAD + "0 0 0 1 1 -1", "line 3 has error -1, needed a positive number"),
        (HEAD + "0 0 1 1", "line 3 has 4 columns, needed 6"),
        (HEAD + "0 0 0 1 2 -\n0 0 0 2 1 -", "fall from one branch to the next"),
        (HEAD + "0 0 0 1 250 -", "found a frequency of 250, needed THz"),
        (HEAD + "0 0 0 1 -5 -", "imaginary"),
        (HEAD, "found no frequency"),
        ("", "found 0 comments that name a crystal"),
        (HEAD + "# crystal: other.cif", "found 2 comments that name a crystal in lines 1, 3"),
        (HEAD.replace("salt.extxyz", "no.cif"), r"no\.cif is not a file"),
        (HEAD.replace("salt.extxyz", "salt.phonons.txt"), "neither ASE nor pymatgen can read"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused_with_its_line(text, said, salt_file, tmp_path):
    with pytest.raises((ReadError, LabelError), match=f"(?s){said}") as refused:
        list(read_labelled(table(tmp_path, text)))
    assert str(tmp_path / "salt.phonons.txt") in str(refused.value)


def test_a_table_that_is_no_text_or_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.phonons.csv.gz"
    path.write_bytes(gzip.compress(b"# crystal: a.cif\n\xff\xfe"))
    with pytest.raises(ReadError, match=r"a\.phonons\.csv\.gz.*it is no text"):
        list(read_labelled(path))
    monkeypatch.setattr(spectra, "LARGEST", 1 << 20)
    path.write_bytes(gzip.compress(bytes(1 << 21)))
    with pytest.raises(ReadError, match="it has more than 1 MiB"):
        list(read_labelled(path))


THZ = np.array([[0, 0, 0, 5, 4, 6], [1, 1, 2, 5, 5, 6]])  # at Γ and X of a mesh 2 × 1 × 1


@pytest.fixture
def pair(tmp_path) -> Path:
    """The two files of phononDB-PBE with one material."""
    folder = tmp_path / "pair"
    folder.mkdir()
    cube = bulk("NaCl", "rocksalt", 5.6, cubic=True)
    cube.info = {"mp_id": "mp-22862", "name": "NaCl", "symm.no": 225,
                 "primitive_matrix": (1 - np.eye(3)) / 2}  # fmt: skip
    ase.io.write(folder / STRUCTURES_FILE, cube)
    row = {
        "mp_id": "mp-22862", "qpoints": [[0, 0, 0], [0.5, 0, 0]], "weights": [1, 1], "q_mesh": [2, 1, 1],
        "frequencies": THZ.tolist(),
    }  # fmt: skip
    (folder / FREQUENCIES_FILE).write_bytes(
        gzip.compress(json.dumps({name: {"0": value} for name, value in row.items()}).encode())
    )
    return folder


def test_the_pair_of_files_of_phonondb_is_read_as_one(pair):
    for path in (pair, pair.parent, pair / FREQUENCIES_FILE):
        (found,) = read_labelled(path)
        its = found.labels.frequencies
        assert (found.material, found.functional) == ("NaCl", "PBE")
        assert "mp-22862" in found.name
        assert len(found.atoms) == 2
        assert found.atoms.cell.volume == pytest.approx(5.6**3 / 4)
        np.testing.assert_array_equal(its.thz, np.sort(THZ, axis=1))
        np.testing.assert_array_equal(its.q_points, [[0, 0, 0], [0.5, 0, 0]])
        np.testing.assert_array_equal(its.weights, [1, 1])
        np.testing.assert_allclose(its.masses, SALT.get_masses())


def test_half_of_the_pair_of_phonondb_holds_no_labels(pair):
    (pair / STRUCTURES_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {STRUCTURES_FILE}.*github\.com/MPA2suite/k_SRME"):
        list(read_labelled(pair / FREQUENCIES_FILE))
    with pytest.raises(ReadError, match="no file of a known format"):
        read_labelled(pair)


def test_frequencies_of_phonondb_of_another_cell_are_refused(pair):
    cube = ase.io.read(pair / STRUCTURES_FILE)
    del cube.info["primitive_matrix"]
    ase.io.write(pair / STRUCTURES_FILE, cube)
    with pytest.raises(ReadError, match=r"shape \(2, 6\).*needed 24 branches"):
        list(read_labelled(pair))


def test_inspection_counts_crystals_with_frequencies(pair, salt_file):
    table(pair.parent, TABLE)
    found, _ = said_while_reading(pair.parent)
    assert [each.labels.known for each in found] == [("frequencies",), (), ("frequencies",)]
    assert inspect(found).properties == {"frequencies": 2}
    (bare,) = read_labelled(pair, properties=("energy",))
    assert bare.labels.known == ()


def test_published_bands_of_pymatgen_are_read():
    for name, rows, highest in (("Cs1Au1", 598, 2.348112), ("Cd4Se4", 600, 5.876200)):
        number = {"Cs1Au1": 2667, "Cd4Se4": 2691}[name]
        (found,), said = said_while_reading(real(f"pymatviz_phonons/mp-{number}-{name}-pbe.json.xz"))
        its = found.labels.frequencies
        assert its.thz.shape == (rows, 6)
        assert its.thz.max() == pytest.approx(highest, abs=1e-6)
        assert not said
    assert its.masses.tolist() == [78.96, 112.411]  # those of phonopy, not ASE's
    with pytest.raises(LabelError, match=r"imaginary.*-69\.6 THz"):
        list(read_labelled(real("pymatviz_phonons/mp-23907-H2-pbe.json.xz")))
    (found,), said = said_while_reading(real("emmet_testfiles/mp-23302_phonon.json.gz"))
    assert found.material == "mp-23302"
    assert len(found.labels.frequencies.thz) == 97
    assert np.abs(found.labels.frequencies.q_points).max(axis=1).min() > 0.01
    assert SPLIT in said[0]


def test_published_frequencies_of_phonondb_are_read():
    found, said = said_while_reading(real("phonondb_PBE_103"))
    assert len(found) == 103
    assert not said
    assert {each.functional for each in found} == {"PBE"}
    assert {each.labels.frequencies.weights.sum() for each in found} == {19**3, 19 * 19 * 15}
    tellurides = [each for each in found if each.material == "PbTe"]
    assert "mp-19717" in tellurides[0].name
    assert tellurides[0].labels.frequencies.thz.max() == pytest.approx(3.437753574)


def test_published_files_of_other_formats_are_known_as_before():
    for name, format in {
        "matcalc_elemental_refs_PBE_r2SCAN/MatPES-PBE-Element-Refs.json.gz": "matpes",
        "emmet_testfiles/SiC_tasks.json.gz": None,
        "phonondb_PBE_103/kappas_phononDB_PBE_NAC.json.gz": None,
        f"phonondb_PBE_103/{STRUCTURES_FILE}": "extxyz",
        "phonopy_examples_PBE/NaCl/phonopy_disp.yaml": "phonopy",
        "phonopy_examples_PBE/Si-nosym/disp.yaml": None,
    }.items():
        assert guess(real(name)) == format, name


@pytest.fixture
def averaged(tmp_path):
    """A folder with total_dos.dat and thermal_properties.yaml of springs, and all their frequencies."""
    phonons = of_springs(SALT)
    phonons.run_mesh((12, 12, 12), is_gamma_center=True)
    phonons.run_total_dos(freq_min=0, freq_max=20, freq_pitch=0.02)
    phonons.write_total_dos(tmp_path / "total_dos.dat")
    phonons.run_thermal_properties(t_min=0, t_max=600, t_step=100)
    phonons.write_yaml_thermal_properties(filename=tmp_path / "thermal_properties.yaml")
    phonons.save(tmp_path / "phonopy.yaml", settings={"force_constants": False})
    return tmp_path, phonons.mesh.frequencies, phonons.mesh.weights


def test_densities_of_states_are_read_broadened_and_with_their_moments(averaged):
    folder, thz, weights = averaged
    (found,) = read_labelled(folder / "total_dos.dat")
    its = found.labels.averages
    assert found.labels.known == ("averages",)
    np.testing.assert_allclose(its.masses, MASSES)
    assert set(its.what) == {1}
    step = np.diff(its.at)
    np.testing.assert_allclose(step, its.width)
    assert abs(its.values.sum() * its.width - 1) < 0.02
    mean = np.average(thz.mean(axis=1), weights=weights)
    assert abs(its.values @ its.at * its.width / mean - 1) < 0.02
    assert its.scale[0] == its.values.max()


def test_heat_capacities_and_entropies_are_read_for_each_mode(averaged):
    folder, *_ = averaged
    (found,) = read_labelled(folder / "thermal_properties.yaml")
    its = found.labels.averages
    np.testing.assert_array_equal(its.at, [100, 200, 300, 400, 500, 600] * 2)
    np.testing.assert_array_equal(its.what, [2] * 6 + [3] * 6)
    assert 0.2 < its.values[0] < its.values[5] < 1
    # Of modes far below kT the entropy grows by ln 2 where the temperature doubles.
    assert abs(its.values[11] - its.values[8] - np.log(2)) < 0.1


def test_averages_without_their_crystal_or_of_another_one_are_refused(averaged):
    folder, *_ = averaged
    text = (folder / "total_dos.dat").read_text()
    ase.io.write(folder / "one.extxyz", bulk("Cu"))
    ase.io.write(folder / "NaCl.extxyz", SALT)
    (folder / "phonopy.yaml").rename(folder / "elsewhere")
    refused = {
        "density total_dos.dat": (text, r"neither phonopy\.yaml .* lies beside it"),
        "a total_dos.dat": ("# crystal: one.extxyz\n" + text, r"integral is 5\.\d+|integral is 6"),
        "b total_dos.dat": ("# crystal: NaCl.extxyz\n" + text.replace("\n", " 1\n"), r"found rows of \[3\]"),
        "c total_dos.dat": ("# crystal: NaCl.extxyz\n1 2\n", "found 1 frequencies"),
    }
    for name, (words, message) in refused.items():
        (folder / name).write_text(words)
        with pytest.raises(ReadError, match=message):
            list(read_labelled(folder / name))
    (folder / "total_dos.dat").write_text("# crystal: NaCl.extxyz\n" + text)
    (found,) = read_labelled(folder / "total_dos.dat")
    np.testing.assert_allclose(found.labels.averages.masses, SALT.get_masses())
    thermal = (folder / "thermal_properties.yaml").read_text()
    (folder / "elsewhere").rename(folder / "phonopy.yaml")
    (folder / "thermal_properties.yaml").write_text(thermal.replace("natom: ", "natom: 1"))
    with pytest.raises(ReadError, match="natom 12 and a primitive cell of 2 atoms"):
        list(read_labelled(folder / "thermal_properties.yaml"))
    (folder / "thermal_properties.yaml").write_text(
        re.sub(r"heat_capacity: +(\d)", r"heat_capacity: 9\1", thermal)
    )
    with pytest.raises(LabelError, match=r"heat capacity from .* needed 0 to 1 k_B"):
        list(read_labelled(folder / "thermal_properties.yaml"))


def test_averages_of_frequencies_that_are_too_high_for_thz_are_refused():
    masses = np.array([39.1, 126.9])
    high = {
        "moment": Averages(np.zeros(2, int), np.array([1.0, 2.0]), np.array([60.0, 4000.0]), masses),
        "density": Averages(np.ones(2, int), np.array([0.0, 90.0]), np.array([0.01, 0.02]), masses, 3.0),
    }
    for its in high.values():
        with pytest.raises(LabelError, match=r"found a frequency of \d+.*needed THz"):
            Labels(averages=its).check(2, "KI")
    for wrong, words in (
        ({"what": np.array([4, 0])}, "0 to 3"),
        ({"values": np.array([0.0, 1.0])}, "moment from 0 to 1, needed numbers above 0"),
        ({"masses": np.ones(3)}, "needed 2 numbers above 0"),
        ({"at": np.ones(1)}, r"shapes \(2,\), \(1,\) and \(2,\)"),
    ):
        its = replace(high["moment"], values=np.array([2.0, 5.0]))
        with pytest.raises(LabelError, match=words):
            Labels(averages=replace(its, **wrong)).check(2, "KI")


def test_constants_of_third_order_are_labels_that_their_own_potential_repeats(tmp_path, monkeypatch, capsys):
    potential, salt = pairs.potential(alike=2**0.5), bulk("NaCl", "rocksalt", 4.6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSupercellWarning)
        constants = third_order(potential, salt, (2, 1, 1))
    write_third_order(constants, tmp_path / "run")
    (found,) = read_labelled(tmp_path / "run")
    ((_, dft, model),) = (vars(x).values() for x in compare(potential, split_of(found))["third"])
    assert found.labels.known == ("third",)
    assert set(found.labels.pairs[:, 0]) == {3 * atom + x for atom in constants.cells.p2s for x in range(3)}
    assert np.abs(dft).max() == np.abs(constants.fc3).max() > 1
    np.testing.assert_allclose(model, dft, rtol=0, atol=1e-8)

    monkeypatch.setattr("jaxmlip.training.evaluate.COLUMNS", 20)  # of 63
    ((_, few, model),) = (vars(x).values() for x in compare(potential, split_of(found))["third"])
    np.testing.assert_array_equal(few, dft[::4])
    np.testing.assert_allclose(model, few, rtol=0, atol=1e-8)
    assert "every 4th of 63 columns" in " ".join(capsys.readouterr().out.split())

    nothing = replace(
        constants, fc3=np.where(np.arange(4)[:, None, None, None, None] == 2, 0.0, constants.fc3)
    )
    write_third_order(nothing, tmp_path / "cut")
    (cut,) = read_labelled(tmp_path / "cut" / "fc3.hdf5")
    assert not np.isin(cut.labels.pairs[:, 1], [6, 7, 8]).any(), "pairs that a cutoff leaves out are unknown"
    with pytest.raises(LabelError, match=r"pairs of shape \(63,\).*needed .* of shape \(63, 2\)"):
        replace(found.labels, pairs=found.labels.pairs[:, 0]).check(4, "NaCl")
    with pytest.raises(LabelError, match=r"pairs with numbers from 0 to 12, needed 0 to 11"):
        replace(found.labels, pairs=found.labels.pairs + (found.labels.pairs == 11)).check(4, "NaCl")


def split_of(crystal) -> MemorySplit:
    return MemorySplit.from_crystals([crystal], Cutoffs(pairs.REACH))
