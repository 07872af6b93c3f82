import json

import pytest
from tables import with_tables

RECORD = {"columns": ["a"], "table": [["1"]], "long": {"columns": ["a", "b"], "table": [["1", "2"]]}}


@pytest.mark.parametrize(
    ("name", "rows"), [("", "| a |\n| --- |\n| 1 |"), ("#long", "| a | b |\n| --- | --- |\n| 1 | 2 |")]
)
def test_a_record_may_hold_more_than_one_table(tmp_path, name, rows):
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    mark = f"<!-- table: {tmp_path}/record.json{name} -->\n"
    assert with_tables(f"{mark}<!-- end of table -->") == f"{mark}{rows}\n<!-- end of table -->"
