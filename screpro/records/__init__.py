"""What was run, what came out, and what the papers said.

``start`` collects the rows of a notebook; ``load_results`` reads recorded ones; ``paper_values`` reads the
numbers the papers print; ``side_by_side`` puts both in one table; ``load_claims`` and ``verdict`` test
what the papers claim.
"""

from screpro.records.claims import Claim, load_claims, verdict, verdicts
from screpro.records.drawn import drawn_points, keep_drawn
from screpro.records.paper import figures, heldout, inventory, paper_values
from screpro.records.recorded import recorded_before, runs_table, tuning_table
from screpro.records.results import Run, load_results, read_results, start, write_results
from screpro.records.rules import Verdict
from screpro.records.tables import Table, facts_table, paper_table, side_by_side, tried_table
from screpro.records.timings import load_timings, timings_table

__all__ = [
    "Claim",
    "Run",
    "Table",
    "Verdict",
    "drawn_points",
    "facts_table",
    "figures",
    "heldout",
    "inventory",
    "keep_drawn",
    "load_claims",
    "load_results",
    "load_timings",
    "paper_table",
    "paper_values",
    "read_results",
    "recorded_before",
    "runs_table",
    "side_by_side",
    "start",
    "timings_table",
    "tried_table",
    "tuning_table",
    "verdict",
    "verdicts",
    "write_results",
]
