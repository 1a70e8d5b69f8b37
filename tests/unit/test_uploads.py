"""What is made of an uploaded table, and what is said about tables that are none."""

import numpy as np
import pytest

from tutti.adapters.uploads import inferred
from tutti.core.errors import UserError

TABLE = b"""age,colour,note,constant,empty,sick
40,red,a b,1,,yes
50,blue,c d,1,,no
?,,e f,1,NA,no
60,red,g h,1,,yes
70,red,i j,1,,
"""


def test_columns_are_inferred_and_reported():
    table = inferred(TABLE, "sick")
    assert (table.schema.task, table.schema.outputs, table.schema.classes) == ("classification", 2, ("no", "yes"))
    assert table.schema.features[:4] == ("age", "colour=(empty)", "colour=blue", "colour=red")
    assert table.rows.y.tolist() == [1, 0, 0, 1]
    assert table.dropped == 1
    np.testing.assert_allclose(table.rows.x[:, 0], [-np.sqrt(1.5), 0, 0, np.sqrt(1.5)], atol=1e-6)
    assert table.rows.x[:, 1:4].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    said = {column.name: (column.role, column.missing) for column in table.report}
    assert said == {
        "sick": ("target", 0),
        "age": ("number", 1),
        "colour": ("category", 1),
        "note": ("category", 0),
        "constant": ("left out", 0),
        "empty": ("left out", 4),
    }


def test_the_last_column_is_the_target_and_numbers_are_a_regression():
    rows = b"".join(b"%d,%d.5\n" % (i, 2 * i) for i in range(30))
    table = inferred(b"a,b\n" + rows)
    assert (table.schema.task, table.schema.outputs, table.schema.classes) == ("regression", 1, ())
    assert table.rows.y[:2].tolist() == [[0.5], [2.5]]
    assert table.rows.y.dtype == np.float32


def test_the_task_can_be_said():
    rows = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i % 3) for i in range(30))
    assert inferred(rows).schema.task == "classification"
    assert inferred(rows, task="regression").schema.task == "regression"


def test_many_words_are_left_out():
    rows = b"name,a,b\n" + b"".join(b"n%d,%d,%d\n" % (i, i, i % 2) for i in range(40))
    table = inferred(rows)
    assert table.schema.features == ("a",)
    assert [c.note for c in table.report if c.name == "name"] == ["40 different words"]


@pytest.mark.parametrize(
    ("body", "target", "says"),
    [
        (b"", "", "expected a header and at least two rows"),
        (b"a,b\n1,2\n", "", "expected a header and at least two rows"),
        (b"a,b\n1,2\n3\n", "", "row 3: expected 2 columns, came 1"),
        (b"a,b\n1,2\n3,4,5\n", "", "row 3: expected 2 columns, came 3"),
        ("a,b\n1,ä\n2,b\n".encode("latin-1"), "", "expected text in UTF-8; byte 6"),
        (b"a,b\n1,x\n2,x\n", "", "every row is 'x'"),
        (b"a,b\n1,x\n2,y\n", "c", "there is no column 'c'; the columns are: a, b"),
        (b"a,a\n1,x\n2,y\n", "", "each once"),
        (b"a,b\n1,\n2,?\n", "", "every target is missing"),
        (b"a,b\n1,1\n1,2\n", "", "no column is left to learn from: a: every cell is 1"),
        (b"a;b\n1;2\n3;4\n", "", "separated by commas"),
        (b'a,b\n1,"2\n3,4\n', "", "cannot be read as CSV"),
    ],
)
def test_tables_that_cannot_be_learnt_from(body, target, says):
    with pytest.raises(UserError, match=says):
        inferred(body, target)


def test_a_regression_on_words_is_refused():
    with pytest.raises(UserError, match="expected numbers for a regression, came words"):
        inferred(b"a,b\n1,x\n2,y\n", task="regression")
