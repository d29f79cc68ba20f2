"""Benchmarks: how fast a model loads and runs, how fast the device could run it, and how fast a peer is.

A peer is another program that runs the same model. It runs in a process of its own and is never imported.
"""

from core.benchmark.chart import decode_chart
from core.benchmark.entry import bench
from core.benchmark.result import Benchmark
from core.benchmark.shapes import SHAPES, Shape, read_shape

__all__ = ["SHAPES", "Benchmark", "Shape", "bench", "decode_chart", "read_shape"]
