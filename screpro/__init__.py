"""screpro: a reproducible companion to scDiff, scLDM and PerturbDiff.

Importing the package is cheap on purpose (no torch, no scanpy): the command line checks parameters and
prints tables in a fraction of a second. Import what you need: ``from screpro import data, records``,
``from screpro.models.scdiff import ScDiff``.
"""

__version__ = "0.1.0"
