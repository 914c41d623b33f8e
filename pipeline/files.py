"""Files that are whole or absent: everything is written beside its final name and renamed when complete."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConcordError


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` when the block ends well, remove it when it does not.

    The temporary file stands in the same folder and keeps the suffix, so that format detection by name works.
    Raises `ConcordError` where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.name[path.name.find(".") :], dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ConcordError(f"{path}: the disk is full; free some space and run again, finished work is kept") from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
            raise ConcordError(f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) as a whole file."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON, a whole file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
