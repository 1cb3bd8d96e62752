"""The experiment on moduli: its readers, and that a potential compared with itself is not too soft."""

import numpy as np
import pytest
from ase import Atoms
from conftest import small_potential
from small_studies.softening import PROTOTYPES, own_moduli

from experiments.datasets import ACWF, BINARIES, chemistry, read_binaries, read_prototypes
from experiments.softening.elastic import Settings, main
from jaxmlip.studies.study import StudyError, run


@pytest.mark.slow
def test_a_potential_that_is_compared_with_itself_has_ratios_of_one(ran):
    record, name = ran("softening.elastic").record, "mace-density"
    own = own_moduli(small_potential(name, "float32"))
    for key, labels in own.items():
        row = record["rows"][f"{name} {key}"]
        if "failed" in row:
            assert labels is None
        elif labels is None:
            assert row["K_model"] is None
            assert row["lowest_eigenvalue"] <= 0
        else:
            np.testing.assert_allclose([row["K_model"], row["G_model"]], labels, rtol=1e-3)
            assert row["volume_change"] == 0
    for _, prototype in PROTOTYPES:
        row = record["rows"][f"{name} {prototype}"]
        if "failed" not in row:
            assert row["V0_model"] == pytest.approx(row["V0"], rel=1e-2)
            assert row["comparable"] == ("Fe" not in prototype)
    compared = [r for r in record["tables"][-1]["rows"] if r[1:3] == ["binaries", "compared"]]
    assert compared[0][3] == sum(labels is not None for labels in own.values())


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
