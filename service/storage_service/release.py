"""Identity of this copy of the service: its version and the schema versions that it supports.

`release.json` beside this module is the only source; a build writes the artifact's version into its copy.
"""

from importlib.resources import files

from pydantic import BaseModel, ConfigDict


class Release(BaseModel):
    """Identity of a build.

    Attributes:
        name: name of the service.
        version: `vMAJOR.MINOR.PATCH[-pre]`.
        schema_min: lowest migration version that the service supports.
        schema_max: newest migration that the service was built for; later ones may only add to the schema (expand).
        metrics: names of the metrics that every instance has from its start, for the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    schema_min: int
    schema_max: int
    metrics: tuple[str, ...]


RELEASE = Release.model_validate_json((files(__package__) / "release.json").read_bytes())
