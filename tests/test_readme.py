"""README stays true: its Python runs, its links exist, its test command is what CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    if "print(" in block:
        assert "nan" not in capsys.readouterr().out.lower()


def test_ci_runs_the_test_command():
    commands = re.findall(r"```sh\n(.*?)\n```", README, flags=re.DOTALL)
    tested = [command for command in commands if "pytest" in command]
    assert len(tested) == 1
    assert tested[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_relative_links_exist():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
