"""Hugging Face diffusers' UNet as a field of fmkit."""

from fmkit_diffusers.fields import DiffusersUNet

__all__ = ["DiffusersUNet"]
