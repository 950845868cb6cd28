"""The Python of docs/runs.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "runs.md").read_text()


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "runs.md", "exec"), {})  # noqa: S102
    named = set(re.findall(r"^\| `(\S+)` \|", PAGE, re.MULTILINE)) - {"releases.jsonl"}
    found = {path.name.replace("000003", "000012") for path in (tmp_path / "run").iterdir()}
    assert named <= found
