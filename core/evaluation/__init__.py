"""Evaluation: how well a model predicts a text, and how far it is from another model. Knows no files."""

from core.evaluation.entry import evaluate
from core.evaluation.result import Divergence, Evaluation, ModelSummary

__all__ = ["Divergence", "Evaluation", "ModelSummary", "evaluate"]
