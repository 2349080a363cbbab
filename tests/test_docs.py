"""Documentation stays true: it builds without warnings, and its code prints what it says."""

import doctest
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

import ergodax as ex

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
# A block of ours, and the text that directly follows it: what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?(?!\w)")
WITH_CODE = [name for name, text in PAGES.items() if BLOCK.search(text)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The HTML pages, built once, with every warning an error."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    finished = subprocess.run(
        [*command, str(DOCS), str(out)], capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return out


def assert_prints(found, expected):
    """The same words; numbers to one per cent, as other processors round differently."""
    assert NUMBER.sub("#", found).split() == NUMBER.sub("#", expected).split()
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_CODE if name != "howto/cores.md"])
def test_code_prints_what_the_page_says(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for code, expected in BLOCK.findall(PAGES[name]):
        exec(compile(code, name, "exec"), namespace)
        printed = capsys.readouterr().out
        assert "nan" not in printed.lower()
        if expected:
            assert_prints(printed, expected)
    jax.clear_caches()


@pytest.mark.slow
def test_code_that_must_come_first_in_a_program():
    ((code, expected),) = BLOCK.findall(PAGES["howto/cores.md"])
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert_prints(finished.stdout, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        test
        for module in (
            "averaged.flow",
            "simulation.simulate",
            "averaged.rest_points",
            "games.matrix",
        )
        for test in doctest.DocTestFinder().find(importlib.import_module(f"ergodax.{module}"))
        if test.examples
    ],
    ids=lambda test: test.name,
)
def test_examples_of_docstrings(test):
    test.globs |= {"ex": ex, "jax": jax}
    report = io.StringIO()
    failed, tried = doctest.DocTestRunner().run(test, out=report.write)
    assert tried
    assert not failed, report.getvalue()


def test_only_code_of_others_is_not_run():
    for name, text in PAGES.items():
        fences = set(re.findall(r"^```(\S+)", text, re.MULTILINE)) - {"python", "text", "sh"}
        fences -= {"{toctree}", "{include}", "{eval-rst}"}
        assert fences <= ({"{code-block}"} if name == "coming-from.md" else set()), name


def test_comparison_of_printed_texts():
    assert_prints("a [1.001 2] b", "a [1 2.0]  b")
    for wrong in ("a [1.02 2] b", "c [1 2] b", "a [1 2] b d", "a [1 2 3] b"):
        with pytest.raises(AssertionError):
            assert_prints(wrong, "a [1 2.0] b")


@pytest.mark.slow
def test_pages_build_without_warnings(built):
    for name in PAGES:
        assert (built / name).with_suffix(".html").exists()


@pytest.mark.slow
def test_pages_need_no_network(built):
    """Formulas are MathML; scripts, styles and pictures lie beside the pages."""
    for page in built.rglob("*.html"):
        text = page.read_text()
        assert re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(?:https?:)?//", text) == []
        assert r"\(" not in text
    assert (built / "theory.html").read_text().count("<math") > 50


def test_formulas_group_their_numbers():
    """TeX takes one digit, the converter to MathML the whole number: `x^12`, `\\frac12`."""
    for name, text in PAGES.items():
        assert re.findall(r"(?:frac|[\^_])\d\d", re.sub(r"`[^`]*`", "", text)) == [], name


@pytest.mark.slow
def test_names_on_pages_are_linked(built):
    page = (built / "howto" / "cores.html").read_text()
    assert 'href="../api.html#ergodax.simulate"' in page
    assert 'href="../api.html#ergodax.use_all_cores"' in page


@pytest.mark.slow
def test_notebooks_are_on_the_site(built):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = (built / "notebooks" / notebook.name).with_suffix(".html")
        assert f"notebooks/{page.name}" in (built / "index.html").read_text()
        assert "<img" in page.read_text()


@pytest.mark.slow
def test_reference_has_every_public_name(built):
    page = (built / "api.html").read_text()
    public = [
        name
        for name in ex.__all__
        if not name.startswith("_")
        and (not isinstance(getattr(ex, name), ModuleType) or name in ("games", "io", "plot"))
    ]
    assert len(public) > 40
    missing = [
        name
        for name in public
        if f'id="ergodax.{name}"' not in page and f'id="module-ergodax.{name}"' not in page
    ]
    assert missing == []


def test_contributing_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`(\w+\.py|\w+/)`", text.split("## Where things are")[1]))
    source = ROOT / "src" / "ergodax"
    modules = {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    modules |= {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert modules == named
    for path in re.findall(r"`((?:tests|docs|benchmarks|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
