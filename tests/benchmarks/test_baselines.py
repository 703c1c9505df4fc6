"""The baselines learn what the trainer learns, and the benchmarks that compare them run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks import gpu, gpu_parts, performance, steps, throughput
from benchmarks.baselines import authors
from benchmarks.baselines.bare import BareStep
from benchmarks.throughput import AUTHORS, OURS_NAME, Speed
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.data.views import Views
from moco_dist.methods.moco import MoCo
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from tests.ranks import Ranks

WORDS = ["data.source=synthetic", "data.root=null", "data.image_size=8", "optim.global_batch=16", "moco.queue_size=32"]
CPU = torch.device("cpu")


def setting(*words: str) -> Config:
    return configs.load(throughput.SETTING, [*WORDS, "moco.bn_groups=1", *words])


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_steps_of_the_baselines_are_ours(group_of_one: None) -> None:
    """They have the same losses from the same weights, queue and views; a shuffle within one rank changes nothing.

    After two steps on noise, rounding errors have grown too large to compare.
    """
    config = setting()
    engine, bare, model = steps.engine(config, CPU), BareStep(config, CPU, 16), authors.built(config, CPU)
    method = engine.method
    assert isinstance(method, MoCo)
    for other in (bare, model):
        other.encoder_q.load_state_dict(method.encoder_q.state_dict())
        other.encoder_k.load_state_dict(method.encoder_k.state_dict())
        other.queue = method.queue.T.clone()
    one, two = (view.contiguous() for view in bare.views)
    of_authors = authors.trainer(model, config, CPU)
    for number in range(2):
        loss = engine.step(Views(torch.stack([one, two])), number, config.optim.lr).values[0]
        torch.testing.assert_close(bare(), loss, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(of_authors(one, two), loss, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bare.queue, method.queue.T, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(model.queue, method.queue.T, rtol=1e-2, atol=1e-2)


def authors_losses(world: World) -> list[float]:
    step = authors.trainer(authors.built(setting(), CPU), setting(), CPU)
    one, two = torch.randn(2, 16 // world.size, 3, 8, 8, generator=torch.Generator().manual_seed(world.rank))
    return [step(one, two).item() for _ in range(2)]


def test_the_authors_step_runs_on_two_ranks(ranks: Ranks) -> None:
    one, other = ranks.run(2, authors_losses)
    assert one != other and all(map(math.isfinite, [*one, *other]))  # each has its own images


def test_the_authors_batches_are_pairs_of_different_views(tmp_path: Path) -> None:
    config = setting(f"data.root={throughput.made_images(tmp_path, 20, 12)}", "data.source=imagefolder")
    images = authors.datasets.ImageFolder(str(tmp_path), authors.TwoCrops(authors.augmentation(config)))
    (one, two), _ = images[0]
    assert one.shape == two.shape == (3, 8, 8) and not torch.equal(one, two)


def test_the_authors_loader_takes_any_config(
    group_of_one: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks.throughput` takes another CONFIG.yaml, such as imagenet_v2, which leaves the workers open."""
    monkeypatch.setattr(devices, "cores", lambda: 1)
    folder = throughput.made_images(tmp_path, 20, 12)
    config = setting(f"data.root={folder}", "data.source=imagefolder", "data.workers=auto")
    one, two = next(authors.batches(config, authors.TwoCrops(authors.augmentation(config)), 1))
    assert one.shape == two.shape == (16, 3, 8, 8)


def test_the_medians_are_those_of_the_rounds() -> None:
    names = (OURS_NAME, AUTHORS, "bare step", "bare step, NHWC")
    rounds = []
    for own, of in ((10, 25), (20, 10), (30, 40)):
        speeds = Speed(own, 2.0), Speed(10, 4.0), Speed(20, 1.0), Speed(of, 3.0)
        rounds.append(dict(zip(names, speeds, strict=True)))
    results = throughput.summary(rounds)
    assert results["ratios"] == {"to_authors": 2.0, "to_bare": 0.75}
    assert results["cpu_ratios"] == {"to_authors": 2.0, "to_bare": 0.5}
    assert results["rows"][0]["images_per_second"] == 20


def test_the_cpu_time_of_a_process_counts_its_children() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\n"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {work!r}]); p.wait(); input()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as process:
        while throughput.cpu_seconds(process.pid) < 0.3:
            assert process.poll() is None
        process.communicate(b"\n")


def test_a_part_that_no_longer_fits_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(setting: gpu_parts.Setting) -> Any:
        yield gpu_parts.Figure("something", 0.5, target="<= 0.1")

    def broken(setting: gpu_parts.Setting) -> Any:
        raise RuntimeError("broken")

    parts = {"quick": gpu.Part(quick, 1), "long": gpu.Part(quick, 1000), "broken": gpu.Part(broken, 1)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu_parts.Setting, "on_gpu", True)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # to be restored
    monkeypatch.setattr(gpu, "machine", lambda device: {"gpu": "X"})
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path / "gpu.json")]) == 1
    out, err = capsys.readouterr()
    assert "| quick | something | 0.5, NOT met | <= 0.1 |" in out and "RuntimeError: broken" in err
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["left_out"] == ["long"] and results["failed"] == ["broken"] and results["rows"][0]["met"] is False


def test_the_parts_for_a_gpu_run_in_small(tmp_path: Path) -> None:
    here = gpu_parts.Setting(CPU, tmp_path)
    for part in (gpu_parts.shipped, gpu_parts.augmentation, gpu_parts.checkpoint, gpu_parts.jpeg):
        for figure in part(here):
            assert figure.value > 0 and figure.shown


def test_targets_without_a_figure_are_not_run(tmp_path: Path) -> None:
    page = performance.page(tmp_path)
    for what in gpu_parts.TARGETS:
        assert f"| {what} | not run |" in page
    rows = [{"part": "shipped", **gpu_parts.Figure(gpu_parts.OF_BARE, 0.97)._asdict(), "met": True}]
    results = {"command": "python -m benchmarks.gpu", "machine": {"gpu": "X"}, "rows": rows}
    (tmp_path / "gpu.json").write_text(json.dumps(results))
    page = performance.page(tmp_path)
    assert f"| {gpu_parts.OF_BARE} | 0.97 | " in page and f"| {gpu_parts.OF_BARE} | not run |" not in page


def test_all_programs_of_the_throughput_run(tmp_path: Path) -> None:
    path = tmp_path / "throughput.json"
    counts = ["--ranks", "1", "--rounds", "1", "--warm-up", "1", "--steps", "1"]
    assert throughput.main(["--small", *counts, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["ratios"].keys() == {"to_authors", "to_bare"}
