"""One accepted manifest with its number, and what planning needs of it."""

from dataclasses import dataclass

from axiond.manifest.spec import Manifest, ModelSpec
from axiond.reconcile.state import EngineKey, ModelTarget, SourceKey, Target
from axiond.resources.estimate import predict
from axiond.routing.rules import Rules


@dataclass(frozen=True, slots=True)
class Generation:
    """*lack* says what its rules have to do without."""

    number: int
    etag: str
    manifest: Manifest
    target: Target
    rules: Rules
    lack: str = ""

    @classmethod
    def of(cls, number: int, etag: str, manifest: Manifest, rules: Rules | None = None, lack: str = "") -> "Generation":
        models = {name: model_target(name, spec) for name, spec in manifest.models.items()}
        return cls(number, etag, manifest, Target(number, models), rules or Rules.of(manifest, None), lack)

    def spec_of(self, key: EngineKey) -> ModelSpec | None:
        """The spec behind an engine, if this generation wants that engine."""
        model = self.target.models.get(key.model)
        return self.manifest.models[key.model] if model and model.digest == key.digest else None


def model_target(name: str, spec: ModelSpec) -> ModelTarget:
    return ModelTarget(
        name=name,
        digest=spec.digest(),
        source=SourceKey(spec.source, spec.revision),
        replicas=spec.replicas,
        is_lazy=spec.load == "lazy",
        priority=spec.priority,
        fixed_bytes=predict(spec, None).expected_bytes,
        drain_grace_s=spec.drain_grace_s,
        idle_unload_s=spec.idle_unload,
        min_resident_s=spec.min_resident,
        is_pinned=spec.pin,
    )
