"""The examples of the public names' docstrings and of docs/api.md run, in a folder with a tiny run."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moco_dist

DOCUMENT = Path(__file__).parents[1] / "docs" / "api.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_of(name: str) -> list[doctest.DocTest]:
    """Return the examples in the docstrings of a public name and of its members."""
    docstrings = doctest.DocTestFinder(exclude_empty=True).find(getattr(moco_dist, name), name, module=False, globs={})
    return [examples for examples in docstrings if examples.examples]


def run(examples: doctest.DocTest) -> None:
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    runner.run(examples, out=printed.append)
    assert not runner.failures and runner.tries, "".join(printed)


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in a folder of its own, where the run of the examples is done: `fit` returns it at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        patch.setenv("WANDB_MODE", "disabled")
        for examples in examples_of("fit"):
            run(examples)
        yield


def works(value: Any) -> bool:
    """Return whether a public name does something that an example can show."""
    return inspect.isroutine(value) or (inspect.isclass(value) and not issubclass(value, Exception))


@pytest.mark.parametrize("name", [name for name in moco_dist.__all__ if works(getattr(moco_dist, name))])
def test_the_examples_of_a_docstring_run(name: str) -> None:
    examples = examples_of(name)
    assert examples, f"the docstring of moco_dist.{name} has no example"
    for of_member in examples:
        run(of_member)


def test_the_examples_of_the_document_run() -> None:
    text = DOCUMENT.read_text()
    examples = doctest.DocTestParser().get_doctest(text, {}, DOCUMENT.name, str(DOCUMENT), 0)
    assert text.count("\n    >>> ") == len(examples.examples)
    run(examples)


def test_an_example_can_fail() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    with pytest.raises(AssertionError, match="Expected"):
        run(example)
