"""The project's own CPU library: its C sources, how they are built, which build a process uses, and what it computes.

The sources in ``source/`` are plain C behind a C ABI. They hold no code of Python's or MLX's.
"""
