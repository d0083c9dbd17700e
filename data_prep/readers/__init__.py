"""Reading every kind of text into one stream of records: an id, a text, metadata.

Each reader is a frozen config with `check(where)`, `inputs(log)`, the files it reads, and `records(log)`, a generator: it holds one
record, one batch of rows or one member at a time. What cannot be read goes to the `ReadLog`, with its place and reason, and reading
goes on behind it.

The id of a record is `source:file#position`: the source's name, the file's path below `root`, and where in it the record stands
(`record.py`). Files are read in the order of their paths. So neither new files nor another order of work changes an id.
"""

from data_prep.readers.huggingface import HuggingFace
from data_prep.readers.jsonl import JsonLines
from data_prep.readers.parquet import Parquet
from data_prep.readers.record import ReadLog, Record
from data_prep.readers.source_code import SourceCode
from data_prep.readers.stdlib import PythonStdlib
from data_prep.readers.tars import Tars
from data_prep.readers.text_files import TextFiles

READERS: dict[str, type] = {
    "text": TextFiles,
    "jsonl": JsonLines,
    "parquet": Parquet,
    "source-code": SourceCode,
    "huggingface": HuggingFace,
    "webdataset": Tars,
    "python-stdlib": PythonStdlib,
}

__all__ = [
    "READERS",
    "HuggingFace",
    "JsonLines",
    "Parquet",
    "PythonStdlib",
    "ReadLog",
    "Record",
    "SourceCode",
    "Tars",
    "TextFiles",
]
