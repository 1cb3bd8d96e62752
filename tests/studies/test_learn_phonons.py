"""Learning from frequencies: what is held out shares no element, and what was learnt carries over to it."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import bulk

from experiments.learn_phonons import divided, labelled
from jaxmlip.data.readers.phonondb import MeshModes
from jaxmlip.studies.phonondb import Material, Spectrum


@pytest.mark.slow
def test_pairs_that_learn_from_one_salt_have_better_phonons_of_another(ran):
    """Pairs share between these salts how far like ions are apart, and no size."""
    rows = {key.split("/")[1]: row for key, row in ran("learn_phonons").rows.items()}
    first = ["as published", "one factor", "one factor, then frequencies"]
    assert list(rows) == [*first, "frequencies", "frequencies, no replay"]
    before, *after = (next(iter(row["held out"].values())) for row in rows.values())
    for row in rows.values():
        assert row["trained on"] == 1
        assert list(row["forces"]) == ["Cu, held out", "Ni, not replayed"]
    for found, kind in zip(after, list(rows)[1:], strict=True):
        assert found["rms"] < 0.8 * before["rms"], kind
        assert abs(found["highest"] - 1) < 0.8 * abs(before["highest"] - 1)
        assert abs(found["entropy"] - 1) < abs(before["entropy"] - 1)
        assert found["imaginary"] == 0
    assert after[0]["rms"] < 0.2 * before["rms"]  # these pairs differ by nearly one factor
    assert after[1]["rms"] < 0.5 * after[2]["rms"]  # the same steps, begun with that factor
    copper = {kind: row["forces"]["Cu, held out"]["mae"] for kind, row in rows.items()}
    assert copper["frequencies"] < 0.1 * copper["frequencies, no replay"]


def test_what_is_learnt_of_a_material_is_what_its_kind_says():
    salt = bulk("NaCl", "rocksalt", 5.64)
    modes = MeshModes(np.zeros((1, 3)), np.ones(1), np.array([[0.0, 0, 0, 5, 5, 5]]))
    material = Material("mp-1", "NaCl", "rocksalt", salt, (1, 1, 1), Spectrum.of(modes.thz), modes)
    assert labelled(material, "frequencies").labels.known == ("frequencies",)
    relative = labelled(material, "relative frequencies").labels
    assert relative.known == ("frequencies",)
    assert relative.weight_of("frequencies") == pytest.approx(0.2)
    labels = labelled(material, "frequencies, cells at rest").labels
    assert labels.known == ("forces", "stress", "frequencies")
    assert not np.any(labels.forces)
    assert not np.any(labels.stress)
    moments = labelled(material, "two moments").labels
    assert moments.known == ("averages",)
    np.testing.assert_allclose(moments.averages.values, [2.5, 12.5])
    density = labelled(material, "density of states").labels.averages
    np.testing.assert_allclose(density.width, 0.2)
    # Half of the modes at 0 THz, of which half lies below.
    np.testing.assert_allclose(density.values.sum() * 0.2, 0.75, atol=0.1)
    assert density.at[density.values[5:].argmax() + 5] == pytest.approx(5.0)


def test_materials_that_are_held_out_share_no_element_with_those_trained_on():
    names = ["NaCl", "NaF", "KCl", "MgO", "CaO", "ZnS", "ZnO", "GaAs"]
    materials = {name: SimpleNamespace(atoms=bulk(name, "rocksalt", 5.0)) for name in names}
    for seed in range(20):
        train, test = divided(materials, seed, 2)
        elements = [set().union(*(m.atoms.symbols for m in part.values())) for part in (train, test)]
        assert len(test) >= 2
        assert train
        assert not elements[0] & elements[1]
    with pytest.raises(ValueError, match="found 8 materials, 0 of them without elements of 8"):
        divided(materials, 0, 8)
