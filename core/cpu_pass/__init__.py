"""Whole passes of a model by the CPU library: which models' it computes, what it is told of them, and the call."""
