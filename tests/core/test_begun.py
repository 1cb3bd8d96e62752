"""What a folder was begun with against what is asked for now, and the versions in records."""

from jaxmlip.system.begun import changes, described
from jaxmlip.system.versions import own_version, versions


def test_changes_are_told_by_the_path_of_their_keys():
    begun = {"seed": 0, "loss": {"kind": "mse", "energy": 1.0}, "data": ("a", "b")}
    now = {"seed": 1, "loss": {"kind": "mse", "energy": 2.0}, "data": ("a", "b")}
    assert changes(begun, now) == {"loss.energy": (1.0, 2.0), "seed": (0, 1)}
    assert changes(begun, now, free=("seed",)) == {"loss.energy": (1.0, 2.0)}
    assert (
        described(changes(begun, now))
        == "loss.energy: begun with 1.0, found 2.0\n  seed: begun with 0, found 1"
    )


def test_a_key_that_one_record_lacks_counts_as_none():
    assert changes({"a": None, "b": 1}, {"c": 2}) == {"b": (1, None), "c": (None, 2)}
    assert changes({}, {"a": None}) == {}


def test_versions_are_those_of_packages_that_are_installed():
    assert list(versions("numpy", "no-such-package")) == ["numpy"]
    assert own_version() == versions("jaxmlip").get("jaxmlip", "run from a checkout")
