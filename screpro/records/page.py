"""From an executed notebook to the page a reader sees: parameter sheet, clean outputs, provenance."""

from collections.abc import Mapping
from typing import Any

from screpro.records import parameters, sources
from screpro.records.parameters import Sheet

__all__ = ["assemble", "provenance", "sheet_table"]


def assemble(fresh: Any, executed: Any, sheet: Sheet, values: Mapping[str, Any], manifest: Mapping[str, Any]) -> Any:
    """Outputs of `executed` in the cells of `fresh`, plus the sheet and the footer.

    `fresh` is the source as it reads now: its prose may have changed since the run, its code cannot have
    (the key covers it), so code cells correspond one to one.
    """
    from nbformat.v4 import new_markdown_cell

    # earlier additions of this function are markdown and errors of papermill are gone from a finished run
    done = iter([cell for cell in executed.cells if cell.cell_type == "code"])
    cells = []
    for cell in fresh.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        ran = next(done)
        cell.outputs = [clean(o) for o in ran.outputs if o.get("name") != "stderr"]
        cell.execution_count = ran.execution_count
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = sources.merge(cell.source, values)
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cells.append(new_markdown_cell(sheet_table(sheet, values)))
    cells.append(new_markdown_cell(provenance(manifest)))
    fresh.cells = cells
    return fix_ids(fresh)


def fix_ids(notebook: Any) -> Any:
    """Number the cells, so that the same run writes the same bytes."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def clean(output: Any) -> Any:
    """An output without the times that the execution tools add to its metadata."""
    if "metadata" in output:
        output.metadata.pop("papermill", None)
    return output


def sheet_table(sheet: Sheet, values: Mapping[str, Any]) -> str:
    """The parameter sheet as markdown, with the command that runs the notebook with these values."""
    lines = ["| parameter | value | meaning |", "|---|---|---|"]
    for p in sheet.parameters:
        value = _code(values[p.name])
        if values[p.name] != p.default:
            value += f" (default {_code(p.default) or 'empty'})"
        meaning = f"{p.meaning} ({': '.join(filter(None, [f'`{p.type}`', p.range]))})"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{p.name}`", value, meaning)) + " |")
    lines += [
        "",
        "Run it with other values:",
        "",
        "```bash",
        parameters.command(sheet, values) + " -p NAME VALUE",
        "```",
    ]
    return "\n".join(lines)


def _code(value: Any) -> str:
    return f"`{parameters.to_text(value)}`" if value != "" else ""


def provenance(manifest: Mapping[str, Any]) -> str:
    """The footer of a page: where its numbers come from and how to get them again."""
    commit = manifest["commit"] or "not under version control"
    if manifest["commit"] and manifest["dirty"]:
        commit += " with local changes"
    data = ", ".join(f"{name} `{sha[:12]}`" for name, sha in manifest["data"].items()) or "none"
    values = ", ".join(f"`{n}={parameters.to_text(v)}`" for n, v in manifest["parameters"].items()) or "none"
    rows = [
        ("run", f"`{manifest['run_id']}`"),
        ("tier", manifest["tier"]),
        ("commit", f"`{commit}`" if manifest["commit"] else commit),
        ("parameters", values),
        ("data", data),
        ("device", f"{manifest['device']} ({manifest['device_name']}), {manifest['threads']} threads"),
        ("time", f"{manifest['wall_seconds']:.0f} s, peak memory {manifest['peak_memory_mib']:.0f} MiB"),
        ("started", manifest["started"]),
    ]
    body = "\n".join(f"- {name}: {text}" for name, text in rows)
    return (
        f":::{{admonition}} Provenance\n:class: screpro-provenance\n\n{body}\n\n"
        f"```bash\n{manifest['command']}\n```\n:::"
    )
