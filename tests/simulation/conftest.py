"""What the tests of the simulator share."""

import pytest

from helpers import random_case

pytest.register_assert_rewrite("reference")


@pytest.fixture
def small():
    return random_case(60, 3, (2, 2), ("q", "q"), "state_action")
