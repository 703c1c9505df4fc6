"""An archive on a node's own disk: unpacked once, whole, and nowhere else."""

from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.cluster import Profile
from launcher.job import stage, task
from launcher.job.start import Start
from launcher.record import Submission
from moco_dist import config as configs
from moco_dist.data.pack import pack
from moco_dist.data.shards import open_split
from moco_dist.data.tree import SHARD_INDEX
from moco_dist.errors import UserError
from tests.data.made import draw

FILES = {"train/a/1.png": b"one", "train/b/2.png": b"two" * 1000, "val/a/3.png": b""}


def make_tar(file: Path, mode: str = "w", /, **files: bytes) -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, content in (files or FILES).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def make_zip(file: Path, /, **files: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files or FILES).items():
            archive.writestr(name, content)
    return file


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def own(disk: Path) -> Path:
    return disk / f"moco-dist-{os.getuid()}"


def refusal(archive: Path, disk: Path) -> str:
    """The line that says why it cannot be unpacked; nothing of it is left."""
    with pytest.raises(UserError) as caught:
        stage.unpack(archive, disk)
    line = str(caught.value)
    assert line.startswith(f"--stage = {archive}: cannot be unpacked into {disk} (")
    assert line.endswith("; give a tar or zip that fits there")
    assert line.isprintable()
    assert not list(own(disk).glob("*"))
    return line


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "data.tar": make_tar,
    "data.tar.gz": lambda file: make_tar(file, "w:gz"),
    "data.tar.xz": lambda file: make_tar(file, "w:xz"),
    "data.zip": make_zip,
    "data": make_zip,  # the content tells what it is
}


@pytest.mark.parametrize("name", MAKERS)
def test_once_and_whole(tmp_path: Path, disk: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    folder = stage.unpack(archive, disk)
    assert content(folder) == FILES
    assert folder.is_relative_to(disk)
    assert own(disk).stat().st_mode & 0o777 == 0o700
    before = archive.stat()
    archive.write_bytes(bytes(before.st_size))  # it is not read again
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stage.unpack(archive, disk) == folder
    assert content(folder) == FILES
    assert list(own(disk).iterdir()) == [folder]


def test_another_archive_of_the_same_name_is_unpacked_anew(tmp_path: Path, disk: Path) -> None:
    archive = make_tar(tmp_path / "data.tar")
    old = stage.unpack(archive, disk)
    make_tar(archive, **{"new.png": b"new"})
    os.utime(archive, ns=(1, 1))
    new = stage.unpack(archive, disk)
    assert content(new) == {"new.png": b"new"}
    assert content(old) == FILES  # another job may read it still


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path, disk: Path) -> None:
    inside = make_zip(tmp_path / "inside.zip").read_bytes()
    assert content(stage.unpack(make_tar(tmp_path / "data.tar", **{"inside.zip": inside}), disk)) == {
        "inside.zip": inside
    }


@pytest.mark.parametrize("name", ["../../evil", "{outside}/evil"])
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, disk: Path, name: str, make: Callable[..., Path]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = make(tmp_path / "data", **{name.format(outside=outside): b"bad"})
    try:
        folder = stage.unpack(archive, disk)
    except UserError as error:
        assert "outside the destination" in str(error)
        assert not list(own(disk).iterdir())
    else:  # it was put inside, under what is left of its name
        assert all(file.is_relative_to(folder) for file in tmp_path.rglob("evil"))
    assert not list(outside.iterdir())
    assert not list(tmp_path.glob("evil")) + list(disk.glob("evil")) + list(own(disk).glob("evil"))


def test_a_link_out_of_the_folder(tmp_path: Path, disk: Path) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as packed:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        packed.addfile(link)
    assert "link to an absolute path" in refusal(archive, disk)


NOISE = random.Random(0).randbytes(200_000)  # so that the files are not small when they are packed


def cut(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:9000])
    return file


def overwrite(file: Path, at: int, what: bytes) -> Path:
    data = bytearray(file.read_bytes())
    data[at : at + len(what)] = what
    file.write_bytes(data)
    return file


def text(file: Path) -> Path:
    file.write_text("no archive at all")
    return file


def encrypted(file: Path) -> Path:
    data = make_zip(file).read_bytes()
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        overwrite(file, data.index(mark) + flags, b"\1")
    return file


DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda file: file, "No such file"),
    "no archive": (text, "could not be opened successfully)"),
    "a cut tar": (lambda file: cut(make_tar(file, a=NOISE)), "unexpected end of data"),
    "a cut gz": (lambda file: cut(make_tar(file, "w:gz", a=NOISE)), "ended before the end-of-stream marker"),
    "bits of a gz": (lambda file: overwrite(make_tar(file, "w:gz", a=NOISE), 9000, b"x" * 99), "CRC check failed"),
    "bits of an xz": (lambda file: overwrite(make_tar(file, "w:xz", a=NOISE), 9000, b"x" * 99), "Corrupt input"),
    "bits of a zip": (lambda file: overwrite(make_zip(file, a=NOISE), 9000, b"x" * 99), "Bad CRC-32"),
    "a header": (lambda file: overwrite(make_tar(file, a=b"a", b=b"b"), 1024 + 148, b"x"), "members end before"),
    "a cipher": (encrypted, "is encrypted"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_archive_that_is_damaged_is_never_taken_for_whole(tmp_path: Path, disk: Path, kind: str) -> None:
    make, cause = DAMAGED[kind]
    assert cause in refusal(make(tmp_path / "data"), disk)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel lets no file grow beyond 100 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_full_disk_is_one_line_and_is_not_left_full(
    tmp_path: Path, disk: Path, make: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    archive = make(tmp_path / "data", a=b"0" * 50_000, b=b"0" * 200_000)
    request.getfixturevalue("small_files")
    assert "File too large" in refusal(archive, disk)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, disk: Path, mode: int) -> None:
    archive = make_tar(tmp_path / "data.tar")
    own(disk).mkdir(parents=True)
    own(disk).chmod(mode)
    with pytest.raises(UserError, match="others may write to it"):
        stage.unpack(archive, disk)
    assert not list(own(disk).iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path, disk: Path) -> None:
    archive = make_tar(tmp_path / "data.tar")
    own(disk).mkdir(parents=True, mode=0o755)
    os.chown(own(disk), 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        stage.unpack(archive, disk)
    assert not list(own(disk).iterdir())


JOB = """
import sys
from pathlib import Path
from launcher.job import stage

real = stage._extract
def extract(archive, folder):
    real(archive, folder)
    print(folder, flush=True)
    input()  # until the test has looked

stage._extract = extract
stage.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def start(archive: Path, disk: Path) -> tuple[subprocess.Popen[str], Path]:
    """A job that stands still when it has unpacked, ahead of the rename; and the folder it unpacks into."""
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(archive), str(disk)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout
    return job, Path(job.stdout.readline().strip())


def test_the_half_of_a_killed_job_is_removed_but_not_that_of_a_live_one(tmp_path: Path, disk: Path) -> None:
    archive, other = make_tar(tmp_path / "data.tar"), make_tar(tmp_path / "other.tar")
    job, half = start(archive, disk)
    with job:
        assert half.parent == own(disk)
        stage.unpack(other, disk)
        assert content(half) == FILES
        job.kill()
    folder = stage.unpack(archive, disk)
    assert not half.exists()
    assert content(folder) == FILES


def test_of_two_jobs_at_once_the_first_serves_both(tmp_path: Path, disk: Path) -> None:
    archive = make_tar(tmp_path / "data.tar")
    jobs = [start(archive, disk) for _ in range(2)]
    assert len({half for _, half in jobs}) == 2
    for job, _ in jobs:
        _, errors = job.communicate("\n", timeout=60)
        assert (job.returncode, errors) == (0, "")
    [folder] = own(disk).iterdir()
    assert content(folder) == FILES
    assert stage.unpack(archive, disk) == folder


def test_the_node_s_own_disk_is_named_by_the_node_s_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("EXECUTOR", "local"), ("LOCAL_JOB_ID", "7"), ("LOCAL_JOB_NUM_NODES", "1")):
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    for name in ("NTASKS", "LOCALID", "NODEID", "GLOBALID"):
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", "0")
    archive = make_tar(tmp_path / "data.tar")
    profile = Profile(local_disk="${NODE_DISK}/mine")
    start = Start(tmp_path, Submission(profile=profile, stage=str(archive)), "images")
    with pytest.raises(SystemExit):
        task._staged(start)
    assert "local_disk = ${NODE_DISK}/mine: the variable NODE_DISK is not set here" in capsys.readouterr().err
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "a$b"))
    [override] = task._staged(start)
    root = configs.load(None, [override]).data.root
    assert root and Path(root).parent.parent == own(tmp_path / "a$b/mine")


def test_a_folder_of_shards_is_copied(disk: Path, tmp_path: Path) -> None:
    for name, value in (("a/1.png", 10), ("b/2.png", 20)):
        draw(tmp_path / "images" / name, value)
    pack(tmp_path / "images", tmp_path / "out", 1)
    (tmp_path / "out" / "notes.txt").touch()
    folder = stage.unpack(tmp_path / "out", disk)
    assert content(folder) == {name: kept for name, kept in content(tmp_path / "out").items() if name != "notes.txt"}
    assert len(open_split(folder, "train").names) == 2
    assert stage.unpack(tmp_path / "out", disk) == folder
    (tmp_path / "out" / SHARD_INDEX).unlink()
    assert "shards.npz" in refusal(tmp_path / "out", disk / "other")
