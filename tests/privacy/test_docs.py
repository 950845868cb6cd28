"""The Python of docs/privacy.md runs as it stands."""

import re
from pathlib import Path

from tests.helpers import needs_tf_privacy

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()


@needs_tf_privacy
def test_the_page_runs():
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "privacy.md", "exec"), {})  # noqa: S102
