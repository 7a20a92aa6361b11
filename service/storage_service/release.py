"""What this copy of the service is: its version, and the schema versions it works with.

`release.json` beside this module is the only source; a build writes the version of the artifact into its copy.
"""

from importlib.resources import files

from pydantic import BaseModel, ConfigDict


class Release(BaseModel):
    """Identity of a build.

    Attributes:
        name: name of the service.
        version: `vMAJOR.MINOR.PATCH[-pre]`.
        schema_min: lowest migration version that the service works with.
        schema_max: newest migration whose shape it knows; later ones may only add to the schema (expand).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    schema_min: int
    schema_max: int


RELEASE = Release.model_validate_json((files(__package__) / "release.json").read_bytes())
