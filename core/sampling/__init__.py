"""The table of sampling settings, from which the options of Python, the command line and checkpoints follow.

``table`` has the entries, ``settings`` what follows from all of them. Nothing here imports MLX.
"""
