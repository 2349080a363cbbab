"""Public results and their labels are what they were before the package was put into folders."""

import json

import numpy as np
import pytest

import public_results


@pytest.fixture(scope="module")
def collected():
    return public_results.collect()


@pytest.mark.slow
def test_numbers(collected):
    numbers, _ = collected
    with np.load(public_results.DATA / "public_results.npz") as expected:
        assert numbers.keys() == set(expected.files)
        worst = {}
        for name, value in numbers.items():
            before = expected[name]
            assert value.shape == before.shape
            size = np.abs(before[np.isfinite(before)]).max(initial=0.0)
            same = (value == before) | (np.isnan(value) & np.isnan(before))
            gap = np.where(same, 0.0, np.abs(value - before)).max(initial=0.0)
            # float32 results are equal to the precision of float32
            limit = 1e-6 if "float32" in name else 1e-12
            if not gap <= limit * size:
                worst[name] = gap / size
        assert not worst


@pytest.mark.slow
def test_labels(collected):
    _, results = collected
    expected = json.loads((public_results.DATA / "public_labels.json").read_text())
    found = {name: public_results.labels_of(result) for name, result in results.items()}
    assert json.loads(json.dumps(found)) == expected
