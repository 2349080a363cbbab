"""Matrix games from tables."""

import sys

import numpy as np
import pytest

from ergodax import games

DILEMMA = """row,column,payoff row,payoff column
C, C,3,3
C,D,0,5
D,C,5,0

D,D,1,1
"""


def write(tmp_path, text):
    path = tmp_path / "payoffs.csv"
    path.write_text(text)
    return path


def test_a_csv_file_is_a_game(tmp_path):
    found, expected = games.from_table(write(tmp_path, DILEMMA)), games.symmetric()
    np.testing.assert_array_equal(found.rewards, expected.rewards)
    assert found.state_names == expected.state_names
    assert games.from_table(str(tmp_path / "payoffs.csv"), memory=0).num_states == 1


def test_three_agents_in_a_dictionary_of_columns():
    index = np.indices((2, 3, 2)).reshape(3, -1)
    payoffs = np.random.default_rng(0).normal(size=(3, 12))
    columns = {f"agent {i}": index[i] for i in range(3)} | {
        f"pays {i}": payoffs[i] for i in range(3)
    }
    game = games.from_table(columns, memory=0)
    np.testing.assert_array_equal(game.rewards[0, ..., 0, :], payoffs.T.reshape(2, 3, 2, 3))
    assert game.action_names == (("0", "1"), ("0", "1", "2"), ("0", "1"))


def test_a_data_frame_is_a_game():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"a": ["x", "y"], "b": ["z", "z"], "p": [1, 2], "q": [3, 4]})
    game = games.from_table(frame, memory=0)
    np.testing.assert_array_equal(game.rewards[0, :, 0, 0], [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,p\nx,y,1\n", "two columns per agent.*found 3: a, b, p"),
        ("a,b,p,q\nx,y,1,one\n", r"row 1: payoffs must be numbers; found \['1', 'one'\]"),
        ("a,b,p,q\nx,y,1,2\nx,y,1,2\n", "row 2: x-y stands there before"),
        ("a,b,p,q\nx,y,1,2\nz,w,1,2\n", "no row for x-w"),
        ("a,b,p,q\nx,y,1\n", "row 1: 4 entries needed, found 3"),
        ("a,b,p,q\n", "no row for any joint action"),
        ("", "found 0"),
        ("a,b,p,q\nx,y,nan,2\n", "row 1: payoffs must be numbers"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        games.from_table(write(tmp_path, text))


def test_what_is_no_table():
    with pytest.raises(ValueError, match="must be a data frame"):
        games.from_table(3)


@pytest.fixture
def gambit():
    """The optional package that reads and writes Gambit's files."""
    return pytest.importorskip("pygambit", reason="pygambit is not installed (ergodax[gambit])")


def test_games_go_through_gambit(tmp_path, gambit):
    tables = tuple(np.random.default_rng(0).normal(size=(3, 2, 3, 2)))
    game = games.repeated(tables, action_names=[["a", "b"], ["c", "d", "e"], ["f", "g"]])
    games.write_nfg(game, tmp_path / "three.nfg", title="three")
    found = games.read_nfg(tmp_path / "three.nfg")
    np.testing.assert_array_equal(found.rewards, game.rewards)
    assert found.action_names == game.action_names
    assert gambit.read_nfg(tmp_path / "three.nfg").title == "three"


def test_what_gambit_cannot_hold(tmp_path, gambit):
    with pytest.raises(ValueError, match="payoffs depend on the state"):
        games.write_nfg(games.two_state_dilemma(), tmp_path / "game.nfg")
    (tmp_path / "game.nfg").write_text("NFG 1 oops")
    with pytest.raises(ValueError, match="no game in strategic form"):
        games.read_nfg(tmp_path / "game.nfg")


def test_without_gambit_the_way_to_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygambit", None)
    with pytest.raises(ImportError, match=r"ergodax\[gambit\]"):
        games.read_nfg(tmp_path / "game.nfg")
