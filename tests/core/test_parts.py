"""Parts of a result, made in turns, kept by a killed run."""

import pytest
from accelerate.state import PartialState

from lcrec.core.parts import NOTE, make_parts


@pytest.fixture
def make(tmp_path):
    """Return a function that makes three parts and returns the numbers of those it had to make."""
    paths = [tmp_path / "parts" / str(number) for number in range(3)]

    def run(inputs="these", killed_at=None, **more):
        made = []

        def write(number, count_done):
            if number == killed_at:
                raise KeyboardInterrupt
            paths[number].write_text(str(number))
            made.append(number)
            count_done(1)

        state = PartialState(cpu=True)
        make_parts(
            paths, [1, 1, 1], write, inputs={"of": inputs}, state=state, desc="", unit="", **more
        )
        return made

    return run


def test_a_killed_run_goes_on(make, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        make(killed_at=2)
    assert make() == [2]
    assert "Going on: 2 of 3 parts are there." in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [NOTE, "0", "1", "2"]
    (tmp_path / "parts" / "1").unlink()  # lost
    assert make() == [1]


def test_parts_made_from_something_else_are_made_again(make, capsys):
    make()
    assert make("others", last_first=True) == [2, 1, 0]
    assert "Starting anew" in capsys.readouterr().out
