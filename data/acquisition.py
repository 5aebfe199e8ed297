"""How a scan was made, as far as it may be told: facts of the machine that name no patient, place or day."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

_VENDORS = {
    "siemens": "Siemens", "ge ": "GE", "general electric": "GE", "gems": "GE", "philips": "Philips", "toshiba": "Toshiba",
    "canon": "Canon", "hitachi": "Hitachi", "fujifilm": "Fujifilm", "neusoft": "Neusoft", "united imaging": "United Imaging", "uih": "United Imaging",
    "imatron": "Imatron", "picker": "Picker", "elscint": "Elscint", "lesiongan": "lesiongan",
}  # fmt: skip

PERSONAL = (
    "PatientName", "PatientID", "OtherPatientIDs", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "StationName", "AccessionNumber", "StudyID", "DeviceSerialNumber",
)  # fmt: skip
"""Read only to see that nothing of them stands in what is kept (see acquisition_of); PatientID also tells patients apart."""


@dataclass(frozen=True)
class Acquisition:
    """The machine and its settings; "" and None where the file does not tell, or tells more than it may."""

    format: str
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    slice_thickness_mm: float | None = None


def acquisition_of(header: Dataset) -> Acquisition:
    """From a CT header. Free text is kept only where it reads like a product's name and repeats nothing of the patient or the hospital."""
    private = " ".join(str(header.get(keyword) or "") for keyword in PERSONAL).lower()
    secrets = {word for word in re.split(r"[^\w]+", private) if len(word) > 2}
    manufacturer = f"{str(header.get('Manufacturer') or '').lower()} "
    kernel = header.get("ConvolutionKernel") or ""
    kernel = kernel if isinstance(kernel, str) else next(iter(kernel), "") if isinstance(kernel, Sequence) else ""
    try:
        thickness = float(header.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        thickness = 0.0
    return Acquisition(
        "DICOM",
        next((name for start, name in _VENDORS.items() if start in manufacturer), "other" if manufacturer.strip() else ""),
        _harmless(str(header.get("ManufacturerModelName") or ""), secrets, 24),
        _harmless(str(kernel), secrets, 12),
        thickness if 0 < thickness < 1000 else None,
    )


def _harmless(text: str, secrets: set[str], longest: int) -> str:
    """The text when it is short, plain, begins with a letter, and has no long number and no word of `secrets`.

    A long number, in one piece or with separators in it, may be a date, an id or a UID.
    """
    text = text.strip()
    plain = re.fullmatch(rf"[A-Za-z][A-Za-z0-9 _+./-]{{0,{longest - 1}}}", text) and not re.search(r"\d([ _+./-]?\d){4}", text)
    return text if plain and not any(word in text.lower() for word in secrets) else ""
