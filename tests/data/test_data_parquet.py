"""The Parquet form of a data folder."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lcrec.data.folder
from lcrec.core.errors import InputError
from lcrec.data.folder import load_interactions, load_items, read_lists, write_lists, write_texts


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=9))
def test_lists_come_back_from_several_parts(tmp_path_factory, sequences):
    path = tmp_path_factory.mktemp("lists") / "Shop.inter.parquet"
    offsets = np.cumsum([0, *map(len, sequences)])
    ids = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    users = [f"u{user}" for user in range(len(sequences))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcrec.data.folder, "PART_USERS", 2)
        write_lists(path, users, {"items": (offsets, ids)})
    assert len(list(path.iterdir())) == (len(users) + 1) // 2
    read_users, [(read_offsets, read_ids)] = read_lists(path, ["items"])
    assert read_users == users
    np.testing.assert_array_equal(read_offsets, offsets)
    np.testing.assert_array_equal(read_ids, ids)
    assert (read_offsets.dtype, read_ids.dtype) == (np.int64, np.int32)


def test_a_data_folder(tmp_path):
    write_lists(
        tmp_path / "Shop.inter.parquet", ["0"], {"items": (np.array([0, 3]), np.array([1, 0, 1]))}
    )
    texts = pa.table({"title": ["Desk", ""], "description": ["", "A lamp."]})
    write_texts(tmp_path / "Shop.item.parquet", texts)
    items = load_items(tmp_path)
    assert items.fields == texts.to_pylist()
    interactions = load_interactions(tmp_path, len(items))
    assert (interactions.users, interactions.sequence(0).tolist()) == (["0"], [1, 0, 1])
    with pytest.raises(InputError, match=r"Shop.inter.parquet: item 1 is not in the catalogue"):
        load_interactions(tmp_path, 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["0"]}, "no column 'items'"),
        ({"user": ["0"], "items": [3]}, "column 'items' holds int64; lists of numbers"),
        ({"user": ["0"], "items": [["3"]]}, "column 'items' holds list.*; lists of numbers"),
        ({"user": ["0"], "items": [[None, 1]]}, "column 'items' is empty in some row"),
        ({"user": ["0"], "items": [[-1]]}, "column 'items' holds -1 to -1"),
        ({"user": ["0"], "items": [[2**31]]}, "column 'items' holds 2147483648"),
        ({"user": [0], "items": [[1]]}, "column 'user' must hold text"),
        ({"user": ["0", "0"], "items": [[1], [2]]}, "a user stands there twice"),
    ],
)
def test_bad_files(tmp_path, columns, message):
    path = tmp_path / "Shop.inter.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=message):
        read_lists(path, ["items"])


def test_what_is_no_parquet(tmp_path):
    path = tmp_path / "Shop.inter.parquet"
    with pytest.raises(InputError, match="no such file"):
        read_lists(path, ["items"])
    path.write_text("user,items\n")
    with pytest.raises(InputError, match=r"Shop.inter.parquet: cannot be read as Parquet"):
        read_lists(path, ["items"])
