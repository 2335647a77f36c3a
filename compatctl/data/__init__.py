"""Labelled images, feature tables and relevance judgments; images are decoded when they are read.

A modality is one module: ``_pixels`` for images. Importing this package loads no pillow.
"""

from __future__ import annotations

from compatctl.data._answer_parts import PARTS_SUFFIX, AnswerParts
from compatctl.data._answers import is_answer_log, read_answer_log
from compatctl.data._compared_log import ComparedLog, LoggedQuery, read_compared_log
from compatctl.data._content import Content, ItemVectors, Modality, SpaceVectors
from compatctl.data._dataset import Dataset, Item, Role, Source, Split, SplitRule, merge_items
from compatctl.data._describe import TableFacts, describe_table
from compatctl.data._features import FeatureTable, load_features
from compatctl.data._judgments import Pair, read_pairs, read_traffic, read_traffic_log
from compatctl.data._keys import KeyColumns, KeyTable, read_key_table
from compatctl.data._load import from_files, from_texts, load, load_unlabelled
from compatctl.data._memory import memory_bytes, read_memory, sample_per_class
from compatctl.data._near import warn_of_near_equal, warn_of_near_known, warn_of_near_values
from compatctl.data._packed import pack, unpack
from compatctl.data._pixels import (
    MAX_PIXELS,
    MIN_CROP_SHARE,
    WHITE,
    CropOffset,
    Fit,
    Preprocessing,
    Resize,
    decode,
    from_array,
    look_of,
    prepare,
    thumbnail,
)
from compatctl.data._qrels import Judgments, read_qrels
from compatctl.data._reference import Origin, Reference, born_on_simplex, class_means
from compatctl.data._rows import is_blank
from compatctl.data._tables import csv_rows, header_of
from compatctl.data._vector_columns import (
    LABEL_NAMES,
    VectorColumns,
    column_names,
    read_vector_batches,
    read_vector_columns,
    refused_ids,
)
from compatctl.data._vector_items import load_vector_items
from compatctl.data._vector_rows import warn_of_equal_rows
from compatctl.data._vectors import VectorTable, load_vectors

__all__ = [
    "LABEL_NAMES",
    "MAX_PIXELS",
    "MIN_CROP_SHARE",
    "PARTS_SUFFIX",
    "WHITE",
    "AnswerParts",
    "ComparedLog",
    "Content",
    "CropOffset",
    "Dataset",
    "FeatureTable",
    "Fit",
    "Item",
    "ItemVectors",
    "Judgments",
    "KeyColumns",
    "KeyTable",
    "LoggedQuery",
    "Modality",
    "Origin",
    "Pair",
    "Preprocessing",
    "Reference",
    "Resize",
    "Role",
    "Source",
    "SpaceVectors",
    "Split",
    "SplitRule",
    "TableFacts",
    "VectorColumns",
    "VectorTable",
    "born_on_simplex",
    "class_means",
    "column_names",
    "csv_rows",
    "decode",
    "describe_table",
    "from_array",
    "from_files",
    "from_texts",
    "header_of",
    "is_answer_log",
    "is_blank",
    "load",
    "load_features",
    "load_unlabelled",
    "load_vector_items",
    "load_vectors",
    "look_of",
    "memory_bytes",
    "merge_items",
    "pack",
    "prepare",
    "read_answer_log",
    "read_compared_log",
    "read_key_table",
    "read_memory",
    "read_pairs",
    "read_qrels",
    "read_traffic",
    "read_traffic_log",
    "read_vector_batches",
    "read_vector_columns",
    "refused_ids",
    "sample_per_class",
    "thumbnail",
    "unpack",
    "warn_of_equal_rows",
    "warn_of_near_equal",
    "warn_of_near_known",
    "warn_of_near_values",
]
