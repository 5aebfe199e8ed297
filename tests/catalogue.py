"""The catalogue of odd input that hospitals send, generated: each case is written to a folder, with the truth.

Every case ends as one of three: loaded with HU and geometry equal to the truth, skipped with a reason, or refused
with one line that names the file and the cause. Tables: catalogue_slices, _damage, _disguise, _folders, _volumes; what they
are made of: catalogue_scans.
"""

from __future__ import annotations

import catalogue_damage
import catalogue_disguise
import catalogue_folders
import catalogue_slices
import catalogue_volumes
from catalogue_scans import SECRET, Case, Truth, series_uid

__all__ = ["CASES", "SECRET", "Case", "Truth", "series_uid"]

CASES: list[Case] = [
    *catalogue_slices.CASES, *catalogue_damage.CASES, *catalogue_disguise.CASES, *catalogue_folders.CASES, *catalogue_volumes.CASES,
]  # fmt: skip
