"""The command line ``screpro``. Every verb imports what it needs when it is called."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from screpro.cli_show import STDOUT, plain, show
from screpro.errors import ScreproError

__all__ = ["app", "main"]

app = typer.Typer(
    help="A reproducible companion to scDiff, scLDM and PerturbDiff: run its notebooks, check its numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="The data sets: what they are, where they are, whether they are intact.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Write the rows to FILE, as JSON. Without FILE, last on the line: print them instead of the table.",
        show_default=False,
    ),
]
Notebook = Annotated[
    str, typer.Argument(help="Name as in scdiff/annotation, or the path of a .py.", show_default=False)
]


# --- notebooks -------------------------------------------------------------------------------------------


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the notebooks, with the tiers that have been run or recorded."""
    from screpro.records import overview

    show(overview.notebooks(), as_json)


@app.command()
def params(notebook: Notebook, as_json: AsJson = False) -> None:
    """Show the parameters of a notebook: type, default, range, meaning, and a command to copy."""
    from screpro.records import parameters, sources

    sheet = parameters.read(sources.find(notebook))
    rows = [
        {
            "name": p.name,
            "type": str(p.type),
            "default": p.default if as_json else parameters.to_text(p.default),
            "range": p.range,
            "meaning": p.meaning,
        }
        for p in sheet.parameters
    ]
    show(rows, as_json)
    if not as_json:
        print(f"\n{parameters.full_command(sheet)}")


@app.command()
def run(
    notebook: Notebook,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME VALUE", help="A parameter: -p seeds '[0, 1]'. May be repeated."),
    ] = None,
    tier: Annotated[str | None, typer.Option(help="How much to run: ci, laptop or paper.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that gets a copy of results, page and manifest.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use; all cores by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again although the same run is finished.")] = False,
) -> None:
    """Execute a notebook and keep its page, its result rows and its manifest.

    The same run is executed once: with nothing changed the command says so and returns. A run that was
    stopped continues when the command is given again.
    """
    from screpro.records import execute, runner

    pairs = [tuple(p.split(_JOIN, 1)) for p in parameter or []]
    try:
        result = runner.run(notebook, pairs, tier=tier, out=out, threads=threads, force=force)
    except execute.RunFailed as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2 if error.fixable else 1) from None
    seconds = result.manifest["wall_seconds"]
    print(f"already done ({seconds:g} s then)" if result.reused else f"done in {seconds:g} s")
    print(f"page, results and manifest: {out or result.folder}")


@app.command()
def check(
    accept: Annotated[
        bool, typer.Option("--accept", help="Take the numbers that are there now as the accepted ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fail when a recorded number has left its accepted band, or a record does not hold together."""
    from screpro.records import check as checks

    if accept:
        print(f"{checks.accept()} bands written to {checks.bands_path()}")
    findings = checks.check()
    failed = [f for f in findings if not f.ok]
    if as_json:
        show([asdict(f) for f in findings], as_json)
    else:
        if failed:
            show([{k: v for k, v in asdict(f).items() if k != "ok"} for f in failed], as_json)
        runs = len({f.run for f in findings})
        print(f"{len(findings) - len(failed)} of {len(findings)} checks passed, {runs} runs looked at")
    if failed:
        raise typer.Exit(1)


@app.command()
def book(
    tier: Annotated[str, typer.Option(help="How much every notebook runs: ci, laptop or paper.")] = "ci",
    cores: Annotated[int | None, typer.Option(min=1, help="Cores to share; all by default.")] = None,
    profile: Annotated[str | None, typer.Option(help="Snakemake profile, for a cluster.")] = None,
) -> None:
    """Execute what changed and render the book."""
    from screpro import book as builder
    from screpro.records.results import TIERS

    if tier not in TIERS:
        raise ScreproError(f"tier is one of {', '.join(TIERS)}", got=tier, fix="choose one of them")
    raise typer.Exit(builder.build(tier=tier, cores=cores, profile=profile))


# --- data ------------------------------------------------------------------------------------------------


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the data sets: size, who uses them, whether they are here; then released weights and ontologies."""
    from screpro import data
    from screpro.data import released

    rows = [
        {
            "name": name,
            "title": entry.title,
            "cells": entry.cells or None,
            "genes": entry.genes or None,
            "used in": list(dict.fromkeys(use.paper for use in entry.used_in)),
            "where": data.available(name),
        }
        for name, entry in data.entries().items()
    ]
    nothing = {"cells": None, "genes": None}
    rows += [
        {"name": name, "title": own.title, **nothing, "used in": [own.paper], "where": released.available(name)}
        for name, own in released.entries().items()
    ]
    show(rows, as_json)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="Name in the registry.", show_default=False)]) -> None:
    """Download a data set, or weights or an ontology that others released, if they are not here, and check them."""
    from screpro import data
    from screpro.data import released

    if name in released.entries():
        for path in released.bring(name).values():
            print(path)
        return
    adata = data.load(name)
    print(f"{name}: {adata.n_obs} cells x {adata.n_vars} genes, sha256 {adata.uns['data_hash']}")


@data_app.command("verify")
def data_verify(
    name: Annotated[str | None, typer.Argument(help="Name in the registry; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the files that are here against their hashes, without downloading."""
    from screpro import data
    from screpro.data import released

    others = list(released.entries())
    names = [name] if name else [*data.entries(), *others]
    rows = [
        {"name": n, "file": f, "status": s} for n in names for f, s in (released if n in others else data).verify(n)
    ]
    show(rows, as_json)
    if any(row["status"].startswith("wrong") for row in rows):
        raise typer.Exit(1)


@data_app.command("describe")
def data_describe(
    source: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="Name in the registry, or an .h5ad.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Say what is in a data set or a file of your own, and what it can be used for; of a data set its licence too.

    Nothing is downloaded: of a data set that is not here the registry's facts are printed, and where to get it. Of
    released weights and ontologies the files are listed.
    """
    from screpro.data import fetch, released
    from screpro.data.describe import describe, describe_set
    from screpro.records.keys import is_file_name

    if source in released.entries():
        own = released.get(source)
        rows = [
            {"file": file.name, "what": own.title, "status": fetch.status(file), "address": file.url}
            for file in own.files
        ]
        show(rows, as_json)
        return
    found = describe(source) if is_file_name(source) else describe_set(source)
    print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False, default=str) if as_json else found)


# --- numbers ---------------------------------------------------------------------------------------------


@app.command()
def parity(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.npz...", help="Parity vectors.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare our network with the authors' on files of their weights, inputs and outputs.

    Prints, per output, the largest absolute difference over the largest absolute reference value; fails
    above 1e-4.
    """
    from screpro import parity as vectors

    rows = []
    for file in files:
        for row in vectors.check_file(file):
            agrees = bool(row.ratio <= vectors.TOLERANCE)  # not a number does not agree
            rows.append({"file": file.name, **row._asdict(), "agrees": agrees})
    show(rows, as_json)
    if not all(row["agrees"] for row in rows):
        raise typer.Exit(1)


@app.command()
def metrics(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="An .h5ad of real cells.", show_default=False)],
    generated: Annotated[
        Path, typer.Argument(metavar="GENERATED", help="An .h5ad of generated cells.", show_default=False)
    ],
    by: Annotated[str | None, typer.Option(help="Column of obs: scores inside each class too, and their mean.")] = None,
    perturbation: Annotated[str | None, typer.Option(help="Column of obs that names perturbations.")] = None,
    control: Annotated[str | None, typer.Option(help="Its value in control cells.")] = None,
    generated_control: Annotated[
        str | None, typer.Option(help="Its value in cells generated for the control condition: adds the null test.")
    ] = None,
    hvg: Annotated[
        int | None, typer.Option(help="Only this many variable genes (seurat_v3 on the real counts); all by default.")
    ] = None,
    suite: Annotated[str, typer.Option(help="scldm: distributions. celleval: perturbations. all: both.")] = "scldm",
    json_file: JsonFile = None,
) -> None:
    """Score generated cells against real ones, each score beside its ceiling and its floors."""
    from screpro import cli_metrics

    cli_metrics.run(
        real,
        generated,
        by=by,
        perturbation=perturbation,
        control=control,
        generated_control=generated_control,
        hvg=hvg,
        suite=suite,
        json_file=json_file,
    )


@app.command()
def bench(
    what: Annotated[
        str, typer.Argument(help="annotate, scldm, perturbdiff, kernels, or one operation, as in kernels-pca.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Time a part of the library against its peers, in one run. A file gets the machine's facts beside the rows.

    Peers come with the extra `bench`; one that is not installed is said to be not measured. Two need an
    environment of their own (pip install "pdex>=0.3" "pertpy==1.0.3" "statsmodels<0.15" filelock): name its Python in
    SCREPRO_PEER_PYTHON.
    """
    from screpro import bench as benchmarks
    from screpro.records import keys, timings

    rows = benchmarks.run(what)
    as_json = str(json_file) == STDOUT
    show(rows, as_json)
    if json_file and not as_json:
        timings.write_timings(json_file, what, plain(rows), device=keys.device_class())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this installation can do, what will be skipped, and why."""
    from screpro import doctor as clinic

    rows = clinic.examine()
    show(rows, as_json)
    if any(row["status"] == "problem" for row in rows):
        raise typer.Exit(1)


_JOIN = "\0"  # cannot occur in an argument


def pair_up(words: Sequence[str]) -> list[str]:
    """Join the two values of every ``-p NAME VALUE``: typer repeats options of one value only."""
    joined, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        joined.append(word)
        if word == "-p" and joined[0] == "run":
            if len(rest) < 2:
                raise ScreproError(
                    "-p takes a name and a value",
                    got=" ".join([word, *rest]),
                    fix="write -p NAME VALUE, e.g. -p seeds '[0, 1]'",
                )
            joined.append(rest.pop(0) + _JOIN + rest.pop(0))
    return joined


def complete_json(words: Sequence[str]) -> list[str]:
    """Say ``--json -`` where ``--json`` has no value: typer knows no option whose value may be left out."""
    completed = list(words)
    if completed[:1] in (["metrics"], ["bench"]):
        for at in reversed([at for at, word in enumerate(completed) if word == "--json"]):
            if completed[at + 1 : at + 2] == [] or completed[at + 1].startswith("--"):
                completed.insert(at + 1, STDOUT)
    return completed


def main() -> None:
    """Entry point: a user's error goes to stderr without a traceback, exit code 2."""
    try:
        app(args=complete_json(pair_up(sys.argv[1:])))
    except ScreproError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
