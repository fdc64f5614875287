"""What is asked of a run: what decides the files it makes. How many workers make them does not."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from dq_cluster.config import Settings
from dq_cluster.images.config import BackboneSettings, SourceSettings, ViewSettings

# The settings of a source from which runs without a name were first called. One that was added
# since is left out where it has its default, so that the same command still finds its run.
_SOURCE = {
    *("kind", "uri", "id_column", "image_column", "uri_column", "feature_column"),
    *("columns", "limits", "allow"),
}
_LIMITS = {"max_bytes", "max_pixels", "max_seconds"}


class FeaturizeRequest(Settings):
    """What decides the features that a run makes."""

    source: SourceSettings
    backbone: BackboneSettings
    views: ViewSettings
    fragment_rows: int


class EncodeRequest(Settings):
    """What decides the codes that a run makes. model: the whole digest."""

    source: SourceSettings
    append: bool
    fragment_rows: int
    model: str

    def digest(self) -> str:
        """The name of a run that was not given one; equal requests have equal names."""
        values = self.model_dump(mode="json")
        changed = self.model_dump(mode="json", exclude_defaults=True)["source"]
        source = _named(values["source"], changed, _SOURCE)
        source["limits"] = _named(source["limits"], changed.get("limits", {}), _LIMITS)
        text = json.dumps(values | {"source": source}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _named(
    values: Mapping[str, Any], changed: Mapping[str, Any], first: Collection[str]
) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in first or key in changed}
