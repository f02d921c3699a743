"""One manifest describes every model on the server; axiond makes the running vLLM engines match it."""

__version__ = "0.1.0"
