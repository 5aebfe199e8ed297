"""The commands of `python -m data`: one file each, with DESCRIPTION, add_arguments(parser) and run(options)."""
