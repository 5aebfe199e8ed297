"""Pseudonyms by a keyed hash: the same patient always gets the same one, and without the key none is undone."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from pathlib import Path


class Pseudonyms:
    """HMAC-SHA256 names for patients and series. The key never leaves this object."""

    def __init__(self, key: bytes):
        if not re.fullmatch(rb"[0-9a-f]{64}", key):
            raise ValueError(f"not a pseudonym key: {len(key)} bytes, want 64 hexadecimal digits")
        self._key = key

    def patient(self, patient_id: str) -> str:
        """Such as "p-5f0c1d2e3a4b5c6d"."""
        return f"p-{self._hash('patient', patient_id)}"

    def series(self, series_uid: str) -> str:
        """Such as "s-5f0c1d2e3a4b5c6d"."""
        return f"s-{self._hash('series', series_uid)}"

    def file(self, path: str) -> str:
        """Such as "f-5f0c1d2e3a4b5c6d"."""
        return f"f-{self._hash('file', path)}"

    def fingerprint(self, text: str) -> str:
        """64 hexadecimal digits that tell texts apart and do not give them away."""
        return hmac.new(self._key, f"fingerprint\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()

    def _hash(self, kind: str, name: str) -> str:
        return hmac.new(self._key, f"{kind}\0{name}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:16]


def default_key_file() -> Path:
    """Where the key lives unless another file is named: $LESIONGAN_KEY, or the user's configuration folder."""
    named = os.environ.get("LESIONGAN_KEY")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lesiongan" / "pseudonym.key"


def read_or_make_key(file: Path) -> bytes:
    """The key in the file; a new random one, readable by its owner alone, when there is no such file yet.

    White space around it does not count, so an editor's last newline changes no pseudonym.
    """
    try:
        key = file.read_bytes().strip()
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        key = secrets.token_hex(32).encode()
        # whole before it has its name, and of two processes that make one, the first counts
        descriptor, partial = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(key)
            os.link(partial, file)
        except FileExistsError:
            key = file.read_bytes().strip()
        except OSError:  # a file system without links
            os.replace(partial, file)
        finally:
            Path(partial).unlink(missing_ok=True)
    return key
