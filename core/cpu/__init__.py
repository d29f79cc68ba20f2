"""The project's own CPU library: which levels it is compiled for, how it is built, and which one a process uses.

The sources in ``source/`` are plain C behind a C ABI. They hold no code of Python's or MLX's, and know no models.
"""
