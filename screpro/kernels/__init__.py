"""How the hot sums of the metrics and losses are computed fast; what they mean stands in ``screpro.metrics``.

One file per operation. Each holds the float64 reference (obviously right, used by the tests and the gallery), the
path for the CPU (torch or numba) and the dispatch; the Triton kernels of an operation live in ``gpu/`` under the same
name and are imported only when they are launched.
"""
