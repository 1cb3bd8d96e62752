"""load: by name from the cache, the user's folder or the package index; by path; and what it says else."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch_files as made
from conftest import MODELS as NAMES

from jaxmlip.potential import ManifestError, Potential, random_potential
from jaxmlip.zoo import cache, download
from jaxmlip.zoo.download import FetchError
from jaxmlip.zoo.load import load
from weights_convert import matgl
from weights_convert.published import MODELS, Address, Source, Wheel
from weights_convert.torch_zip import CheckpointError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with two published files of weights."""
    folder = tmp_path_factory.mktemp("weights")
    made.save(folder / "tiny_a.pth.tar", made.small_chgnet())
    made.save(folder / "tiny_b.pth.tar", made.small_chgnet(norm=False))
    return folder


@pytest.fixture(scope="module")
def wheel(weights, tmp_path_factory):
    """A folder with the wheel that both files come in."""
    folder = tmp_path_factory.mktemp("index")
    info = "tinyweights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinyweights-1.0-py3-none-any.whl", "w") as archive:
        for file in weights.iterdir():
            archive.write(file, f"tinyweights/pretrained/{file.name}")
        archive.writestr("tinyweights/__init__.py", "raise RuntimeError('code of the package was run')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path, weights):
    """Two tiny published models, an empty cache, no network, and JAX's settings left alone."""
    for name in "ab":
        file = weights / f"tiny_{name}.pth.tar"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        origin = Wheel("tinyweights", "1.0")
        source = Source("chgnet", {file.name: digest}, origin, "MIT", "PBE", "tiny")
        monkeypatch.setitem(MODELS, f"tiny-{name}", source)
    monkeypatch.setenv("JAXMLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PATH", "")  # no uv
    monkeypatch.delenv("JAXMLIP_WEIGHTS", raising=False)


@pytest.fixture
def own_folder(monkeypatch, weights, tmp_path):
    folder = tmp_path / "own" / "below"
    shutil.copytree(weights, folder)
    monkeypatch.setenv("JAXMLIP_WEIGHTS", str(folder.parent))
    return folder


def test_an_unknown_name_is_answered_with_near_names_and_all_names():
    with pytest.raises(ValueError, match=r"found 'CHGNet-0.3'.*Near it: chgnet-0\.3\.0.*Known are .*tiny-b"):
        load("CHGNet-0.3")


@pytest.mark.parametrize("path", ["./nothing", "some/where", "weights.pth.tar"])
def test_a_path_that_leads_nowhere_says_so(path):
    with pytest.raises(FileNotFoundError, match="does not exist; needed a folder"):
        load(path)


def test_without_network_and_cache_the_error_says_what_was_tried_and_what_to_put_where(tmp_path):
    with pytest.raises(FetchError) as caught:
        load("tiny-a")
    said = str(caught.value)
    assert f"not in the cache ({tmp_path / 'cache'})" in said
    assert "JAXMLIP_WEIGHTS: not set" in said
    assert "pip download: ERROR: No matching distribution found for tinyweights==1.0" in said
    assert "Needed: tiny_a.pth.tar, or a wheel" in said
    assert "set the environment variable JAXMLIP_WEIGHTS to that folder" in said


def test_without_pip_and_uv_the_error_still_says_what_to_put_where(monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"neither pip nor uv(.|\n)*Needed: tiny_a\.pth\.tar"):
        load("tiny-a")


@pytest.mark.parametrize(
    "complaint",
    [
        "ERROR: Could not fetch URL https://someone:secret@index.example.org/simple/: gone",
        "ERROR: HTTPSConnectionPool(host='index.example.org', port=443): timed out",
        "error: failed to look up index.example.org:8080 (no such host)",
    ],
)
def test_addresses_in_the_complaint_of_pip_are_not_repeated(complaint):
    said = download._complaint(f"some warning\n{complaint}\n")
    assert "example" not in said
    assert "secret" not in said
    assert said.lower().startswith("error: ")


def test_a_file_in_the_users_folder_is_found_checked_converted_and_kept(own_folder):
    assert cache.cached() == []
    first = load("tiny-a")
    assert cache.cached() == ["tiny-a"]
    shutil.rmtree(own_folder)
    again = load("tiny-a")
    np.testing.assert_array_equal(
        first.params["network"]["elements"],
        made.small_chgnet()["model"]["state_dict"]["atom_embedding.embedding.weight"],
    )
    np.testing.assert_array_equal(first.params["network"]["elements"], again.params["network"]["elements"])
    assert first.manifest == again.manifest
    assert again.name == "tiny-a"
    assert again.manifest["licence"] == "MIT"


def test_a_wheel_in_the_users_folder_gives_all_of_its_models(monkeypatch, wheel):
    monkeypatch.setenv("JAXMLIP_WEIGHTS", str(wheel))
    assert load("tiny-b").name == "tiny-b"
    assert cache.cached() == ["tiny-a", "tiny-b"]


def test_pip_fetches_the_wheel_and_nothing_in_it_is_run(monkeypatch, wheel):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel))
    assert load("tiny-a").name == "tiny-a"
    assert cache.cached() == ["tiny-a", "tiny-b"]
    assert "tinyweights" not in sys.modules


def test_a_truncated_wheel_is_passed_over_with_a_warning(monkeypatch, wheel, tmp_path):
    file = tmp_path / "tinyweights-1.0-py3-none-any.whl"
    file.write_bytes((wheel / file.name).read_bytes()[:500])
    monkeypatch.setenv("JAXMLIP_WEIGHTS", str(tmp_path))
    with (
        pytest.warns(UserWarning, match="damaged or truncated"),
        pytest.raises(FetchError, match=r"no tiny_a\.pth\.tar and no wheel with it is in"),
    ):
        load("tiny-a")


def test_a_file_that_is_not_the_published_one_is_refused_with_both_sums(own_folder):
    file = own_folder / "tiny_a.pth.tar"
    file.write_bytes(file.read_bytes() + b"x")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(FetchError, match=rf"has sha256 {found}, needed {MODELS['tiny-a'].sha256}"):
        load("tiny-a")
    assert cache.cached() == []


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def change_a_number(folder):
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def remove_the_tensors(folder):
    (folder / "model.safetensors").unlink()


def remove_the_manifest(folder):
    (folder / "manifest.json").unlink()


def break_the_manifest(folder):
    (folder / "manifest.json").write_text('{"format": 1,')


def write_another_format(folder):
    edit(folder, format=99)


def write_another_source(folder):
    edit(folder, source_sha256="0" * 64)


def edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def edit_options(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(folder, hyperparameters={**manifest["hyperparameters"], **changes})


def change_a_word(folder):
    edit(folder, licence="none")


def write_a_null(folder):
    edit_options(folder, blocks=None)


def write_a_large_number(folder):
    edit_options(folder, blocks=10**9)


def move_the_cutoff(folder):
    edit_options(folder, bond_cutoff=6.0)


def write_another_type(folder):
    edit(folder, architecture=[])


def remove_the_elements(folder):
    edit(folder, elements=[])


def put_a_folder_in_place_of_the_manifest(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def put_a_file_in_place_of_the_folder(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


def spoil_the_tensors(folder, spoil):
    """Other tensors, and the sums that belong to them."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["network/elements"] = spoil(tensors["network/elements"])
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    edit(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def write_nan(folder):
    spoil_the_tensors(folder, lambda x: np.full_like(x, np.nan))


def write_whole_numbers(folder):
    spoil_the_tensors(folder, lambda x: x.astype(np.int32))


DAMAGES = [cut_off, change_a_number, remove_the_tensors, remove_the_manifest, break_the_manifest]
DAMAGES += [write_another_format, write_another_source, change_a_word, write_a_null, write_a_large_number]
DAMAGES += [move_the_cutoff, write_another_type, remove_the_elements, put_a_folder_in_place_of_the_manifest]
DAMAGES += [put_a_file_in_place_of_the_folder, write_nan, write_whole_numbers]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_in_the_cache_is_told_and_made_again(own_folder, damage):
    load("tiny-a")
    kept = cache.models_folder() / "tiny-a"
    before = (kept / "model.safetensors").read_bytes()
    damage(kept)
    with pytest.warns(UserWarning, match="cannot be used, and is made again") as told:
        assert load("tiny-a").name == "tiny-a"
    assert len(told) == 1
    assert (kept / "model.safetensors").read_bytes() == before
    assert load("tiny-a").name == "tiny-a"
    assert [item.name for item in cache.models_folder().iterdir()] == ["tiny-a"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (write_another_format, r"has format 99, this version of jaxmlip reads format 1.*\(.+\)"),
        (break_the_manifest, "is not JSON"),
        (remove_the_manifest, "has no manifest.json"),
        (cut_off, "is damaged"),
        (write_a_null, r"blocks=None \(needed a whole number from 1 to 32\)"),
        (write_a_large_number, r"blocks=1000000000 \(needed a whole number from 1 to 32\)"),
        (write_another_type, r"names the architecture \[\], known are chgnet, m3gnet, mace, mattersim"),
        (remove_the_elements, r"elements=\[\], needed different ones of the 94"),
        (write_nan, r"holds no weights; .*network/elements: found NaN"),
        (write_whole_numbers, r"holds no weights; .*network/elements: found int32"),
        (
            lambda folder: edit_options(folder, bond_cutoff=60),
            r"bond_cutoff=60 \(needed a length above 0, up to 20 Å\)",
        ),
        (lambda folder: edit_options(folder, radial=0), r"radial=0 \(needed a whole number"),
        (lambda folder: edit_options(folder, new=1), "needed those of chgnet"),
        (lambda folder: edit(folder, hyperparameters={}), "needed those of chgnet"),
        (lambda folder: edit(folder, elements=[10**12]), "needed different ones of the 94"),
        (lambda folder: edit(folder, functional=5), "the functionals .*, needed names"),
        (lambda folder: edit(folder, name="\x1b[31m"), r"name='\\x1b\[31m', needed a line of text"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_by_what_is_wrong(own_folder, damage, words):
    load("tiny-a")
    folder = cache.models_folder() / "tiny-a"
    damage(folder)
    with pytest.raises(ManifestError, match=words):
        load(folder)


@pytest.mark.parametrize("changes", [{"bond_cutoff": np.nan}, {"blocks": 33}, {"angular": 4}])
def test_a_potential_that_could_not_be_loaded_again_is_not_made(changes):
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}="):
        random_potential(replace(NAMES["chgnet-0.3"], **changes))


def test_a_changed_word_in_the_manifest_of_a_folder_is_told(own_folder, tmp_path):
    load("tiny-a").save(tmp_path / "mine")
    change_a_word(tmp_path / "mine")
    with pytest.warns(UserWarning, match=r"manifest\.json was changed since it was written") as told:
        load(tmp_path / "mine")
    assert len(told) == 1


def test_a_folder_of_an_earlier_version_without_a_checksum_is_loaded_without_a_word(own_folder):
    load("tiny-a")
    manifest = cache.models_folder() / "tiny-a" / "manifest.json"
    said = json.loads(manifest.read_text())
    del said["checksum"]
    manifest.write_text(json.dumps(said))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("tiny-a")
        load(manifest.parent)


def test_a_folder_is_loaded_by_its_path(own_folder, tmp_path):
    load("tiny-a").save(tmp_path / "mine")
    potential = load(str(tmp_path / "mine"), dtype="float64")
    assert (potential.name, potential.dtype) == ("tiny-a", "float64")


def test_a_checkpoint_file_is_converted_by_its_path_and_not_kept(weights, tmp_path):
    file = shutil.copy(weights / "tiny_a.pth.tar", tmp_path / "fine-tuned.pth.tar")
    known = load(file)
    assert (known.name, known.manifest["source"]) == ("tiny-a", "fine-tuned.pth.tar")  # by its content
    changed = made.small_chgnet()
    changed["model"]["state_dict"]["site_wise.bias"][:] = 0
    assert load(made.save(tmp_path / "fine-tuned.pth.tar", changed)).name == "fine-tuned"
    assert cache.cached() == []


def test_a_foreign_checkpoint_file_is_refused(tmp_path):
    file = made.save(tmp_path / "other.pt", {"w": np.ones(3)})
    with pytest.raises(CheckpointError, match="a bare state dict of 1 tensors"):
        load(str(file))


def test_an_unknown_precision_is_refused(own_folder):
    with pytest.raises(ValueError, match="found dtype='float16', needed 'float32' or 'float64'"):
        load("tiny-a", dtype="float16")


def test_a_model_that_cannot_be_kept_is_still_loaded(monkeypatch, own_folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JAXMLIP_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept.*Set JAXMLIP_CACHE"):
        assert load("tiny-a").name == "tiny-a"


def test_another_process_may_finish_first(monkeypatch, own_folder):
    save = Potential.save

    def save_late(self, folder):
        save(self, folder)
        if folder != cache.models_folder() / "tiny-a":
            save(self, cache.models_folder() / "tiny-a")

    monkeypatch.setattr(Potential, "save", save_late)
    assert load("tiny-a").name == "tiny-a"
    assert [item.name for item in cache.models_folder().iterdir()] == ["tiny-a"]


def test_many_that_replace_a_damaged_model_at_once_leave_a_sound_one(own_folder, tmp_path):
    potential = load("tiny-a")
    target, source = cache.models_folder() / "tiny-a", MODELS["tiny-a"]
    for _ in range(3):
        remove_the_manifest(target)
        fresh = [tmp_path / "fresh" / str(k) / "new" for k in range(4)]
        for folder in fresh:
            potential.save(folder)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda new: cache.put_in_place(new, target, source), fresh))
        cache.read_kept(target, source)
        shutil.rmtree(tmp_path / "fresh")


@pytest.fixture
def website(tmp_path, monkeypatch):
    """A folder served as a place on the web, with a model of two files and one whose sum is not sure."""
    root = tmp_path / "website"
    folder = made.save_matgl(root / "tiny-folder", *made.small_m3gnet())
    made.save(folder / "tiny-file.tar", made.small_chgnet())
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in matgl.FILES}
    address = Address(folder.as_uri())
    folder_of_two = Source("m3gnet", files, address, "MIT", "PBE", "two files")
    noted = {"tiny-file.tar": "0" * 64}
    unsure = Source("chgnet", noted, address, "MIT", "PBE", "a file", {"tiny-file.tar": 9}, sure=False)
    monkeypatch.setitem(MODELS, "tiny-folder", folder_of_two)
    monkeypatch.setitem(MODELS, "tiny-unsure", unsure)
    return folder


def test_a_folder_of_files_is_fetched_from_its_address_checked_and_kept(website):
    first = load("tiny-folder")
    assert cache.cached() == ["tiny-folder"]
    assert first.manifest["source_sha256"] == MODELS["tiny-folder"].sha256
    assert first.manifest["licence"] == "MIT"
    shutil.rmtree(website)
    assert load("tiny-folder").elements == first.elements == (8, 1, 12)


def test_a_folder_of_files_is_found_below_the_users_folder(website, monkeypatch, tmp_path):
    shutil.copytree(website, tmp_path / "own" / "below" / "tiny-folder")
    shutil.rmtree(website)
    for setting in (tmp_path / "own", tmp_path / "own" / "below" / "tiny-folder"):
        monkeypatch.setenv("JAXMLIP_WEIGHTS", str(setting))
        assert load("tiny-folder").name == "tiny-folder"
        shutil.rmtree(cache.models_folder())


def test_a_file_whose_sum_is_not_sure_is_taken_with_a_warning_and_its_own_sum_recorded(website):
    raw = (website / "tiny-file.tar").read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    with pytest.warns(UserWarning, match=rf"{found}, needed {'0' * 64} \({len(raw):,} bytes, needed 9\)"):
        potential = load("tiny-unsure")
    assert potential.manifest["source_sha256"] == found
    assert "functional" not in potential.manifest  # nobody knows that it is the model that was asked for
    assert load("tiny-unsure").name == "tiny-unsure"  # from the cache, without a warning


def test_a_fetched_file_that_is_not_the_published_one_is_refused(website):
    (website / "model.json").write_text("{}")
    with pytest.raises(FetchError, match=r"tiny-folder has sha256 .*model\.json.*needed .*model\.json"):
        load("tiny-folder")
    assert cache.cached() == []


def test_without_network_the_error_names_the_addresses_and_the_folder(website):
    shutil.rmtree(website)
    with pytest.raises(FetchError) as caught:
        load("tiny-folder")
    said = str(caught.value)
    assert "JAXMLIP_WEIGHTS: not set" in said
    assert f"{website.as_uri()}/state.pt: <urlopen error" in said
    assert "Needed: state.pt and model.json" in said
    assert "put what you get into a folder named tiny-folder in a folder of this machine" in said


def test_an_answer_that_breaks_off_is_told(website, monkeypatch):
    served = download.urllib.request.urlopen

    def cut(url, timeout):
        answer = served(url, timeout=timeout)
        answer.headers.replace_header("Content-Length", "999999")
        return answer

    monkeypatch.setattr(download.urllib.request, "urlopen", cut)
    with pytest.raises(FetchError, match=r"state\.pt: it broke off after \d+ of 999999 bytes"):
        load("tiny-folder")


def test_every_known_model_says_where_it_comes_from():
    for source in MODELS.values():
        assert source.architecture
        assert source.licence
        assert str(source.origin)
        sums = source.files.values()
        if source.git:  # SHA-1, where that alone is known of one file
            assert re.fullmatch("[0-9a-f]{40}", source.git)
        assert list(sums).count("") == bool(source.git)
        assert all(re.fullmatch("[0-9a-f]{64}", its) for its in sums if its)
        assert set(source.sizes) <= set(source.files)
        if isinstance(source.origin, Address):
            assert all(source.origin.of(file).startswith("https://") for file in source.files)


LOADER = """
import sys
from jaxmlip.zoo.load import load
from weights_convert import published
sha256 = sys.argv[1]
wheel = published.Wheel("tinyweights", "1.0")
files = {"tiny_a.pth.tar": sha256}
published.MODELS["tiny-a"] = published.Source("chgnet", files, wheel, "MIT", "PBE", "tiny")
print(load("tiny-a").name)
"""


@pytest.mark.slow
def test_two_processes_at_once_both_load_and_leave_a_sound_cache(own_folder):
    command = [sys.executable, "-W", "error::UserWarning", "-c", LOADER, MODELS["tiny-a"].sha256]
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "tiny-a\n"), err
    cache.read_kept(cache.models_folder() / "tiny-a", MODELS["tiny-a"])


PROGRAMS = """
import jax, jaxmlip.zoo.load
try:
    jaxmlip.zoo.load.load("no model")
except ValueError:
    print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("chosen", [True, False])
def test_compiled_programs_are_kept_in_the_cache_unless_the_user_chose_a_place(tmp_path, monkeypatch, chosen):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "chosen"))
    done = subprocess.run([sys.executable, "-c", PROGRAMS], capture_output=True, text=True, check=True)
    own = tmp_path / "cache" / "xla"
    assert (done.stdout.strip() == str(tmp_path / "chosen")) if chosen else own in Path(done.stdout).parents


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot lend fewer cores")
def test_programs_that_were_split_for_other_cores_are_not_reused(monkeypatch):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core only")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    few = f"import os; os.sched_setaffinity(0, {{{min(cores)}}})\n"
    folders = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (PROGRAMS, few + PROGRAMS)
    }
    assert len(folders) == 2
