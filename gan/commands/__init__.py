"""Commands of `python -m gan`, one file each with DESCRIPTION, add_arguments(parser) and run(options); and `sample.py`'s, in `sample_*`."""
