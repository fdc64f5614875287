"""The request of a run: the settings that decide its files. The number of workers is not one."""

import hashlib
import json
import os
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
    sample: int | None = None
    thumbnails: int = 0


class EncodeRequest(Settings):
    """What decides the codes that a run makes. model: the whole digest."""

    source: SourceSettings
    append: bool
    fragment_rows: int
    model: str
    only_new: bool = False
    thumbnails: int = 0

    def names(self) -> list[str]:
        """Names for a run that was not given one: today's, and behind it those of older releases.

        Those took the location as it was typed: relative, or with a slash at its end.
        """
        uri = self.source.uri
        spellings = [uri, f"{uri}/"]
        if not uri.startswith("s3://"):
            spellings += [os.path.relpath(uri), f"{os.path.relpath(uri)}/"]
        return [self._digest(spelling) for spelling in spellings]

    def _digest(self, uri: str) -> str:
        values = self.model_dump(mode="json")
        for added in ("only_new", "thumbnails"):
            if not values[added]:
                del values[added]
        changed = self.model_dump(mode="json", exclude_defaults=True)["source"]
        source = _named(values["source"], changed, _SOURCE) | {"uri": uri}
        source["limits"] = _named(source["limits"], changed.get("limits", {}), _LIMITS)
        text = json.dumps(values | {"source": source}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _named(
    values: Mapping[str, Any], changed: Mapping[str, Any], first: Collection[str]
) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in first or key in changed}
