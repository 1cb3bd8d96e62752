"""Teacher sets: the same crystals for all teachers, bit by bit the same again, also after a kill."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import small_potential
from small_studies.transfer import FEW, LOOSE

from experiments.transfer.teacher_set import make as make_teacher_set
from experiments.transfer.teacher_set.frames import enlarged
from experiments.transfer.teacher_set.make import Settings, divided, main, sample_shapes
from experiments.transfer.teacher_set.prototypes import (
    ALL,
    BY_NAME,
    Candidate,
    drawn,
    generator,
    ground_state,
    template,
)
from experiments.transfer.teacher_set.reading import SET
from jaxmlip.data.dataset import Dataset
from jaxmlip.studies.study import StudyError


@pytest.fixture(scope="module")
def settings(ran) -> Settings:
    """Those of the small run: two models that disagree, of two architectures."""
    return ran("transfer.teacher_set.make").settings


@pytest.fixture(scope="module")
def teachers(settings) -> tuple[str, ...]:
    return settings.teacher


def crystals(out: Path, name: str) -> dict[str, list]:
    data = Dataset(out / name)
    return {
        split: [(*part.title(k)[:2], part[k]) for k in range(len(part))]
        for split, part in data.splits.items()
    }


def digests(out: Path) -> dict:
    return {
        (path.parent.name, name): split.digest
        for path in sorted(out.glob("*/dataset.json"))
        for name, split in Dataset(path.parent).splits.items()
    }


@pytest.mark.slow
def test_all_teachers_label_the_same_crystals_in_the_same_order_and_disagree(settings):
    first, second = (crystals(settings.out, name) for name in ("m3gnet-smooth", "chgnet-0.3"))
    assert sum(map(len, first.values())) == settings.structures
    for split in first:
        for (name, material, a), (other, its, b) in zip(first[split], second[split], strict=True):
            assert (name, material) == (other, its)
            np.testing.assert_array_equal(a.graph.positions, b.graph.positions)
            np.testing.assert_array_equal(a.graph.cell, b.graph.cell)
            assert (a.functional, b.functional) == ("m3gnet-smooth", "chgnet-0.3")
            assert a.labels.energy != b.labels.energy
            assert "magmoms" in b.labels.known
            assert "magmoms" not in a.labels.known


def test_labels_are_those_of_the_teacher_for_the_crystal_alone(settings, teachers):
    potential = small_potential("m3gnet-smooth", "float32")
    shape = sample_shapes(potential, divided(settings, sorted(settings.element)))[0]  # its program is there
    for crystal in list(Dataset(settings.out / "m3gnet-smooth").crystals())[::8]:
        (again,) = potential.predict_graphs([potential.graph(crystal.atoms)], shape)
        np.testing.assert_allclose(crystal.labels.energy, again["energy"], atol=1e-4)
        np.testing.assert_allclose(crystal.labels.forces, again["forces"], atol=1e-3)
        np.testing.assert_allclose(crystal.labels.stress, again["stress"], atol=1e-4)


def test_splits_share_no_material_and_nothing_is_there_twice(settings):
    found = crystals(settings.out, "m3gnet-smooth")
    owner = {}
    places, names = set(), Counter()
    for split, items in found.items():
        for name, material, example in items:
            assert owner.setdefault(material, split) == split
            assert name.startswith(f"{material}/")
            g = example.graph
            places.add((g.species.tobytes(), g.positions.tobytes(), g.cell.tobytes()))
            names[name] += 1
    assert len(places) == len(names) == settings.structures
    assert {m for m in owner if f"{m}/ideal" not in names} == set()
    assert {ground_state(s).material for s in settings.element} <= set(owner)


def test_the_record_counts_what_there_is(settings):
    statement = json.loads((settings.out / SET).read_text())
    assert statement["structures"] == settings.structures == sum(statement["kinds"].values())
    assert sum(statement["splits"].values()) == settings.structures
    assert list(statement["teachers"]) == ["m3gnet-smooth", "chgnet-0.3"]
    assert statement["throughput"]["structures made"]["per_second"] > 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_set(settings, tmp_path, monkeypatch):
    again = replace(settings, out=tmp_path / "out")
    calls, make_part = [], make_teacher_set.make_part

    def until(settings, teachers, shapes, piece):
        calls.append(piece)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make_part(settings, teachers, shapes, piece)

    monkeypatch.setattr(make_teacher_set, "make_part", until)
    with pytest.raises(KeyboardInterrupt):
        main(again)
    assert digests(again.out) == {}
    main(again)
    assert digests(again.out) == digests(settings.out)
    assert calls[2] == calls[3]
    before = len(calls)
    main(again)
    assert len(calls) == before
    part = again.out / "parts/00001.npz"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(StudyError, match=r"00001.npz cannot be read .*Remove it and run again"):
        main(again)


def test_another_seed_is_another_set():
    assert drawn(["Mg", "O", "Al"], 0) == drawn(["O", "Al", "Mg"], 0) != drawn(["Mg", "O", "Al"], 1)
    assert generator(0, "rocksalt-MgO").random() != generator(1, "rocksalt-MgO").random()


def test_what_a_teacher_finds_absurd_is_dropped_and_counted(settings, tmp_path):
    forces = [
        np.linalg.norm(e.labels.forces, axis=1).max()
        for *_, e in crystals(settings.out, "chgnet-0.3")["train"]
    ]
    bound = float(np.median(forces))
    strict = replace(settings, structures=20, max_force=bound, out=tmp_path / "out")
    main(strict)
    for name in ("m3gnet-smooth", "chgnet-0.3"):
        for crystal in Dataset(strict.out / name).crystals():
            assert np.linalg.norm(crystal.labels.forces, axis=1).max() <= bound * (1 + 1e-6)
    dropped = json.loads((strict.out / SET).read_text())["dropped"]
    assert sum(n for reason, n in dropped.items() if "force" in reason) > 0


def test_too_few_materials_unknown_elements_and_no_teacher_are_answered_in_words(teachers, tmp_path):
    with pytest.raises(StudyError, match="no teacher"):
        main(Settings(out=tmp_path / "a"))
    with pytest.raises(StudyError, match="--element Lr, which some teacher does not know"):
        main(Settings(teachers[:1], element=("Lr",), out=tmp_path / "c"))
    alone = {**FEW, **LOOSE, "element": ("Mg",), "structures": 1000, "rattled": 0, "md": 0}
    with pytest.raises(StudyError, match=r"found \d+ crystals in all \d+ parts, needed 1000"):
        main(Settings(teachers[:1], out=tmp_path / "d", **alone))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_prototype_has_its_space_group_and_as_many_atoms_as_its_formula(name):
    from jaxmlip.crystals.symmetry import symmetry_dataset

    prototype = BY_NAME[name]
    symbols = ("Mg", "Al", "O", "F")[: len(prototype.counts)]
    atoms = Candidate("", name, symbols).atoms()
    assert symmetry_dataset(atoms, 1e-3).number == prototype.group
    assert len(template(prototype)[0]) % sum(prototype.counts) == 0
    assert Candidate("", name, symbols).composition == "".join(
        f"{s}{n}" for s, n in sorted(zip(symbols, prototype.counts, strict=True))
    )


def test_compounds_of_ions_are_neutral_and_their_closest_ions_touch():
    salts = [
        c for group in drawn(["Na", "Mg", "Al", "Ti", "Cs", "O", "F", "S"], 0) for c in group if c.charges
    ]
    assert {c.prototype for c in salts} >= {
        "rocksalt",
        "rutile",
        "perovskite",
        "spinel",
        "elpasolite",
        "corundum",
    }
    for c in salts:
        assert np.dot(c.charges, BY_NAME[c.prototype].counts) == 0
    salt = Candidate("AX", "rocksalt", ("Mg", "O"), (2, -2)).atoms()
    assert salt.cell.lengths()[0] * 2**0.5 == pytest.approx(4.21, abs=0.1)


def test_displaced_cells_are_copies_of_four_atoms_at_least():
    for prototype in ALL:
        atoms = Candidate("", prototype.name, ("Mg", "Al", "O", "F")[: len(prototype.counts)]).atoms()
        large = enlarged(atoms)
        assert large is not atoms
        assert len(large) >= 4
        assert large.get_volume() / len(large) == pytest.approx(atoms.get_volume() / len(atoms))
