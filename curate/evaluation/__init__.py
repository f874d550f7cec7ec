"""Does it help? A small model on the curated data, on random data and on more of the pool."""

from curate.evaluation.order import Evaluation, evaluate
from curate.evaluation.settings import EvaluateSettings

__all__ = ["EvaluateSettings", "Evaluation", "evaluate"]
