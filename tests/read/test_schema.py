import pyarrow as pa
import pytest

from curate.errors import InvalidInput
from curate.read import schema as sc

STRICT = pa.struct([pa.field("x", pa.list_(pa.field("item", pa.int64(), nullable=False)))])
LOOSE = pa.struct([pa.field("x", pa.list_(pa.int64()))])


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
)
def test_text_types(kind):
    assert sc.is_text(kind)


@pytest.mark.parametrize("kind", [pa.null(), pa.binary(), pa.list_(pa.string()), pa.int64()])
def test_other_types_are_not_text(kind):
    assert not sc.is_text(kind)


def test_order_metadata_and_nullability_may_differ():
    known = pa.schema([pa.field("a", pa.int64(), nullable=False), ("b", STRICT)], {b"k": b"v"})
    found = pa.schema([("b", LOOSE), ("a", pa.int64())])
    merged = sc.merge_alike(known, "one", found, "two")
    assert merged.names == ["a", "b"]
    assert merged.metadata == {b"k": b"v"}
    assert merged.field("a").nullable
    assert merged.field("b").type == LOOSE


def test_conform_reorders_and_casts_nested_nullability():
    rows = pa.array([{"x": [1, 2]}, {"x": []}], STRICT)
    batch = pa.record_batch({"b": rows, "a": pa.array([1, 2])})
    target = pa.schema([("a", pa.int64()), ("b", LOOSE)])
    got = sc.conform(batch, target)
    assert got.schema.equals(target)
    assert got.to_pylist() == [{"a": 1, "b": {"x": [1, 2]}}, {"a": 2, "b": {"x": []}}]


def test_conform_to_no_columns_keeps_the_row_count():
    got = sc.conform(pa.record_batch({"a": [1, 2, 3]}), pa.schema([]))
    assert (got.num_rows, got.num_columns) == (3, 0)


@pytest.mark.parametrize(
    "kind",
    [
        pa.map_(pa.string(), STRICT),
        pa.list_(pa.field("item", pa.int8(), nullable=False), 3),
        pa.large_list(pa.field("item", pa.int8(), nullable=False)),
        pa.list_view(pa.field("item", pa.int8(), nullable=False)),
        pa.large_list_view(pa.field("item", pa.int8(), nullable=False)),
        STRICT,
    ],
)
def test_relax_is_idempotent_and_changes_only_nullability(kind):
    assert sc.relax(kind) != kind
    assert sc.relax(sc.relax(kind)) == sc.relax(kind)
    assert sc.relax(kind).id == kind.id


@pytest.mark.parametrize(
    ("found", "name", "theirs", "ours"),
    [
        (pa.schema([("a", pa.string())]), "a", "string", "int64"),
        (pa.schema([("b", pa.int64())]), "a", "absent", "int64"),
        (pa.schema([("a", pa.int64()), ("z", pa.bool_())]), "z", "bool", "absent"),
    ],
)
def test_schema_differs(found, name, theirs, ours):
    with pytest.raises(InvalidInput) as caught:
        sc.merge_alike(pa.schema([("a", pa.int64())]), "one", found, "two")
    assert caught.value.problem == (
        f'Shard two has column "{name}" as {theirs}, but shard one has it as {ours}.'
    )
    assert caught.value.remedy == (
        "Make the columns of all shards alike, or run on shards of one kind."
    )


def test_inferred_schemas_are_promoted_and_united():
    first = pa.schema([("n", pa.int64()), ("u", pa.null()), ("l", pa.list_(pa.null()))])
    second = pa.schema([("n", pa.float64()), ("u", pa.string()), ("l", pa.list_(pa.string()))])
    merged = sc.merge_inferred([("one", first), ("two", second), ("3", pa.schema([("z", "bool")]))])
    assert merged == pa.schema(
        [("n", pa.float64()), ("u", pa.string()), ("l", pa.list_(pa.string())), ("z", pa.bool_())]
    )


def test_conflicting_inferred_schemas_name_the_shard_that_set_the_type():
    schemas = [pa.schema([("c", kind)]) for kind in (pa.null(), pa.int64(), pa.string())]
    with pytest.raises(InvalidInput) as caught:
        sc.merge_inferred(list(zip(("one", "two", "three"), schemas, strict=True)))
    assert caught.value.problem == (
        'Shard three has column "c" as string, but shard two has it as int64.'
    )


def test_two_columns_of_one_name():
    schema = pa.schema([("text", pa.string()), ("x", pa.int8()), ("x", pa.int8())])
    with pytest.raises(InvalidInput) as caught:
        sc.check_columns(schema, "one", role="pool", text_column="text", reserved=())
    assert caught.value.problem == 'Shard one has two columns named "x".'
