"""Labelled crystals: read from many formats of files, stored as graphs, served in batches of one shape."""

import typing

from jaxmlip.system import doors

if typing.TYPE_CHECKING:
    from jaxmlip.data.batch import Batch as Batch
    from jaxmlip.data.dataset import Concatenated as Concatenated
    from jaxmlip.data.dataset import Dataset as Dataset
    from jaxmlip.data.dataset import DatasetError as DatasetError
    from jaxmlip.data.dataset import MemorySplit as MemorySplit
    from jaxmlip.data.dataset import Selection as Selection
    from jaxmlip.data.inspection import inspect as inspect
    from jaxmlip.data.labels import LabelError as LabelError
    from jaxmlip.data.labels import LabelledCrystal as LabelledCrystal
    from jaxmlip.data.labels import Labels as Labels
    from jaxmlip.data.loader import Loader as Loader
    from jaxmlip.data.loader import Plan as Plan
    from jaxmlip.data.readers import ReadError as ReadError
    from jaxmlip.data.readers import read_labelled as read_labelled
    from jaxmlip.data.writing import write_dataset as write_dataset

__getattr__, __dir__ = doors.door(
    __name__,
    {
        "jaxmlip.data.batch": "Batch",
        "jaxmlip.data.dataset": "Concatenated Dataset DatasetError MemorySplit Selection",
        "jaxmlip.data.inspection": "inspect",
        "jaxmlip.data.labels": "LabelError LabelledCrystal Labels",
        "jaxmlip.data.loader": "Loader Plan",
        "jaxmlip.data.readers": "ReadError read_labelled",
        "jaxmlip.data.writing": "write_dataset",
    },
)
