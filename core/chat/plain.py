"""A chat template for models without one: the messages as paragraphs.

A model without a chat template continues texts. This template gives it every message unchanged, with an empty line
after each.
"""

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% set end = '\n\n' %}{% for message in messages %}"
    "{% if message.content is string %}{{ message.content }}{% endif %}{{ end }}"
    "{% endfor %}"
)
"""A chat template in jinja2: messages with text, all roles alike."""
