# The book as a graph of files: keys -> executed notebooks -> generated pages -> html.
#
#   snakemake --cores 4 --rerun-triggers mtime --config tier=ci       (`make book` does this, with a lock)
#   snakemake --profile my-cluster --config tier=laptop
#
# Key files are written while this file is read, and only where a notebook's content key changed; so the
# comparison of times below is one of content. See screpro/book.py.
import sys
from pathlib import Path

from screpro import book, book_atlas, book_pages

TIER = config.get("tier", "ci")
STALE = book.write_keys(tier=TIER)
EXECUTED = expand("notebooks/{notebook}.ipynb", notebook=book.notebooks())
# notebooks that run side by side divide the cores; one that runs alone gets them all
SHARE = max(1, (workflow.cores or 1) // max(1, len(STALE)))
PYTHON = sys.executable
SCREPRO = str(Path(sys.executable).with_name("screpro"))


wildcard_constraints:
    paper=r"[a-z_]+",
    name=r"[a-z0-9_]+",


rule book:
    input:
        "_build/html/.rendered",


rule notebook:
    input:
        "_build/keys/{paper}/{name}.json",
    output:
        "notebooks/{paper}/{name}.ipynb",
    params:
        aside="_build/executed/{paper}/{name}",
    threads: SHARE
    shell:
        'echo "book: {wildcards.paper}/{wildcards.name}, tier {TIER}, {threads} threads" && '
        # the copy beside the source is put in place in one step: a killed build leaves the old one or none
        "{SCREPRO:q} run {wildcards.paper}/{wildcards.name} --tier {TIER} --threads {threads} --out {params.aside}"
        " && cp {params.aside}/notebook.ipynb {params.aside}/page.ipynb"
        " && mv {params.aside}/page.ipynb {output}"


rule pages:
    input:
        EXECUTED,
        "_build/keys/pages.json",
    output:
        [f"book/generated/{page}" for page in (*book_pages.PAGES, *book_atlas.pages())],
    shell:
        'echo "book: pages from the records" && {PYTHON:q} -m screpro.book pages'


rule html:
    input:
        EXECUTED,
        rules.pages.output,
        "_build/keys/html.json",
    output:
        "_build/html/.rendered",
    shell:
        'echo "book: rendering" && {PYTHON:q} -m screpro.book render'
