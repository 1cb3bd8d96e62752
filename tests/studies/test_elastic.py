"""The experiment on moduli: its readers, and that a potential compared with itself is not too soft."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from conftest import small_potential
from pymatgen.io.ase import AseAtomsAdaptor

from experiments.datasets import ACWF, BINARIES, chemistry, read_binaries, read_prototypes
from experiments.softening.elastic import SPARE, Settings, main
from jaxmlip.crystals import batches
from jaxmlip.mechanics.elasticity import MESSAGES, elastic_tensors
from jaxmlip.mechanics.equation_of_state import equations_of_state
from jaxmlip.studies.study import StudyError, run

CRYSTALS = {
    "mp-1": bulk("MgO", "rocksalt", 4.4),
    "mp-2": bulk("MgO", "rocksalt", 4.6),
    "mp-3": bulk("AlP", "zincblende", 5.0),
}
PROTOTYPES = {("unaries", "Cu-X/FCC"): bulk("Cu", a=3.4), ("unaries", "Fe-X/BCC"): bulk("Fe", a=2.8)}
PROTOTYPES |= {("oxides", "Mg-XO"): CRYSTALS["mp-1"]}


def write_data(root: Path, potential) -> dict[str, list[float] | None]:
    """Both sets in the layout of the public files, labelled by the potential; its K and G where stable."""
    # In the shapes of the experiment, whose programs then serve twice.
    graphs = [potential.graph(atoms) for atoms in CRYSTALS.values()]
    shapes = batches.shapes_for(graphs, MESSAGES, SPARE)
    found = elastic_tensors(potential, list(CRYSTALS.values()), shapes)
    own = {
        key: list(x.hill) if not isinstance(x, ValueError) and x.stable else None
        for key, x in zip(CRYSTALS, found, strict=True)
    }
    entries = [
        {
            "mp_id": key,
            "formula": atoms.get_chemical_formula(),
            "structure": AseAtomsAdaptor.get_structure(atoms).as_dict(),
            "bulk_modulus_vrh": (own[key] or (10.0, 5.0))[0],
            "shear_modulus_vrh": (own[key] or (10.0, 5.0))[1],
        }
        for key, atoms in CRYSTALS.items()
    ]
    (root / BINARIES).parent.mkdir(parents=True)
    (root / BINARIES).write_bytes(gzip.compress(json.dumps(entries).encode()))
    graphs = [potential.graph(atoms) for atoms in PROTOTYPES.values()]
    shapes = batches.shapes_for(graphs, batches.MESSAGES)
    states = equations_of_state(potential.astype("float64"), list(PROTOTYPES.values()), shapes=shapes)
    (root / ACWF).mkdir()
    with tarfile.open(root / ACWF / "xsfs_PBE_v1_structures.tar.xz", "w:xz") as archive:
        for (family, name), atoms in PROTOTYPES.items():
            text = io.StringIO()
            write(text, atoms, format="xsf")
            inside = f"{family}/xsfs-{family}-verification-PBE-v1/{name.replace('X/', '')}.xsf"
            member = tarfile.TarInfo(inside)
            member.size = len(text.getvalue())
            archive.addfile(member, io.BytesIO(text.getvalue().encode()))
    for family in ("unaries", "oxides"):
        fits = {
            name: {
                "min_volume": getattr(state, "volume", 20.0),
                "bulk_modulus_ev_ang3": getattr(state, "bulk_modulus", 1.0),
                "bulk_deriv": getattr(state, "derivative", 4.0),
            }
            for (of, name), state in zip(PROTOTYPES, states, strict=True)
            if of == family
        }
        path = root / ACWF / f"results-{family}-verification-PBE-v1-AE-average.json"
        path.write_text(json.dumps({"BM_fit_data": fits}))
    return own


def test_a_potential_that_is_compared_with_itself_has_ratios_of_one_and_rows_are_computed_once(
    tmp_path, monkeypatch
):
    # One architecture: that tensors side by side are those of each alone is proved in test_elasticity.
    potential = small_potential("mace-density", "float32")
    potential.save(tmp_path / "model")
    own = write_data(tmp_path / "data", potential)
    # Crystals count as relaxed where they are.
    at_rest = {"fmax": 1e9, "smax": 1e9, "batch": 3}
    settings = Settings((str(tmp_path / "model"),), tmp_path / "data", tmp_path / "out", **at_rest)
    main(settings)
    record = json.loads((tmp_path / "out/record.json").read_text())
    for key, labels in own.items():
        row = record["rows"][f"{potential.name} {key}"]
        if "failed" in row:
            assert labels is None
        elif labels is None:
            assert row["K_model"] is None
            assert row["lowest_eigenvalue"] <= 0
        else:
            np.testing.assert_allclose([row["K_model"], row["G_model"]], labels, rtol=1e-3)
            assert row["volume_change"] == 0
    for _, name in PROTOTYPES:
        row = record["rows"][f"{potential.name} {name}"]
        if "failed" not in row:
            assert row["V0_model"] == pytest.approx(row["V0"], rel=1e-2)
            assert row["comparable"] == ("Fe" not in name)
    compared = [r for r in record["tables"][-1]["rows"] if r[1:3] == ["binaries", "compared"]]
    assert compared[0][3] == sum(labels is not None for labels in own.values())
    assert {f["file"] for f in record["figures"]} == {p.name for p in (tmp_path / "out").glob("*.png")}
    before = (tmp_path / "out/elastic.md").read_text()
    monkeypatch.setattr("jaxmlip.mechanics.relaxation.relax_many", None)
    monkeypatch.setattr("jaxmlip.mechanics.equation_of_state.equations_of_state", None)
    main(settings)
    assert (tmp_path / "out/elastic.md").read_text() == before


def test_crystals_belong_to_the_class_of_their_anion():
    for formula, name in {
        "MgO": "oxides",
        "NaCl": "halides",
        "ZnS": "chalcogenides",
        "AlP": "pnictides",
        "TiC": "B, C, Si, Ge",
        "LiH": "hydrides",
        "NiAl": "intermetallics",
    }.items():
        assert chemistry(Atoms(formula)) == name


def test_damaged_data_are_answered_in_words(tmp_path, monkeypatch, capsys):
    (tmp_path / BINARIES).parent.mkdir()
    (tmp_path / BINARIES).write_bytes(b"no gzip")
    with pytest.raises(StudyError, match=r"not as matcalc publishes it.*bulk_modulus_vrh"):
        read_binaries(tmp_path / BINARIES)
    (tmp_path / ACWF).mkdir()
    with pytest.raises(StudyError, match="not as acwf-verification-scripts publish it"):
        read_prototypes(tmp_path / ACWF)
    monkeypatch.setattr("sys.argv", ["elastic", "--model", "chgnet-0.3.0", "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        run(main, Settings)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "not as matcalc publishes it" in said
