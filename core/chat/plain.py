"""Conversations with a model that was never taught any: paragraphs, one after another.

Knows one template. A model without a chat template continues texts; so it is given one, in which everything that was
said stands as it was said, with an empty line between.
"""

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% set end = '\n\n' %}{% for message in messages %}"
    "{% if message.content is string %}{{ message.content }}{% endif %}{{ end }}"
    "{% endfor %}"
)
"""A chat template in jinja2: of messages with text, all roles alike."""
