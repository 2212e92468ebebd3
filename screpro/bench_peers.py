"""Peers that cannot be installed beside the others, run by a Python of their own: ``SCREPRO_PEER_PYTHON``.

That environment needs ``pip install "pdex>=0.3" "pertpy>=1.0.3" "statsmodels<0.15" filelock`` and not screpro: this
file is run as a script and imports none of it. Called as ``python bench_peers.py JOB GIVEN.npz MADE.npz THREADS``; it
writes the results and prints the milliseconds of every call. The job ``versions`` measures nothing: it says which peers
are there.
"""

import json
import sys
import time
from importlib import metadata

PEERS = ("pdex", "pertpy")


def pdex(given, threads):
    """Rank-sum tests of every group against group 0, p-values (groups - 1, genes)."""
    import anndata
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
    from pdex import pdex as test

    x = sp.csr_matrix((given["data"], given["indices"], given["indptr"]), shape=tuple(given["shape"]))
    names = np.array([f"g{code:04d}" for code in given["codes"]])
    adata = anndata.AnnData(x, obs=pd.DataFrame({"group": names}, index=np.arange(len(names)).astype(str)))
    genes = {name: i for i, name in enumerate(adata.var_names)}
    groups = {name: i for i, name in enumerate(sorted(set(names) - {"g0000"}))}

    def call():
        return test(adata, "group", mode="ref", reference="g0000", is_log1p=True, threads=threads)

    def result(table):
        p = np.full((len(groups), len(genes)), np.nan)
        columns = [table[name].to_list() for name in ("target", "feature", "p_value")]
        for group, gene, value in zip(*columns):  # noqa: B905
            if group in groups:
                p[groups[group], genes[gene]] = value
        return {"p": p}

    return call, result, 3


def pertpy(given, threads):
    """Energy distance of two clouds."""
    import numpy as np
    import pertpy as pt

    distance = pt.tl.Distance(metric="edistance")
    return lambda: distance(given["x"], given["y"]), lambda value: {"value": np.array(value)}, 3


def versions(given, threads):
    """Version of each of `PEERS` that is installed, by name."""
    import numpy as np

    def call():
        found = {}
        for name in PEERS:
            try:
                found[name] = np.array(metadata.version(name))
            except metadata.PackageNotFoundError:
                continue
        return found

    return call, dict, 1


def main():
    import numpy as np

    job, source, target, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    with np.load(source, allow_pickle=False) as file:
        given = dict(file)
    call, result, repeats = {"pdex": pdex, "pertpy": pertpy, "versions": versions}[job](given, threads)
    times = []
    for _ in range(repeats + 1):  # the first call compiles and is not reported
        begun = time.perf_counter()
        value = call()
        times.append(1e3 * (time.perf_counter() - begun))
    np.savez(target, **result(value))
    print(json.dumps(times[1:]))


if __name__ == "__main__":
    main()
