"""The further commands of `python -m evaluate`: one file each, with DESCRIPTION, add_arguments(parser) and run(options)."""
