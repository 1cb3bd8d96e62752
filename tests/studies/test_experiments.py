"""Missing data name the place where they are published; a training that goes on keeps its curve."""

import pytest

from experiments.datasets import MissingDataError, data_file, where_there
from experiments.training.from_scratch import Curve


def test_missing_files_say_where_they_are_published_and_where_to_put_them(tmp_path):
    with pytest.raises(MissingDataError, match=r"mlearn/Si\.extxyz\.gz is not in .*github\.com/.*--data"):
        data_file(tmp_path, "mlearn/Si.extxyz.gz")
    (tmp_path / "maml_MoNbTaW").mkdir()
    there, (absent,) = where_there(tmp_path, ("maml_MoNbTaW", "mlearn"))
    assert there == {"maml_MoNbTaW": tmp_path / "maml_MoNbTaW"}
    assert "mlearn is not in" in absent


def test_the_curve_of_a_training_that_goes_on_has_what_was_before_and_its_time(tmp_path):
    first = Curve(tmp_path / "model/curve.json")
    for epoch, error in ((0.0, 0.3), (1.0, 0.2)):
        first.add(epoch, error)
    again = Curve(tmp_path / "model/curve.json")
    again.add(1.0, 0.25)  # from the checkpoint before it
    again.add(2.0, 0.1)
    assert {epoch: point["forces_mae"] for epoch, point in again.points.items()} == {0: 0.3, 1: 0.25, 2: 0.1}
    assert again.minutes >= again.points[2.0]["minutes"] >= first.points[1.0]["minutes"]
