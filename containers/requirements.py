"""Print what moco-dist requires, one requirement a line, so that an image can have it before it has the code.

python containers/requirements.py [EXTRA ...]

Extras may also be one text with spaces or commas, or empty, as the arguments of container builders are.
"""

import sys
import tomllib
from pathlib import Path


def main(extras: list[str]) -> int:
    """Print the requirements of moco-dist and of its extras. Returns the exit status."""
    folder = Path(__file__).resolve().parent
    file = next(path / "pyproject.toml" for path in (folder, folder.parent) if (path / "pyproject.toml").is_file())
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in optional]:
        print(f"requirements.py: {unknown[0]}: is no extra; choose from {', '.join(sorted(optional))}", file=sys.stderr)
        return 2
    print(*project["dependencies"], *(line for extra in extras for line in optional[extra]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:]).replace(",", " ").split()))
