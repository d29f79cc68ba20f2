"""Evaluates how well a model predicts a text, and how much it differs from another model."""

from core.evaluation.entry import evaluate
from core.evaluation.result import Divergence, Evaluation, ModelSummary

__all__ = ["Divergence", "Evaluation", "ModelSummary", "evaluate"]
