"""Text before and after a model: tokenizers, streaming detokenizers, chat templates and tool calls.

Importing this package is cheap: ``tokenizers`` is imported with the first tokenizer that is loaded, ``jinja2`` with the
first template that is rendered.
"""

from core.text.chat import TemplateWarning
from core.text.detokenizer import Detokenizer
from core.text.files import TextFiles
from core.text.native import NativeTokenizer
from core.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "NativeTokenizer", "TemplateWarning", "TextFiles", "Tokenizer", "load_tokenizer"]
