"""A loaded model with its tokenizer: text and conversations in, text out.

The seam between ids and text: the loop in ``core.generation`` knows only ids, ``core.text`` only strings.
"""

from core.language_model.model import LanguageModel
from core.language_model.prompt import Prompt

__all__ = ["LanguageModel", "Prompt"]
