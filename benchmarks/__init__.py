"""Measurements of speed and memory; nothing of the plugin depends on them."""
