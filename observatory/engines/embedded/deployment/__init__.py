"""Turns the resources that a program declares into steps, and performs them.

Owns the semantics of a run: which operation a resource needs (pkg/resource/deploy/step_generator.go in Pulumi's
source), the order of deletions, and what a failure leaves behind. ``snapshot`` writes the state, ``provider`` does the
work on a resource, and ``monitor`` answers the program.

``deployment``     registers each resource and finishes the run
``registry``       the old states, and the URNs that the program has declared
``planner``        checks inputs and compares them with the old state
``operations``     creates, updates, keeps and deletes one resource
``replacement``    replaces a resource, and deletes its dependents first where that is needed
``removal``        deletes what the program no longer declares
``refresh``        reads every resource from its provider
``executor``       performs one step: announces it, records it, reports its end
``provider_pool``  starts, registers and configures the providers
"""

from observatory.engines.embedded.deployment.deployment import Deployment as Deployment
from observatory.engines.embedded.deployment.registry import Goal as Goal
