"""Safe writes: others see the old or the new, never half; fingerprints follow content."""

import pytest

from makelib.runtime import atomic_file, atomic_folder, fingerprint, provenance


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


def test_fingerprints_follow_content_and_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert (
        len({fingerprint("a"), fingerprint("b"), fingerprint("a", "b"), fingerprint("b", "a"), fingerprint(b"a")}) == 5
    )


def test_provenance_says_what_ran():
    facts = provenance()
    assert facts["packages"]["torch"]
    assert {"git_commit", "dirty", "python", "device", "threads"} <= set(facts)
