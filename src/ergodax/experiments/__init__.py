"""Experiments in files: read, checked, carried out, and kept in a folder of their own."""
