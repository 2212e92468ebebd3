"""Triton kernels, imported only when launched: importing ``screpro`` or ``screpro.kernels`` needs no Triton.

On the CPU they run through Triton's interpreter (``TRITON_INTERPRET=1`` before Triton is imported), which is how the
tests check them without a GPU.
"""
