"""The checks of `python -m tests.gpu`: on a GPU where there is one, and as a small variant on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import GPUS, VISIBLE_GPUS
from tests.gpu import __main__ as command
from tests.gpu.__main__ import CHECKS
from tests.gpu.result import Result, Setting
from tests.jobs import ROOT

IN_ONE_PROCESS = [name for name, module in CHECKS.items() if module == "numbers"]


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="there is no GPU here")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    if VISIBLE_GPUS is not None:
        environment["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS
    process = subprocess.run(
        [sys.executable, "-m", "tests.gpu", name], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_a_small_variant_on_the_cpu(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.report(name, "cpu", tmp_path / "no recordings")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"ok   {name} ")


def test_a_check_that_fails_or_dies_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(args: list[str], **_: object) -> subprocess.Popen[str]:
        script = {
            "traces": "print('ok   traces          1 s  7 traces')",
            "memory": "print('FAIL memory          1 s  ratio 2'); raise SystemExit(1)",
            "waits": "import os, sys; print('the loop waited', file=sys.stderr, flush=True); os.abort()",
            "overflow": "import time; time.sleep(60)",
        }[args[3]]
        return popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, start_new_session=True)

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr(command, "LIMIT_SECONDS", 2)
    assert command.main(["waits", "memory", "overflow", "traces", "--device", "cpu", "--jobs", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:2] for line in lines[:4]] == [
        ["FAIL", "waits"],
        ["FAIL", "memory"],
        ["FAIL", "overflow"],
        ["ok", "traces"],
    ]
    assert "the loop waited" in lines[0] and "still running after 2 s" in lines[2]
    assert lines[4].startswith("4 checks, failed: waits, memory, overflow,")


def test_a_check_that_does_not_pass_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.gpu import numbers

    monkeypatch.setattr(numbers, "traces", lambda setting: Result(False, "too far apart"))
    assert not command.report("traces", "cpu", tmp_path)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "there is no CUDA device here; --device cpu" in capsys.readouterr().err


def test_a_name_that_is_no_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["learnin"])
    assert end.value.code == 2 and "learnin is no check" in capsys.readouterr().err


def test_neither_the_stand_in_nor_an_optional_package_is_needed() -> None:
    """The stand-in would be torch's accelerator, in the place of the GPU."""
    script = "import sys; import tests.gpu.__main__, tests.gpu.numbers, tests.gpu.runs; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"tests.standin", "wandb", "submitit"} & set(process.stdout.split())


def test_the_setting_names_its_device(tmp_path: Path) -> None:
    assert str(Setting("cuda", tmp_path, tmp_path).device) == "cuda:0"
    assert str(Setting("cpu", tmp_path, tmp_path).alone.device) == "cpu"
