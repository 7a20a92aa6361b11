"""Typed stack settings, read from `Pulumi.<stack>.yaml`.

`StackSettings` is the union of `LocalSettings` and `AwsSettings`, discriminated by `platform`. `base` has the groups
and defaults that both share, such as ports and schedules; `gate_limits` has the limits of the gates. What is live
(versions, weights) is not a setting: see `observatory.documents.rollout`.
"""

from observatory.settings.aws import AwsSettings as AwsSettings
from observatory.settings.aws import architecture_of as architecture_of
from observatory.settings.base import FLEETS as FLEETS
from observatory.settings.base import MAX_START_SECONDS as MAX_START_SECONDS
from observatory.settings.base import Alerts as Alerts
from observatory.settings.base import Delivery as Delivery
from observatory.settings.base import EmailNotices as EmailNotices
from observatory.settings.base import FleetName as FleetName
from observatory.settings.base import Logs as Logs
from observatory.settings.base import Notifications as Notifications
from observatory.settings.base import Ports as Ports
from observatory.settings.base import Sample as Sample
from observatory.settings.base import Schedule as Schedule
from observatory.settings.base import SharedSettings as SharedSettings
from observatory.settings.local import LocalSettings as LocalSettings
from observatory.settings.problems import PROJECT as PROJECT
from observatory.settings.problems import StackSettings as StackSettings
from observatory.settings.reading import ConfigFile as ConfigFile
from observatory.settings.reading import SettingsError as SettingsError
from observatory.settings.reading import check_secret_files as check_secret_files
from observatory.settings.reading import load_file as load_file
from observatory.settings.reading import load_program as load_program
from observatory.settings.reading import read_secret as read_secret
