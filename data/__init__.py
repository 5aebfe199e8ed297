"""From a hospital's files to patches of HU, and from patches back to files.

Files and members of archives (`sources`) become a `Volume` of HU with its true geometry, or `Unreadable`: `dicom` with
its `dicom_*`, `nifti`, `metaimage`. A lesion list (`lesions`: `lesion_tables`, `lidc`, `masks`, `segmentations`) says where to look.
`preprocess` windows, exactly undone, resamples and finds the lung; `cutting` cuts one series, `parts` keeps what each gave,
`cohort` goes over all of them, gives patients keyed pseudonyms (`pseudonyms`) and splits them; `patches` is the folder the
patches live in, the same for real and synthetic ones. `pictures` brings in sets that exist only as gray pictures, `augment`
adds changed copies, `quality` is the page to look at. `phantom` is a procedural cohort that stands in where there is no
data yet. `dicom_writing` and `export` write synthetic images as files. `python -m data --help` is the way in, a file a
command in `commands`. Nothing here knows of `gan` or `evaluate`.
"""
