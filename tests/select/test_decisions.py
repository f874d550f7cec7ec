"""What a round decided, on its way to disk."""

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.select.decisions import _Buffer

SCHEMA = pa.schema([("number", pa.int64()), ("numbers", pa.list_(pa.int32()))])


def rows_from(first, count):
    numbers = range(first, first + count)
    lists = [list(range(number % 4)) for number in numbers]
    return pa.RecordBatch.from_pydict({"number": numbers, "numbers": lists}, SCHEMA)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 20), max_size=120), most=st.integers(1, 400))
def test_batches_are_held_in_few_tables_and_written_in_their_order(sizes, most):
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA) as writer, _Buffer(writer, most) as buffer:
        first = 0
        for size in sizes:
            buffer.add(rows_from(first, size), size)
            first += size
            assert sum(table.num_rows for table in buffer._held) < most
            assert len(buffer._held) <= most.bit_length() + 1
    written = pq.read_table(sink.getvalue())
    assert written.to_pylist() == rows_from(0, first).to_pylist()
