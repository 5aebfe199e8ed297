"""Files that the audit keeps from one call to the next: whole, or as they were before."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, content: bytes, mode: int = 0o644) -> None:
    """The file with this content, or as it was before, also when several processes write it. Raises OSError."""
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{file.name[:40]}.", suffix=".partial", dir=file.parent)
        with open(descriptor, "wb") as written:
            os.chmod(partial, mode)
            written.write(content)
            written.flush()
            os.fsync(written.fileno())  # whole also after a power cut
        os.replace(partial, file)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; no file was written or replaced", str(file)) from None
    finally:
        if partial is not None:
            with suppress(FileNotFoundError):
                os.unlink(partial)
