"""Shared by all command lines: configs, errors, files, progress. Imports neither torch nor any other folder."""
