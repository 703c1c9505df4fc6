"""Passwords in URLs are masked in what is printed or kept, and refused in what is kept to be read back."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from moco_dist import config
from moco_dist.errors import UserError, holds_password, masked, print_masked, reason, tell
from moco_dist.run import status

URLS = [
    ("https://user:hush@here/x", "https://***@here/x"),
    ("http://hush@here:3128", "http://***@here:3128"),
    (
        "a 'https://u:hu@sh@here' and docker://u:hush@img@sha256:12",
        "a 'https://***@here' and docker://***@img@sha256:12",
    ),
]
PLAIN = ["https://here/a@b", "docker://img:tag@sha256:12", "nvcr.io#nvidia/pytorch:25.01", "git@here:x", "a@b"]


@pytest.mark.parametrize(("text", "shown"), URLS)
def test_a_password_is_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    assert masked(text) == shown and holds_password(text)
    assert str(UserError.of("key", text, text, text)) == f"key = {shown}: {shown}; {shown}"
    assert reason(OSError(text)) == f"OSError: {shown}"
    status.write(tmp_path, "crashed", 1, text)
    assert status.read(tmp_path).reason == shown
    try:
        raise OSError(text)
    except OSError:
        print_masked(*sys.exc_info())  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith(f"OSError: {shown}\n")


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_password_stays(text: str) -> None:
    assert masked(text) == text and not holds_password(text)


def test_a_variable_of_the_shell_is_no_password() -> None:
    assert not holds_password("export HTTPS_PROXY=http://$USER:$PASSWORD@proxy http://$TOKEN@here")


def test_no_config_keeps_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "https://user:hush@here/x")
    for override in ("track.project=https://user:hush@here", "data.root=$PLACE", "run.init_from=http://hush@here"):
        with pytest.raises(UserError, match="holds a password, which has no place in a file") as caught:
            config.load(None, [override])
        assert "hush" not in str(caught.value)
    with pytest.raises(UserError, match=r"track\.tags = \[a, https://\*\*\*@here\]: holds a password"):
        config.load(None, values={"track.tags": ["a", "https://user:hush@here"]})  # a list, as a file may have it
    monkeypatch.setenv("WANDB_PROJECT", "https://user:hush@here")
    with pytest.raises(UserError, match=r"track\.project = https://\*\*\*@here: holds a password"):
        config.load(None)


def test_a_told_line_is_one_write_so_that_lines_of_several_ranks_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, content: Any) -> int:
            writes.append(bytes(content))
            return len(content)

    unbuffered = io.TextIOWrapper(Pipe(), write_through=True)  # type: ignore[arg-type]  # as PYTHONUNBUFFERED opens it
    monkeypatch.setattr(sys, "stderr", unbuffered)
    tell("a line")
    assert writes == [b"a line\n"]
