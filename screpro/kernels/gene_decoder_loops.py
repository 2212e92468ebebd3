"""The compiled sweeps of the gene decoder on the CPU (formulas: ``screpro.kernels.gene_decoder``)."""

import numpy as np
from numba import njit

from screpro.kernels.nb_loops import SWEEP, _exp

__all__ = ["backward", "forward"]

f32 = np.float32
ROWS_PER_FLUSH = 64  # genes whose shared gradients are added in float32 before they go into the float64 sums


@njit(fastmath={"contract"}, cache=True)
def _sigmoid(a):
    e = _exp(-abs(a))
    s = f32(1) / (f32(1) + e)
    return s if a >= f32(0) else e * s


# A loop over few arrays each: with more of them the compiler gives up proving that they do not overlap, and does not
# vectorise. The buffers between the loops stay in the first-level cache.


@njit(**SWEEP)
def _sum(x, y, out):
    for f in range(out.size):
        out[f] = x[f] + y[f]


@njit(**SWEEP)
def _affine(x, scale, shift, out):
    for f in range(out.size):
        out[f] = x[f] * scale + shift[f]


@njit(**SWEEP)
def _units(gates, out):
    """Hidden units of one gene: silu(gate) * value."""
    width = out.size
    for f in range(width):
        a = gates[f]
        out[f] = a * _sigmoid(a) * gates[width + f]


@njit(**SWEEP)
def _dot(x, y):
    total = f32(0)
    for f in range(x.size):
        total += x[f] * y[f]
    return total


@njit(error_model="numpy", cache=True, nogil=True)
def forward(first, last, hidden, table, inverse, constant, head, out):
    """Cells from `first` to before `last`: hidden (B, g, 2F), table (g, 2F), head (C, F) -> out (B, g, C)."""
    gates, units = np.empty(constant.size, np.float32), np.empty(head.shape[1], np.float32)
    for b in range(first, last):
        for g in range(hidden.shape[1]):
            _sum(hidden[b, g], table[g], gates)
            _affine(gates, inverse[b, g], constant, gates)
            _units(gates, units)
            for c in range(len(head)):
                out[b, g, c] = _dot(units, head[c])


@njit(**SWEEP)
def _scaled(out, scale, x):
    for f in range(out.size):
        out[f] = scale * x[f]


@njit(**SWEEP)
def _add_scaled(total, scale, x):
    for f in range(total.size):
        total[f] += scale * x[f]


@njit(**SWEEP)
def _slopes(gates, pull, units, slope):
    """Hidden units, and gradients of gate and value behind the pull (F,) on them."""
    width = pull.size
    for f in range(width):
        a, b = gates[f], gates[width + f]
        s = _sigmoid(a)
        silu = a * s
        units[f] = silu * b
        slope[f] = pull[f] * b * (s + silu * (f32(1) - s))
        slope[width + f] = pull[f] * silu


@njit(error_model="numpy", cache=True, nogil=True)
def backward(
    first, last, hidden, table, inverse, constant, head, given, slope, of_inverse, of_table, of_constant, of_head
):
    """Writes the gradients of hidden (`slope`) and inverse; adds those of the rest."""
    n_out, width = head.shape
    units, pull = np.empty(width, np.float32), np.empty(width, np.float32)
    before, gates, d = (
        np.empty(2 * width, np.float32),
        np.empty(2 * width, np.float32),
        np.empty(2 * width, np.float32),
    )
    constants, heads = np.zeros(2 * width, np.float32), np.zeros((n_out, width), np.float32)
    rows = 0
    for b in range(first, last):
        for g in range(hidden.shape[1]):
            _scaled(pull, given[b, g, 0], head[0])
            for c in range(1, n_out):
                _add_scaled(pull, given[b, g, c], head[c])
            _sum(hidden[b, g], table[g], before)
            _affine(before, inverse[b, g], constant, gates)
            _slopes(gates, pull, units, d)
            of_inverse[b, g] = _dot(d, before)
            _add_scaled(constants, f32(1), d)
            _scaled(slope[b, g], inverse[b, g], d)
            _add_scaled(of_table[g], inverse[b, g], d)
            for c in range(n_out):
                _add_scaled(heads[c], given[b, g, c], units)
            rows += 1
            if rows % ROWS_PER_FLUSH == 0 or (b == last - 1 and g == hidden.shape[1] - 1):
                _flush(of_constant, constants)
                for c in range(n_out):
                    _flush(of_head[c], heads[c])


@njit(error_model="numpy", cache=True)
def _flush(total, part):
    for f in range(total.size):
        total[f] += part[f]
        part[f] = f32(0)
