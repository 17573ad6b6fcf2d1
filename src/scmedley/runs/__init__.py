"""The folder of a run, an experiment or a search: file names, lock, record, reading."""
