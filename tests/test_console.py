"""Streams that are lost, signals, locks and errors of the operating system: a run goes on, or one line says why not."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading

import pytest
from filelock import FileLock, Timeout

from simmim_lite import files
from simmim_lite.data.store import ensure_folder
from simmim_lite.errors import Preempted, Signalled, UserError, readable

REDIRECTED = """
import sys
from simmim_lite.processes import forgive_streams
forgive_streams()
with open(sys.argv[1], "w") as file:
    file.write(str(file.fileno()))
    for _ in range(3):
        print("x" * 9000, flush=True)
        print(chr(0x2026), file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("how", [">/dev/full 2>/dev/full", ">&- 2>&-", "2>&1 | true", "LC_ALL=C PYTHONUTF8=0"])
def test_what_cannot_be_said_ends_nothing(how, tmp_path) -> None:
    """A full disk, a closed stream, a reader that has left, a locale without these letters."""
    before, after = ("", how) if not how.startswith("LC") else (f"{how} PYTHONCOERCECLOCALE=0 ", "")
    words = [sys.executable, "-c", REDIRECTED, str(tmp_path / "file")]
    script = f'{before}"$0" "$@" {after}'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    assert int((tmp_path / "file").read_text()) > 2, "a file in the place of a closed stream takes its lines"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space there"),
        (PermissionError(errno.EACCES, "Permission denied"), "ask its owner for the right"),
        (OSError(errno.EROFS, "Read-only file system"), "mounted read-only: choose another"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    ],
)
def test_the_remedy_is_that_of_the_error(error, words, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=words) as said:
        files.write_atomic(tmp_path / "file", "text")
    assert "free some space" in str(said.value) or error.errno != errno.ENOSPC
    assert not list(tmp_path.iterdir()) and words.split(":")[0] in str(readable(error))


def test_errors_that_are_no_fault_of_ours_are_a_line() -> None:
    for error in (MemoryError(), RuntimeError("[enforce fail] can't allocate memory: 12 bytes")):
        assert "too little memory" in str(readable(error))
    assert readable(RuntimeError("shape mismatch")) is None is readable(KeyError("a"))
    assert isinstance(readable(Signalled("SIGHUP")), Preempted) and readable(KeyboardInterrupt()).status == 130
    assert str(UserError("a\x1b[2Jb\nc")) == "a\ufffd[2Jb c", "no command to the terminal"


@pytest.mark.skipif(sys.platform != "linux", reason="cores are given to a process on Linux")
def test_cores_are_those_that_this_process_may_use() -> None:
    code = "from simmim_lite.processes import cores; print(cores())"
    assert subprocess.check_output(["taskset", "-c", "0", sys.executable, "-c", code], text=True) == "1\n"


def test_locks_are_held_where_the_system_has_none_too(tmp_path, monkeypatch, capsys) -> None:
    """And a lock file that one of the other kind has left behind is not held."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    path = tmp_path / "a.lock"
    for flock in (fcntl.flock, missing):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.touch()
        assert files.held(path) is False
        with files.locked(path, "it"):
            assert files.held(path) is True
            with pytest.raises(Timeout), files.locked(path, "it", wait=False):
                pass
            taken = threading.Thread(target=lambda: files.locked(path, "the other").__enter__(), daemon=True)
            taken.start()
            while "waiting for the other" not in (said := capsys.readouterr().err) and taken.is_alive():
                pass
            assert f"({path} is held by process {os.getpid()} on " in said
        taken.join(60)
        assert not taken.is_alive()


def test_a_store_has_the_rights_that_its_maker_gives(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path))
    before = os.umask(0o002)
    try:
        folder = ensure_folder("name", "1", lambda empty: (empty / "a").touch(), "it")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "a")] == [0o775, 0o664]
    assert FileLock(tmp_path / "stores" / "name.lock").acquire(timeout=0)
    assert stat.S_IMODE((tmp_path / "stores" / "name.lock").stat().st_mode) == 0o664
