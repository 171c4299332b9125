"""Rows → tokens with stable ids → the batches of an epoch."""

from entrodrop_tune.data.batches import Batch, Row, collate, epoch_rows
from entrodrop_tune.data.config import Columns, DataConfig, Replay, Source, Template
from entrodrop_tune.data.load import TrainingData, load_data
from entrodrop_tune.data.report import DataReport, SourceReport
from entrodrop_tune.data.sample import Sample

__all__ = [
    "Batch",
    "Columns",
    "DataConfig",
    "DataReport",
    "Replay",
    "Row",
    "Sample",
    "Source",
    "SourceReport",
    "Template",
    "TrainingData",
    "collate",
    "epoch_rows",
    "load_data",
]
