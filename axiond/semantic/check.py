"""Finds out whether a manifest's embedding model can be loaded, without loading it."""

from axiond.errors import DomainsError, SourceError
from axiond.manifest.spec import Manifest
from axiond.semantic.folder import read_folder
from axiond.sources.source import Folder, parse_encoder

AT = ("semantic", "embedding_model")
REMEDY = "or leave it out: keywords alone tell domains then"


def check_encoder(manifest: Manifest) -> None:
    """
    Look at the folder of the embedding model; one that has to be fetched is taken on trust. Blocks for milliseconds.

    Raises:
        DomainsError: it is missing, or not one that can be loaded.
    """
    if not (source := manifest.semantic.embedding_model):
        return
    try:
        if isinstance(place := parse_encoder(source), Folder):
            read_folder(place.path.expanduser())
    except (SourceError, RuntimeError) as exc:
        raise DomainsError(AT, str(exc), REMEDY) from exc
