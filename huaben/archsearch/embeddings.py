"""Task embeddings in one place: from samples (Task2Vec), given, learned, from responses, and none."""

from .fisher import IGNORED, TaskData
from .probes import ConvProbe, TransformerProbe, default_probe
from .task2vec import Task2VecConfig, Task2VecEmbedder, fisher_distance
from .taskvectors import (
    TASK_DIM,
    GivenEmbedding,
    LearnedTaskEmbedding,
    NullEmbedding,
    ResponseEmbedding,
    TaskEmbedder,
    spearman,
)

__all__ = [
    "IGNORED",
    "TASK_DIM",
    "ConvProbe",
    "GivenEmbedding",
    "LearnedTaskEmbedding",
    "NullEmbedding",
    "ResponseEmbedding",
    "Task2VecConfig",
    "Task2VecEmbedder",
    "TaskData",
    "TaskEmbedder",
    "TransformerProbe",
    "default_probe",
    "fisher_distance",
    "spearman",
]
