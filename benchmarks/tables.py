"""Write the tables in the documents from their records, so that no figure is typed by hand.

Run:     python benchmarks/tables.py
A table is between `<!-- table: RECORD.json -->` and `<!-- end of table -->` in any Markdown file. A record may hold
more than one: `RECORD.json#NAME`; of a run's results, `#methods` are the methods side by side.
"""

import json
import re
from pathlib import Path

from deploy import load_record, table_from_record
from experiment.report import methods_markdown, table_markdown

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: ([^\s#]+)#?(\S*) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """Return the document with every table rewritten from its record; record paths are relative to the project root."""
    return BLOCK.sub(lambda match: f"{match[1]}{_table(ROOT / match[2], match[3]).strip()}\n{match[4]}", text)


def documents() -> list[Path]:
    """Return the Markdown files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]


def _table(record: Path, name: str) -> str:
    content = json.loads(record.read_text())
    if name == "methods":
        return methods_markdown(content)
    content = content[name] if name else content
    if "columns" in content:
        return _markdown([content["columns"], ["---"] * len(content["columns"]), *content["table"]])
    return table_markdown(content) if "rows" in content else table_from_record(load_record(record))


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    for document in documents():
        document.write_text(with_tables(document.read_text()))
