"""Find the programs that a cluster consists of, and install the Debian packages that bring them."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from slurm.devcluster.errors import ClusterError, Misuse

Programs = Mapping[str, Sequence[str]]
"""Debian packages, and the programs that each brings."""

PACKAGES: Programs = {
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun"),
    "munge": ("munged",),
    "slurmdbd": ("slurmdbd",),
    "mariadb-server": ("mariadbd", "mariadb-install-db"),
}
ACCOUNTING = ("slurmdbd", "mariadb-server")
"""Packages that a cluster without accounting does not need."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
_INSTALL_TIMEOUT_SECONDS = 1800


def search_path() -> str:
    """Return PATH with the folders of the daemons, which an ordinary user's lacks."""
    return os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS]).lstrip(os.pathsep)


def find_program(name: str) -> str:
    """Return the full path of a program. Raises Misuse where it is not installed."""
    path = shutil.which(name, path=search_path())
    if path is None:
        raise _not_installed([name])
    return path


def require(accounting: bool) -> None:
    """Raise Misuse unless every program is there."""
    needed = [package for package in PACKAGES if accounting or package not in ACCOUNTING]
    if lacking := missing(needed):
        raise _not_installed(lacking)


def missing(packages: Iterable[str] = tuple(PACKAGES), programs: Programs = PACKAGES) -> list[str]:
    """List the programs of these packages that are not installed."""
    names = [name for package in packages for name in programs[package]]
    return [name for name in names if shutil.which(name, path=search_path()) is None]


def install(programs: Programs = PACKAGES) -> str:
    """Install the missing packages with apt-get; says what was done. Raises Misuse where this user cannot.

    Args:
        programs: of each package, those that it brings.
    """
    lacking = missing(programs, programs)
    if not lacking:
        return "everything is installed already"
    packages = sorted({package for package, names in programs.items() if set(names) & set(lacking)})
    apt = shutil.which("apt-get", path=search_path())
    if apt is None:
        fix = f"install what brings these programs: {' '.join(lacking)}"
        raise Misuse.of("install", " ".join(packages), "there is no apt-get here", fix)
    if os.geteuid() != 0:
        raise Misuse.of("install", " ".join(packages), "needs root", f"sudo apt-get install {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        command = [apt, *arguments]
        try:
            subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=True, timeout=_INSTALL_TIMEOUT_SECONDS)
        except subprocess.CalledProcessError as error:
            raise ClusterError(f"{' '.join(command)}: exit status {error.returncode}") from None
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{' '.join(command)}: still busy after {_INSTALL_TIMEOUT_SECONDS} s") from None
    return "installed " + " ".join(packages)


def _not_installed(programs: list[str]) -> Misuse:
    packages = [package for package, names in PACKAGES.items() if set(names) & set(programs)]
    return Misuse.of(
        "programs",
        " ".join(programs),
        f"not installed; they are in the Debian packages {' '.join(packages)}",
        "run as root: python -m slurm.devcluster install",
    )
