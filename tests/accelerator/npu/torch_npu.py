"""Stands in for Ascend's package, which ComfyUI imports before it asks `torch.npu`: that is the second device here."""

from second_device import register

register("npu")
