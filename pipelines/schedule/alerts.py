"""Telling people how a scheduled run ended: a JSON document to a web address, to a program, or to both.

Addresses that are secrets come from environment variables. They are in no message: what is recorded of a failed alert is its kind alone.
"""

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.schedule import AlertsConfig, is_address

SENT: Final = "sent"
_PATIENCE_S: Final = 20.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An address that points elsewhere is not followed: what is told goes where it was meant to go."""

    def redirect_request(self, *_: Any) -> None:
        return


def send_alert(alerts: AlertsConfig, document: Mapping[str, object]) -> str:
    """Tell a document to whom it concerns.

    Returns:
        "sent", or what went wrong; nothing is raised.
    """
    wrong = []
    if alerts.webhook is not None or alerts.webhook_env is not None:
        wrong.append(_post(alerts, document))
    if alerts.command:
        wrong.append(_run(alerts.command, document))
    return "; ".join(filter(None, wrong)) or SENT


def has_address(alerts: AlertsConfig) -> bool:
    """Whether there is anybody to tell."""
    return alerts.webhook is not None or alerts.webhook_env is not None or bool(alerts.command)


def check_address(alerts: AlertsConfig) -> None:
    """See that the environment has the address that is to come from it.

    Raises:
        ConfigError: it has not, or what it has is no address.
    """
    if alerts.webhook_env is not None and not is_address(os.environ.get(alerts.webhook_env, "")):
        raise ConfigError(f"alerts.webhook_env: the environment variable {alerts.webhook_env} holds no http or https URL; set it")


def _post(alerts: AlertsConfig, document: Mapping[str, object]) -> str:
    try:
        check_address(alerts)
        address = alerts.webhook or os.environ[str(alerts.webhook_env)]
        data = json.dumps(document).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310 (http and https alone: checked above)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_PATIENCE_S):
            return ""
    except ConfigError as error:
        return str(error)
    except urllib.error.HTTPError as error:
        error.close()
        return f"webhook: answered {error.code}"
    except Exception as error:  # an alert never takes the run with it; and messages of libraries may show the address
        return f"webhook: {type(error).__name__}"


def _run(command: tuple[str, ...], document: Mapping[str, object]) -> str:
    try:
        done = subprocess.run(
            command,
            input=json.dumps(document).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"command: {type(error).__name__}"
    return f"command: exit code {done.returncode}" if done.returncode else ""
