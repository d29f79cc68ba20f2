"""What turns a model's logits into those that a token is chosen from; one concept a file.

Each stage is made for all rows of a batch at once, whenever a row joins or leaves, with the rows' settings as columns
``[rows, 1]``. A row whose setting does nothing passes through unchanged, bit for bit, whatever the others ask for.
"""

from core.generation.processors.custom import Processor, ProcessorContext

__all__ = ["Processor", "ProcessorContext"]
