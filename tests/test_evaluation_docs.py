"""The Python of docs/evaluation.md runs as it stands."""

import re
import warnings
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()


def test_the_page_runs_and_says_what_is_undefined(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # validation says what its percentiles leave out
        exec(compile(code, "evaluation.md", "exec"), {})  # noqa: S102
    assert "auc undefined for 3 of 4 clients" in capsys.readouterr().out
