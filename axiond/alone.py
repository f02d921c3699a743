"""What a manifest would do without a daemon."""

import os
from datetime import datetime
from pathlib import Path
from typing import Final

from axiond.explain import explain
from axiond.manifest.spec import Manifest
from axiond.routereport import RouteExplanation, RouteQuestion
from axiond.routing.answers import Answers
from axiond.routing.rules import Rules, Scene
from axiond.routing.table import Pool, RouteTable
from axiond.semantic.classify import Classifier
from axiond.semantic.kept import KeptProbes
from axiond.semantic.prepare import Semantics
from axiond.sources.fetch import fetch_encoder

CLASSIFY_WITHIN_S: Final = 10.0


async def explain_alone(manifest: Manifest, asked: RouteQuestion) -> RouteExplanation:
    """Decide as if every model could be loaded, and none were."""
    folder = folder_for(manifest.server.state_dir)
    semantics = Semantics(lambda source: fetch_encoder(source, folder), KeptProbes(folder / "domains"))
    classifier = Classifier(CLASSIFY_WITHIN_S)
    try:
        prepared = await semantics.prepare_anyhow(manifest)
        pools = {name: Pool(name, spec, is_lazy=True) for name, spec in manifest.models.items()}
        rules = Rules.of(manifest, prepared.index)
        table = RouteTable(1, pools, manifest.public_names(), {route.name: route for route in manifest.routes}, rules=rules)
        scene = Scene(table, 0.0, datetime.now().astimezone(), lambda _model: None)
        found = await explain(asked, rules, scene, Answers(classifier))
    finally:
        classifier.close()
        await semantics.close()
    return found.model_copy(update={"generation": 0, "lack": prepared.lack})


def folder_for(state_dir: Path) -> Path:
    """Where to keep things: with the daemon's, if they are this user's too. What root put there would lock the daemon out."""
    try:
        if state_dir.stat().st_uid == os.geteuid():
            return state_dir
    except OSError:
        pass
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "axiond"
