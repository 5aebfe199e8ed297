"""From a hospital's files to patches of HU, and from patches back to files.

A series (`dicom`, `nifti`, `metaimage`) becomes a `Volume` of HU with its true geometry; a lesion
list (`lesions`) says where to look; `preprocess` turns, resamples and windows, exactly undone;
`cohort` cuts patches out of many series, gives patients keyed pseudonyms (`pseudonyms`) and splits
them; `patches` is the folder the patches live in, the same for real and synthetic ones. `pictures`
brings in sets that exist only as gray pictures. `phantom` is a procedural cohort that stands in
where there is no data yet. `dicom_writing` and `export` write synthetic images as files.
`python -m data --help` is the way in. Nothing here knows of `gan` or `evaluate`.
"""
