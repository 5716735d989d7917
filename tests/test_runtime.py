"""Safe writes: others see the old or the new, never half; fingerprints follow content."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from makelib.runtime import UserError, atomic_file, atomic_folder, fingerprint, provenance

ROOT = Path(__file__).parents[1]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fill_the_disk():
        with atomic_file(target) as draft:
            draft.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert target.read_text() == "old"
    with atomic_file(target) as draft:
        draft.write_text("new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    target = tmp_path / "folder"
    for content, fails in (("old", False), ("half", True), ("new", False)):
        try:
            with atomic_folder(target) as draft:
                (draft / "x").write_text(content)
                if fails:
                    raise OSError("disk full")
        except OSError:
            assert (target / "x").read_text() == "old"
    assert (target / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_reader_never_finds_the_folder_gone(tmp_path):
    """While one process replaces a folder again and again, another looks for it all the time."""
    target = tmp_path / "folder"
    with atomic_folder(target) as draft:
        (draft / "x").write_text("0")
    code = (
        "import sys; from pathlib import Path; from makelib.runtime import atomic_folder\n"
        "for turn in range(300):\n"
        "    with atomic_folder(Path(sys.argv[1])) as draft: (draft / 'x').write_text(str(turn))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)])
    looks = 0
    while writer.poll() is None:
        assert (target / "x").is_file() or (target / "x").is_file()  # `stat` itself takes two steps along the path
        looks += 1
    assert writer.returncode == 0
    assert looks > 300
    assert (target / "x").read_text() == "299"


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from makelib.runtime import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as draft:\n"
        "    (draft / 'x').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "folder")])
    (tmp_path / ".folder-new-idea").mkdir()  # somebody else's
    assert len(list(tmp_path.glob(".folder-*/x"))) == 1
    with atomic_folder(tmp_path / "folder") as draft:
        (draft / "x").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".folder-new-idea", "folder"]


def test_fingerprints_follow_content_and_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert (
        len({fingerprint("a"), fingerprint("b"), fingerprint("a", "b"), fingerprint("b", "a"), fingerprint(b"a")}) == 5
    )


def test_provenance_says_what_ran():
    facts = provenance()
    assert facts["packages"]["torch"]
    assert {"git_commit", "dirty", "python", "device", "threads"} <= set(facts)
    assert len(facts["processor"]) > 5


def test_torch_is_announced_before_it_is_loaded(tmp_path):
    """In a terminal; here one that loads it at once, for it is not torch."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch')")
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "makelib", "search", "red dress", "--run", "nowhere"]
    subprocess.run(
        command, stderr=terminal, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, check=False
    )
    assert os.read(screen, 1000).decode().split("\r\n")[:2] == ["Loading torch …", "torch"]


@pytest.fixture
def little_room():
    """A system that takes no file of more than 64 KiB, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path, little_room, write):
    target = tmp_path / "made"

    def put(content: bytes) -> None:
        with write(target) as draft:
            (draft / "part" if write is atomic_folder else draft).write_bytes(content)

    put(b"before")
    with pytest.raises(UserError, match=rf"^File too large: {target}. Nothing half-written was kept; make room"):
        put(b"x" * (1 << 17))
    assert (target / "part" if write is atomic_folder else target).read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]
