"""The reader of examples itself: a page whose examples are overlooked would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import blocks, matches

PAGE = """\
# Title

<!-- smoke: train.steps=1 -->
```console
$ trivium train a.yaml \\
    b=1
the trained model ... in runs
$ ls
```

<!-- skip: needs a network -->

```console
$ curl x
```

Text ends the reach of a comment.

```yaml title="a.yaml"
name: a
```

1. inside a list

    ```python
    print(1)
    ```
"""


def test_blocks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    console, skipped, titled, indented = blocks(page)
    assert console.commands() == [
        ("trivium train a.yaml b=1", ["the trained model ... in runs"]),
        ("ls", []),
    ]
    assert console.comments == {"smoke": "train.steps=1"}
    assert skipped.skipped
    assert (titled.title, titled.text, titled.comments) == ("a.yaml", "name: a\n", {})
    assert (indented.language, indented.text) == ("python", "print(1)\n")


@pytest.mark.parametrize(
    ("expected", "output", "good"),
    [
        (["a ... c"], "x\na b c\n", True),
        (["a", "c"], "a\nb\nc", True),
        (["c", "a"], "a\nb\nc", False),
        (["a+b"], "aab", False),
        ([], "anything", True),
    ],
)
def test_expected_output(expected: list[str], output: str, good: bool) -> None:
    assert matches(expected, output) is good
