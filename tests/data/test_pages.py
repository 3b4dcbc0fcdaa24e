"""Values read out of parquet page by page are those that pyarrow reads, however the file was written."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import dice

from semiocity.data.sources import cells, pages, thrift
from semiocity.data.sources.pages import Column, Unsupported, read_column, read_value


def columns_of(path: Path, descriptor: int) -> list[list[Column]]:
    """Row group → column → its pages."""
    leaves = pq.ParquetFile(path).schema
    return [
        [
            read_column(descriptor, chunk, leaves.column(i).max_repetition_level, leaves.column(i).max_definition_level)
            for i, chunk in enumerate(group)
        ]
        for group in pages.row_groups(descriptor)
    ]


def check(path: Path, table: pa.Table, leaves: list[Any]) -> int:
    """Every value of every leaf; returns the number of pages."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pages, first = 0, 0
        for group in columns_of(path, descriptor):
            rows = sum(page.rows for page in group[0].pages)
            for leaf, column in zip(leaves, group, strict=True):
                pages += len(column.pages)
                for row in range(rows):
                    assert read_value(descriptor, column, row) == leaf[first + row]
            first += rows
        assert first == table.num_rows
        return pages
    finally:
        os.close(descriptor)


def test_values_are_those_of_pyarrow(tmp_path: Path) -> None:
    random = dice()
    for number in range(30):
        rows = random.randrange(1, 60)
        pool = [random.randbytes(random.choice([0, 1, 100, 5000])) for _ in range(20)]
        given = [None if random.random() < 0.2 else random.choice(pool) for _ in range(rows)]
        path = tmp_path / f"{number}.parquet"
        nested = [None if value is None else {"bytes": value, "path": str(i)} for i, value in enumerate(given)]
        some = [value or b"" for value in given]
        paths = [None if value is None else str(i).encode() for i, value in enumerate(given)]
        required = pa.schema([pa.field("x", pa.binary(), nullable=False)])
        forms: list[tuple[pa.Table, list[Any]]] = [
            (pa.table({"x": pa.array(given, pa.binary())}), [given]),
            (pa.table({"x": some}, schema=required), [some]),
            (pa.table({"x": pa.array(nested, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}), [given, paths]),
        ]
        table, leaves = random.choice(forms)
        options: dict[str, Any] = {
            "compression": random.choice(["none", "snappy", "zstd", "gzip", "brotli"]),
            "data_page_version": random.choice(["1.0", "2.0"]),
            "use_dictionary": random.random() < 0.5,
            "data_page_size": random.choice([100, 10_000, 1 << 20]),
            "write_batch_size": random.choice([1, 5, 1024]),
            "row_group_size": random.choice([7, 1000]),
            "write_page_index": random.random() < 0.5,
        }
        pq.write_table(table, path, **options)
        print(number, rows, options)
        check(path, table, leaves)


def test_what_datasets_writes_is_cut_into_pages(tmp_path: Path) -> None:
    random = dice()
    given = [random.randbytes(100_000) for _ in range(40)]
    table = pa.table({"x": given})
    pq.write_table(table, tmp_path / "x.parquet", use_content_defined_chunking=True)
    assert check(tmp_path / "x.parquet", table, [given]) > 2
    descriptor = os.open(tmp_path / "x.parquet", os.O_RDONLY)
    column = columns_of(tmp_path / "x.parquet", descriptor)[0][0]
    os.close(descriptor)
    assert column.bytes_read([3]) < 2_700_000 < column.bytes_read(list(range(40)))


def test_what_is_not_read_by_pages_is_said(tmp_path: Path) -> None:
    for name, table, options in (
        ("list", pa.table({"x": [[b"a"], [b"b", b"c"]]}), {}),
        ("number", pa.table({"x": [1, 2]}), {}),
        ("delta", pa.table({"x": [b"a", b"b"]}), {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
        ("lz4", pa.table({"x": [b"a", b"b"]}), {"compression": "lz4"}),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, **options)
        descriptor = os.open(path, os.O_RDONLY)
        with pytest.raises(Unsupported):
            columns_of(path, descriptor)
        os.close(descriptor)


def test_damage_never_gives_more_than_an_error(tmp_path: Path) -> None:
    random = dice()
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [random.randbytes(300) for _ in range(20)]}), sink, compression="none")
    whole = sink.getvalue()
    path = tmp_path / "x.parquet"
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for number in range(400):
        data = bytearray(whole)
        for _ in range(random.randrange(1, 5)):
            data[random.randrange(*((4, footer) if number % 2 else (footer, len(whole))))] = random.randrange(256)
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for group in columns_of(path, descriptor):
                for row in range(20):
                    value = read_value(descriptor, group[0], row)
                    assert value is None or len(value) <= len(whole)
        except (ValueError, IndexError, OSError, Unsupported, pa.ArrowException):
            pass
        finally:
            os.close(descriptor)


def test_a_damaged_index_ends_at_once() -> None:
    with pytest.raises(ValueError, match="a value is cut"):
        pages._plain(b"\x01\0\0\0a", 2**60)
    with pytest.raises(ValueError, match="indices are damaged"):
        pages._hybrid(b"\xff" * 40, 255, 3)
    with pytest.raises(IndexError):
        thrift._item(b"\xf7" + b"\xff" * 8 + b"\x7f", 0, 9)


def test_a_codec_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """pyarrow's own metadata would end the process."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": [b"a" * 100, b"b"]}), path, compression="zstd")
    whole = bytearray(path.read_bytes())
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    whole[whole.index(b"x\x15\x0c", footer) + 2] = 0x7E  # after the column's path: codec 6, zstd
    path.write_bytes(whole)
    with path.open("rb") as file:
        ((chunk,),) = pages.row_groups(file.fileno())
        assert chunk.codec == 63
        with pytest.raises(Unsupported):
            read_column(file.fileno(), chunk, 0, 1)
        with pytest.raises((OSError, pa.ArrowException)):
            next(cells._parquet(file.fileno(), file, "x", [0]))
