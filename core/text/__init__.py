"""Text around a model: tokenizers, streaming detokenizers and chat templates.

Knows strings and token ids; knows no arrays, no models and no hub. Importing it is cheap: ``tokenizers`` and ``jinja2``
are imported by the first tokenizer that is loaded and the first template that is rendered.
"""

from core.text.chat import TemplateWarning
from core.text.detokenizer import Detokenizer
from core.text.files import TextFiles
from core.text.native import NativeTokenizer
from core.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "NativeTokenizer", "TemplateWarning", "TextFiles", "Tokenizer", "load_tokenizer"]
