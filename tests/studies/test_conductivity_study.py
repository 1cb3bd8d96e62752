"""κ_SRME: its laws, its reference, the relaxation, and the study on a potential that is its own DFT."""

import gzip
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_studies.softening
from ase.build import bulk
from conftest import SHORT, small_potential
from small_studies import Ran, go
from small_studies.conductivity import MESH, SOFTER
from small_studies.softening import OWN, SOFT, STAND_INS

from experiments.conductivity import Settings, asked_for, conducted, refused, relaxed
from jaxmlip.crystals.symmetry import reduced_mesh, space_group
from jaxmlip.data.readers.phonondb import FREQUENCIES_FILE, STRUCTURES_FILE
from jaxmlip.phonons.imaginary import imaginary
from jaxmlip.studies.srme import (
    ANALYSIS_FILE,
    ModeConductivity,
    drawn,
    read_published,
    read_references,
    srme,
)
from jaxmlip.studies.study import StudyError

ATOMS = bulk("ZnS", "zincblende", 5.2)
STARS = reduced_mesh(MESH, space_group(ATOMS))


def modes(seed: int = 0) -> ModeConductivity:
    """Six modes at each wave vector, of any size."""
    rng, n = np.random.default_rng(seed), len(STARS.weights)
    return ModeConductivity(STARS.q_points, STARS.weights, np.sort(rng.random((n, 6))), rng.random((n, 6)))


def turned(m: ModeConductivity) -> ModeConductivity:
    """The same with another member of each star, upside down."""
    q = m.q_points[::-1] @ space_group(ATOMS).inverse[7]
    return ModeConductivity(q, m.weights[::-1], m.thz[::-1], m.shares[::-1])


def test_srme_is_0_against_itself_two_thirds_for_a_doubled_conductivity_and_2_without_one():
    dft = modes()
    assert srme(dft, dft, STARS) == 0
    assert srme(turned(dft), dft, STARS) == 0
    for model, dft_ in (
        (replace(dft, shares=2 * dft.shares), dft),
        (dft, replace(dft, shares=2 * dft.shares)),
    ):
        assert srme(turned(model), dft_, STARS) == pytest.approx(2 / 3, rel=1e-12)
    assert srme(replace(dft, shares=0 * dft.shares), dft, STARS) == 2


def test_srme_counts_errors_that_cancel_in_the_sum():
    dft = modes()
    other = dft.shares.copy()
    other[:, :2] = other[:, 1::-1]
    model = replace(dft, shares=other)
    assert model.kappa == pytest.approx(dft.kappa, rel=1e-12)
    swapped = np.abs(dft.shares[:, 0] - dft.shares[:, 1]).sum()
    assert srme(model, dft, STARS) == pytest.approx(2 * swapped / dft.shares.sum(), rel=1e-12)


def test_modes_are_told_apart_by_the_order_of_their_frequencies():
    m = modes()
    tensors = m.shares[None, ..., None, None] * np.eye(3)
    mixed = np.argsort(np.random.default_rng(1).random(6))
    found = SimpleNamespace(
        thz=m.thz[:, mixed], modes=tensors[:, :, mixed], q_points=m.q_points, weights=m.weights
    )
    np.testing.assert_allclose(ModeConductivity.of(found).shares, m.shares, rtol=1e-14)


def test_wave_vectors_of_other_stars_are_refused():
    dft = modes()
    coarse = reduced_mesh((2, 2, 2), space_group(ATOMS))
    other = ModeConductivity(coarse.q_points, coarse.weights, *(np.ones((len(coarse.weights), 6)),) * 2)
    with pytest.raises(ValueError, match="steps off the mesh"):
        srme(other, dft, STARS)
    twice = replace(dft, q_points=dft.q_points[[0, 0, *range(2, len(dft.weights))]])
    with pytest.raises(ValueError, match="differ from the mesh"):
        srme(twice, dft, STARS)
    with pytest.raises(ValueError, match=r"shape \(\d+, 3\), needed those of DFT"):
        srme(replace(dft, shares=dft.shares[:, :3]), dft, STARS)


def test_imaginary_modes_are_those_of_the_paper():
    q = np.array([[0.0, 0, 0], [1 / 3, 0, 0]])
    real = np.array([[-0.009, 0, 0, 1, 2, 3], [0.5, 1, 2, 3, 4, 5]])
    assert not imaginary(q, real).any()
    for place, thz, where in (((0, 0), -0.011, 0), ((0, 3), -1e-6, 0), ((1, 0), -1e-6, 1)):
        changed = real.copy()
        changed[place] = thz
        assert imaginary(q, changed).tolist() == [k == where for k in range(2)]


def test_a_seed_draws_the_same_crystals_and_more_of_them_add_to_fewer():
    every = [
        SimpleNamespace(material=SimpleNamespace(id=f"mp-{k}"), cubic=k % 3 > 0) for k in range(30)
    ]  # fmt: skip
    few, more = drawn(every, 0, 4, 2), drawn(every, 0, 9, 2)
    assert [r.cubic for r in few].count(True) == 4
    assert len(few) == 6
    assert {r.material.id for r in few} < {r.material.id for r in more}
    assert few == drawn(every, 0, 4, 2) != drawn(every, 1, 4, 2)
    assert drawn(every, 0, None, None) == every
    with pytest.raises(ValueError, match="--wurtzite 11, needed at most 10"):
        drawn(every, 0, 4, 11)


def test_crystals_are_named_by_formula_and_by_id_or_drawn():
    named = {"mp-1": "ZnO", "mp-2": "LiCl", "mp-3": "ZnO", "mp-4": "BN"}
    every = [
        SimpleNamespace(material=SimpleNamespace(id=id, formula=formula), cubic=True)
        for id, formula in named.items()
    ]

    def ids(*materials, **drawn):
        return [r.material.id for r in asked_for(every, Settings(materials=materials, **drawn))]

    assert ids("mp-4", "ZnO") == ["mp-1", "mp-3", "mp-4"]
    assert ids() == list(named)
    assert len(ids(cubic=2)) == 2
    with pytest.raises(ValueError, match=r"--materials NaCl, which none of the 4 crystals is.*ZnO or mp-1"):
        ids("LiCl", "NaCl")
    with pytest.raises(ValueError, match="--materials and a number to be drawn"):
        ids("LiCl", cubic=0)


@pytest.mark.slow
def test_the_published_relaxation_ends_where_forces_and_stress_vanish_and_keeps_the_group():
    start = bulk("Cu", a=3.4, cubic=True)
    found = relaxed(STAND_INS[OWN], start)
    assert found["converged"] == [True, True]
    assert (found["stage"], found["space_group"]) == (2, 225)
    atoms = start.copy()
    atoms.set_cell(found["cell"], scale_atoms=True)
    p = STAND_INS[OWN].predict(atoms)
    assert np.abs(p["forces"]).max() < 1e-4
    assert np.abs(p["stress"]).max() * atoms.cell.volume / len(atoms) < 1.1e-4
    assert found["volume_ratio"] == pytest.approx(atoms.cell.volume / start.cell.volume)


def by_id(done: Ran) -> dict:
    return {row["id"]: row for row in done.rows.values() if "method" in row}


@pytest.mark.slow
def test_one_factor_on_all_constants_lowers_conductivity_by_the_cube_of_the_frequencies(ran):
    copper = by_id(ran("conductivity"))["mp-0"]
    assert copper["mean_ratio"] == pytest.approx(SOFTER**0.5, abs=1e-3)
    assert copper["highest_ratio"] == pytest.approx(SOFTER**0.5, abs=1e-3)
    ratio = copper["kappa"] / copper["kappa_dft"]
    # kT is not far above ħω, and on so few wave vectors tetrahedra make a few per cent of rounding.
    assert ratio == pytest.approx(SOFTER**1.5, rel=0.1)
    # All modes have lost alike.
    assert copper["srme"] == pytest.approx(2 * (1 - ratio) / (1 + ratio), abs=0.05)


@pytest.mark.slow
def test_what_is_unstable_has_no_conductivity_an_srme_of_2_and_its_reason(ran):
    salt = by_id(ran("conductivity"))["mp-1"]
    assert (salt["srme"], salt["kappa"]) == (2.0, None)
    assert "imaginary modes" in salt["refused"]
    assert salt["spectrum"]["lowest"] < 0
    assert salt["mean_ratio"] > 0


def test_tables_put_the_published_run_beside_and_count_what_agrees(ran):
    done = ran("conductivity")
    summary, agreement, materials, softness = done.record["tables"]
    copper = by_id(done)["mp-0"]
    (line,) = summary["rows"]
    line = dict(zip(summary["columns"], line, strict=True))
    assert (line["materials"], line["refused"]) == (2, 1)
    assert line["κ_SRME"]["value"] == pytest.approx((2 + copper["srme"]) / 2)
    assert line["published κ_SRME of these materials"] == pytest.approx(1.45)
    off = abs(copper["kappa"] / (SOFTER**1.5 * copper["kappa_dft"]) - 1)
    (line,) = agreement["rows"]
    assert dict(zip(agreement["columns"], line, strict=True)) == {
        "model": SOFT,
        "constants": "displaced",
        "materials": 2,
        "refused or not as published, number": 2,
        "κ within 2 %, number": int(off < 0.02),
        "SRME within 0.02, number": 1,
        "κ off by / %, median": pytest.approx(100 * off),
        "at most / %": pytest.approx(100 * off),
    }
    assert [row[0] for row in materials["rows"]] == ["Cu, rocksalt (mp-0)", "NaCl, rocksalt (mp-1)"]
    (line,) = softness["rows"]
    line = dict(zip(softness["columns"], line, strict=True))
    assert (line["published run"], line["materials"], line["refused"]) == (SOFT, 2, 1)
    assert line["κ_SRME"] == pytest.approx(1.45)
    assert line["median ω_mean, model / DFT"]["value"] == pytest.approx(SOFTER**0.5)
    assert line["median κ / ω_mean³, model / DFT"]["value"] == pytest.approx(1)


def test_published_runs_of_another_layout_are_refused_and_without_the_file_there_are_none(ran, tmp_path):
    folder = ran("conductivity").settings.data / "phonondb_PBE_103"
    first, model = map(json.loads, (folder / ANALYSIS_FILE).read_text().splitlines())
    assert read_published(tmp_path) == {}
    model["freq_w1"] = [0.5, 0.5]
    (tmp_path / ANALYSIS_FILE).write_text("\n".join(map(json.dumps, (first, model))))
    with pytest.raises(ValueError, match="has 17 frequencies of as soft, needed 17 for each of 2 materials"):
        read_published(tmp_path)


def test_a_model_in_a_folder_is_not_taken_for_the_published_one_of_its_name(ran, tmp_path, monkeypatch):
    done = ran("conductivity")
    shutil.copytree(done.out, tmp_path / "out")
    monkeypatch.setattr(small_studies.softening, "load_models", lambda *_: {SOFT: STAND_INS[SOFT]})
    other = replace(done.settings, model=("folder",), out=tmp_path / "out")
    go("conductivity", other)
    again = Ran("conductivity", other)
    assert again.rows == done.rows
    assert f"No published run is known of {SOFT}" in again.text
    assert "No published run" not in done.text


def test_shards_joined_are_the_whole_and_rows_that_do_not_belong_are_refused(ran, tmp_path, monkeypatch):
    done = ran("conductivity")
    monkeypatch.setattr("experiments.conductivity.relaxed", lambda *_: {"volume_ratio": 1.0})
    monkeypatch.setattr("experiments.conductivity.conducted", lambda *_: refused("not computed here"))
    parts = [replace(done.settings, shard=f"{k}/2", out=tmp_path / f"{k}") for k in (1, 2)]
    for settings in parts:
        go("conductivity", settings)
    halves = [Ran("conductivity", settings).rows for settings in parts]
    assert [{r["id"] for r in rows.values() if "method" in r} for rows in halves] == [{"mp-0"}, {"mp-1"}]
    monkeypatch.setattr("experiments.conductivity.relaxed", None)
    whole = replace(done.settings, join=(tmp_path / "1", tmp_path / "2"), out=tmp_path / "whole")
    go("conductivity", whole)
    assert Ran("conductivity", whole).rows == halves[0] | halves[1]
    assert list(halves[0] | halves[1]) == list(done.rows)
    with pytest.raises(StudyError, match=r"that do not belong .*step: 0\.03 there, 0\.02 here"):
        go("conductivity", replace(whole, step=0.02, out=tmp_path / "other step"))
    with pytest.raises(StudyError, match=f"{SOFT}: only there"):
        go("conductivity", replace(whole, model=(OWN,), out=tmp_path / "other models"))
    with pytest.raises(StudyError, match=r"nowhere has no begun\.json"):
        go("conductivity", replace(whole, join=(tmp_path / "nowhere",), out=tmp_path / "nothing"))
    assert not any((tmp_path / name).exists() for name in ("other step", "other models", "nothing"))


@pytest.mark.parametrize(
    ("file", "found", "instead", "words"),
    [
        (FREQUENCIES_FILE, "mode_kappa_TOT_ave", "mode_kappa", r"Cu \(mp-0\) has no mode_kappa_TOT_ave"),
        (FREQUENCIES_FILE, "300.0", "400.0", r"at \[400\.0\] K, needed .* at 300 K"),
        (STRUCTURES_FILE, "fc3_supercell", "supercell", r"Cu \(mp-0\) has no fc3_supercell"),
    ],
)
def test_references_that_lack_something_are_refused(file, found, instead, words, ran, tmp_path):
    folder = ran("conductivity").settings.data / "phonondb_PBE_103"
    shutil.copytree(folder, tmp_path / "data")
    opened = gzip.open if file.endswith(".gz") else open
    with opened(tmp_path / "data" / file, "rt") as f:
        text = f.read()
    assert found in text
    with opened(tmp_path / "data" / file, "wt") as f:
        f.write(text.replace(found, instead))
    with pytest.raises(ValueError, match=words):
        read_references(tmp_path / "data")


def test_modes_that_do_not_add_up_are_refused(ran, tmp_path):
    folder = ran("conductivity").settings.data / "phonondb_PBE_103"
    shutil.copytree(folder, tmp_path / "data")
    with gzip.open(folder / FREQUENCIES_FILE, "rt") as f:
        columns = json.load(f)
    columns["kappa_TOT_ave"]["0"][0] *= 1.001
    with gzip.open(tmp_path / "data" / FREQUENCIES_FILE, "wt") as f:
        json.dump(columns, f)
    with pytest.raises(ValueError, match=r"the modes of Cu \(mp-0\) add up to .* its conductivity is"):
        read_references(tmp_path / "data")


@pytest.mark.slow
def test_exact_constants_and_small_displacements_have_the_same_conductivity(ran, tmp_path, monkeypatch):
    (salt,) = (r for r in read_references(ran("conductivity").settings.data) if r.material.id == "mp-1")
    rest = {"cell": salt.unit.cell.array, "space_group": 225, "volume_ratio": 1.0}
    rest["scaled"] = salt.unit.get_scaled_positions()
    network = small_potential(SHORT)  # with random parameters, but stable in this crystal
    exact, displaced = (conducted(network, salt, rest, how, 1e-3, tmp_path) for how in ("exact", "displaced"))
    assert exact["spectrum"] == pytest.approx(displaced["spectrum"], rel=1e-3, abs=1e-4)
    assert exact["kappa"] == pytest.approx(displaced["kappa"], rel=0.05)
    assert exact["srme"] == pytest.approx(displaced["srme"], abs=0.05)
    assert exact["kappa"] != displaced["kappa"]
    assert exact["third"]["permutation"] < 1e-9 < displaced["third"]["permutation"]

    monkeypatch.delattr("jaxmlip.phonons.transport.linewidths_by_phonons")  # all wave vectors are kept
    again = conducted(network, salt, rest, "displaced", 1e-3, tmp_path)
    assert again["kappa"] == displaced["kappa"]
