"""The cure of softening, on data whose softening is known: DFT's part is played by 1.25 times the network."""

import gzip
import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import small_potential

import experiments.softening.cure as cure

STIFFER = 1.25


def labelled(potential, crystals: list[tuple[Atoms, dict]]) -> list[Atoms]:
    predicted = potential.predict([atoms for atoms, _ in crystals])
    for (atoms, info), found in zip(crystals, predicted, strict=True):
        atoms.info = info
        numbers = {k: found[k] for k in ("energy", "forces", "stress")}
        atoms.calc = SinglePointCalculator(atoms, **numbers)
    return [atoms for atoms, _ in crystals]


def rattled(count: int, size: float) -> list[Atoms]:
    found = [bulk("Si", "diamond", 5.43, cubic=True) for _ in range(count)]
    for k, atoms in enumerate(found):
        atoms.rattle(size, seed=k)
    return found


@pytest.fixture(scope="module", params=["chgnet-0.3", "m3gnet-smooth", "mace-density"])
def setting(request, tmp_path_factory):
    """A folder with mlearn/Si as it is published, small, and the model that is too soft for it."""
    folder = tmp_path_factory.mktemp(request.param)
    model = replace(small_potential(request.param, "float32"), name=request.param)
    model = replace(model, params={**model.params, "scale": np.float32(1.0)})
    model.save(folder / "model")
    dft = replace(model, params={**model.params, "scale": np.float32(STIFFER)})
    strained = [bulk("Si", "diamond", 5.43, cubic=True) for _ in range(3)]
    for k, atoms in enumerate(strained):
        atoms.set_cell(atoms.cell.array @ np.diag([1 + 0.02 * k, 1, 1]), scale_atoms=True)
    slab = bulk("Si", "diamond", 5.43, cubic=True)
    slab.center(vacuum=4, axis=2)
    crystals = [
        *((atoms, {"group": "AIMD-NVT", "temperature_K": 300}) for atoms in rattled(4, 0.1)),
        *((atoms, {"group": "AIMD-NVT", "temperature_K": 3000}) for atoms in rattled(2, 0.4)),
        *((atoms, {"group": "Vacancy", "temperature_K": 300}) for atoms in rattled(2, 0.2)),
        *((atoms, {"group": "Elastic"}) for atoms in strained),
        (slab, {"group": "Surface"}),
    ]
    (folder / "data/mlearn").mkdir(parents=True)
    ase.io.write(folder / "data/mlearn/Si.extxyz", labelled(dft, crystals))
    text = (folder / "data/mlearn/Si.extxyz").read_bytes()
    (folder / "data/mlearn/Si.extxyz.gz").write_bytes(gzip.compress(text))
    return cure.Settings(
        model=(str(folder / "model"),),
        data=folder / "data",
        methods=("least squares",),
        sizes=(1,),
        seeds=1,
        epochs=1,
        out=folder / "out",
    )


@pytest.mark.one_model
def test_one_frame_gives_the_factor_that_the_forces_lack_and_with_it_every_family(
    setting, capsys, monkeypatch
):
    cure.main(setting)
    rows = capsys.readouterr().out
    assert "in other families" in rows
    soft, cured = json.loads((setting.out / "record.json").read_text())["rows"].values()
    families = {"hot crystal, held out", "melt", "vacancy", "strained", "surfaces"}
    assert set(soft) == families
    for family in families - {"surfaces"}:
        assert soft[family]["slope"] == pytest.approx(1 / STIFFER, abs=2e-3), family
        assert cured[family]["slope"] == pytest.approx(1, abs=2e-3), family
    assert cured["surfaces"]["mae"] < 0.05 * soft["surfaces"]["mae"]
    assert {p.suffix for p in setting.out.iterdir() if p.is_file()} == {".json", ".jsonl", ".md", ".png"}

    monkeypatch.setattr(cure, "cured", None)  # a second run computes nothing
    cure.main(setting)
    assert capsys.readouterr().out == rows


@pytest.mark.one_model
def test_training_the_readout_for_a_moment_moves_the_slope(setting):
    if "chgnet" not in setting.model[0]:
        pytest.skip("that training is the same for all is proved in test_training_loop")
    more = replace(setting, methods=("readout",), seeds=1, epochs=3, out=setting.out / "trained")
    cure.main(more)
    found = json.loads((more.out / "record.json").read_text())["rows"]
    soft, trained = (row["hot crystal, held out"]["slope"] for row in found.values())
    assert trained != pytest.approx(soft, abs=1e-5)


@pytest.mark.one_model
def test_what_is_wrong_is_said_before_anything_is_computed(setting):
    with pytest.raises(ValueError, match="'magic', needed some of least squares"):
        cure.main(replace(setting, methods=("magic",)))
    with pytest.raises(ValueError, match="there are 4 frames of hot Si, needed twice 3"):
        cure.main(replace(setting, sizes=(3,)))
