"""The Python of docs/data.md runs as it stands."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "data.md"


def test_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)  # noqa: S102
    assert len(blocks) == 4 and names["clients"].sizes().tolist() == [20, 0]
