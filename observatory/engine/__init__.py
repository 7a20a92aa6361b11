"""A small embedded Pulumi engine: runs a Pulumi Python program without the CLI, on the CLI's own state.

The package owns planning and performing steps for dynamic resources, and the ``file://`` backend. It knows nothing of
what the resources are. See docs/engine.md for what it supports, what it refuses, and how to move to the CLI and back.
"""

from observatory.engine.errors import INSTALL_URL as INSTALL_URL
from observatory.engine.errors import ConfigError as ConfigError
from observatory.engine.errors import EngineError as EngineError
from observatory.engine.errors import Interrupted as Interrupted
from observatory.engine.errors import LockedError as LockedError
from observatory.engine.errors import PassphraseError as PassphraseError
from observatory.engine.errors import ProgramError as ProgramError
from observatory.engine.errors import StateError as StateError
from observatory.engine.errors import StepFailed as StepFailed
from observatory.engine.errors import UnsupportedError as UnsupportedError
from observatory.engine.plan import DiagnosticEvent as DiagnosticEvent
from observatory.engine.plan import Event as Event
from observatory.engine.plan import OnEvent as OnEvent
from observatory.engine.plan import Result as Result
from observatory.engine.plan import Step as Step
from observatory.engine.plan import StepEvent as StepEvent
from observatory.engine.run import ResourceRecord as ResourceRecord
from observatory.engine.run import StackOptions as StackOptions
from observatory.engine.run import clear_locks as clear_locks
from observatory.engine.run import destroy as destroy
from observatory.engine.run import exists as exists
from observatory.engine.run import init as init
from observatory.engine.run import locked as locked
from observatory.engine.run import outputs as outputs
from observatory.engine.run import plan_offline as plan_offline
from observatory.engine.run import preview as preview
from observatory.engine.run import refresh as refresh
from observatory.engine.run import remove as remove
from observatory.engine.run import resources as resources
from observatory.engine.run import up as up
from observatory.engine.values import PropertyChange as PropertyChange
from observatory.engine.values import differences as differences
