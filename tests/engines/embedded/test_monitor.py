"""Features that the engine refuses by name."""

from __future__ import annotations

import pytest

from observatory.engines import embedded as engine
from tests.engines.embedded.lab import Lab


@pytest.mark.parametrize(
    ("body", "feature"),
    [
        ('pulumi.StackReference("organization/other/dev")', "StackReference"),
        ('Thing("a", Options(import_="x"))', "import_"),
        ('Thing("a", Options(transforms=[lambda args: None]))', "transforms"),
        ("pulumi.runtime.register_resource_transform(lambda args: None)", "transform"),
        ('Thing("a", Options(hooks=pulumi.ResourceHookBinding(before_create=[lambda args: None])))', "hook"),
        ('pulumi.runtime.invoke("other:index:find", {})', "invoke"),
        ('pulumi.CustomResource("aws:s3/bucket:Bucket", "b")', "aws"),
        ('Thing("a", file=pulumi.FileAsset("x"))', "asset"),
        ('Thing("a", Options(replacement_trigger="x"))', "replacement_trigger"),
        ('Thing("a", Options(hide_diffs=["size"]))', "hide_diffs"),
        ('pulumi.ProviderResource("lab", "p", {}, Options(env_var_mappings={"A": "B"}))', "env_var_mappings"),
        ('Thing("a", Options(id="x"))', "read resource"),
        ('pulumi.ComponentResource("lab:index:Far", "far", None, None, True)', "multi-language component"),
        ('pulumi.runtime.call("other:index:Far/method", {})', "other:index:Far/method"),
        ('pulumi.require_pulumi_version(">=3.0.0")', "require_pulumi_version"),
    ],
)
def test_an_unsupported_feature_is_refused_by_name(lab: Lab, body: str, feature: str) -> None:
    lab.program(body)
    lab.prepare()
    with pytest.raises(engine.UnsupportedError, match="install the Pulumi CLI") as caught:
        engine.up(lab.options)
    assert feature in str(caught.value)


def test_a_duplicate_name_is_refused(lab: Lab) -> None:
    lab.program('Thing("a")\nThing("a", size=2)')
    assert "duplicate resource" in lab.embedded("up").message
