"""Makers of damaged and hostile files. Each mutation follows from a number, so that one that fails can be made again."""
