"""Benchmarks: how fast a model loads and runs, what the device could do, and how a peer does beside it.

Knows models, the clock and the device; knows no command line. A peer runs in a process of its own and is never
imported.
"""

from core.benchmark.chart import decode_chart
from core.benchmark.entry import bench
from core.benchmark.result import Benchmark
from core.benchmark.shapes import SHAPES, Shape, read_shape

__all__ = ["SHAPES", "Benchmark", "Shape", "bench", "decode_chart", "read_shape"]
