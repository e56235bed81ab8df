"""Numbers of users and items, against the same done by hand."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lcrec.prepare.folder
from lcrec.prepare.engines import store
from lcrec.prepare.folder import number, sort_interactions

ACTIONS = st.tuples(st.sampled_from("abcdé"), st.sampled_from("xyzÿ01"), st.integers(0, 3))


def by_hand(actions):
    """Return raw ids of users and items by number, and each user's items and times."""
    began = {}
    for user, _, time in actions:
        began[user] = min(time, began.get(user, time))
    users = sorted(began, key=lambda user: (began[user], user.encode()))
    items, sequences, times = {}, [], []
    for user in users:
        own = [(time, item.encode(), item) for who, item, time in actions if who == user]
        sequences.append([items.setdefault(item, len(items)) for *_, item in sorted(own)])
        times += [time for time, *_ in sorted(own)]
    return users, list(items), sequences, times


@settings(max_examples=8)
@given(st.lists(ACTIONS, min_size=1, max_size=30))
@pytest.mark.parametrize("batch", [2, 1000])
def test_numbers_go_by_time_and_then_by_raw_id(con, tmp_path_factory, batch, actions):
    columns = dict(zip(("user", "item", "time"), zip(*actions, strict=True), strict=True))
    table = store(con, pa.table({name: list(column) for name, column in columns.items()}))
    folder = tmp_path_factory.mktemp("sorted") / "new"
    sort_interactions(table, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcrec.prepare.folder, "BATCH", batch)
        found = number(folder)
    users, items, sequences, times = by_hand(actions)
    assert found.user_ids.to_pylist() == users
    assert found.item_ids.to_pylist() == items
    cuts = found.offsets.tolist()
    assert [found.items[a:b].tolist() for a, b in itertools.pairwise(cuts)] == sequences
    assert found.times.tolist() == times
    assert not found.is_date
