"""Public models give what their authors published of them, wherever their weights can be had."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SHORT, public, small_potential

from jaxmlip.cli import main
from weights_convert import verification
from weights_convert.verification import differences_from_published, published, published_head


@pytest.mark.parametrize("name", published()["models"])
def test_a_public_model_gives_what_its_authors_published(name):
    found = differences_from_published(public(name, head=published_head(name)))
    assert set(found) == {"energy", "forces", "stress"}
    assert found["energy"] < 1e-8
    assert max(found.values()) < 1e-7


@pytest.fixture
def known(monkeypatch):
    """A small network under a public name, and its own results as the published ones."""
    potential = replace(small_potential(SHORT), name="chgnet-0.3.0")
    structures = published()["structures"]
    crystals = {name: verification.structure_of(its) for name, its in structures.items()}
    theirs = dict(zip(crystals, potential.predict(crystals.values()), strict=True))
    record = {"structures": structures, "heads": {}, "models": {potential.name: theirs}}
    monkeypatch.setattr(verification, "published", lambda: record)
    monkeypatch.setattr(
        "jaxmlip.zoo.load.load_known",
        lambda name, *head: replace(potential, name=name, manifest=potential.manifest | {"asked": head}),
    )
    return potential, theirs


@pytest.mark.slow
def test_the_command_tells_differences_and_refuses_large_ones(known, capsys):
    potential, theirs = known
    main(["models", "--verify", potential.name])
    said = capsys.readouterr().out
    assert all(word in said for word in ("energy", "forces", "stress", "0.0e+00 eV/atom"))
    theirs["water_cluster"]["forces"] = theirs["water_cluster"]["forces"] + 1e-5
    np.testing.assert_allclose(differences_from_published(potential)["forces"], 1e-5)
    with pytest.raises(SystemExit):
        main(["models", "--verify", potential.name])
    said = capsys.readouterr().err
    assert "chgnet-0.3.0" in said
    assert "1e-06" in said


@pytest.mark.parametrize("name", ["m3gnet-mp-2021.2.8", "mace-mh-1"])
def test_a_model_of_which_nothing_is_published_is_refused_with_those_that_have(known, capsys, name):
    with pytest.raises(SystemExit):
        main(["models", "--verify", name])
    said = capsys.readouterr().err
    assert name in said
    assert "chgnet-0.3.0" in said


def test_results_of_a_head_are_compared_with_that_head(known, monkeypatch, capsys):
    record, asked = verification.published(), []
    models = record["models"] | {"mace-mh-0": known[1]}
    several = {"heads": {"mace-mh-0": "mp_pbe_refit_add"}, "models": models}
    monkeypatch.setattr(verification, "published", lambda: record | several)
    monkeypatch.setattr(
        verification,
        "differences_from_published",
        lambda potential: asked.append(potential.manifest["asked"]) or {"energy": 0.0},
    )
    main(["models", "--verify", "mace-mh-0"])
    main(["models", "--verify", "chgnet-0.3.0"])
    assert asked == [("mp_pbe_refit_add",), ()]
    assert "0.0e+00 eV/atom" in capsys.readouterr().out
