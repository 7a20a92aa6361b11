"""A small embedded Pulumi engine: runs a Pulumi Python program without the CLI, on the CLI's own state.

Plans and performs the steps of dynamic resources, and reads and writes the ``file://`` backend. It is independent of
what the resources are. docs/engine.md says what it supports and refuses, and how to move to the CLI and back.
"""

from observatory.engines.embedded.errors import INSTALL_URL as INSTALL_URL
from observatory.engines.embedded.errors import ConfigError as ConfigError
from observatory.engines.embedded.errors import EngineError as EngineError
from observatory.engines.embedded.errors import Interrupted as Interrupted
from observatory.engines.embedded.errors import LockedError as LockedError
from observatory.engines.embedded.errors import PassphraseError as PassphraseError
from observatory.engines.embedded.errors import ProgramError as ProgramError
from observatory.engines.embedded.errors import StateError as StateError
from observatory.engines.embedded.errors import StepFailed as StepFailed
from observatory.engines.embedded.errors import UnsupportedError as UnsupportedError
from observatory.engines.embedded.events import DiagnosticEvent as DiagnosticEvent
from observatory.engines.embedded.events import Event as Event
from observatory.engines.embedded.events import OnEvent as OnEvent
from observatory.engines.embedded.events import Result as Result
from observatory.engines.embedded.events import Step as Step
from observatory.engines.embedded.events import StepEvent as StepEvent
from observatory.engines.embedded.options import StackOptions as StackOptions
from observatory.engines.embedded.run import destroy as destroy
from observatory.engines.embedded.run import plan_offline as plan_offline
from observatory.engines.embedded.run import preview as preview
from observatory.engines.embedded.run import refresh as refresh
from observatory.engines.embedded.run import up as up
from observatory.engines.embedded.stack import ResourceRecord as ResourceRecord
from observatory.engines.embedded.stack import clear_locks as clear_locks
from observatory.engines.embedded.stack import decrypt_setting as decrypt_setting
from observatory.engines.embedded.stack import exists as exists
from observatory.engines.embedded.stack import full_name as full_name
from observatory.engines.embedded.stack import init as init
from observatory.engines.embedded.stack import locked as locked
from observatory.engines.embedded.stack import outputs as outputs
from observatory.engines.embedded.stack import remove as remove
from observatory.engines.embedded.stack import resources as resources
from observatory.engines.embedded.values import PropertyChange as PropertyChange
from observatory.engines.embedded.values import differences as differences
