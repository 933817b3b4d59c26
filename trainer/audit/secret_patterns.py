"""Keys and tokens in a text, by the patterns of detect-secrets. Needs `softshards[audit]`.

The patterns run alone: the library's own scan asks the services whether a secret is valid, over the
network. Left out are its patterns that find too much in prose: high entropy, `password = ...`, and
public IP addresses, which the patterns for personal data find.
"""

from __future__ import annotations

import re

from detect_secrets.__version__ import VERSION
from detect_secrets.plugins.artifactory import ArtifactoryDetector
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.cloudant import CloudantDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.ibm_cloud_iam import IbmCloudIamDetector
from detect_secrets.plugins.ibm_cos_hmac import IbmCosHmacDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.private_key import PrivateKeyDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.softlayer import SoftlayerDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from trainer.audit.patterns import Match

PLUGINS: tuple[type[RegexBasedDetector], ...] = (
    *(ArtifactoryDetector, AWSKeyDetector, AzureStorageKeyDetector, BasicAuthDetector),
    *(CloudantDetector, DiscordBotTokenDetector, GitHubTokenDetector, GitLabTokenDetector),
    *(IbmCloudIamDetector, IbmCosHmacDetector, JwtTokenDetector, MailchimpDetector, NpmDetector),
    *(OpenAIDetector, PrivateKeyDetector, PypiTokenDetector, SendGridDetector, SlackDetector),
    *(SoftlayerDetector, SquareOAuthDetector, StripeDetector, TelegramBotTokenDetector),
    TwilioKeyDetector,
)
KEY_BODY = re.compile(r"[-\s]*[A-Za-z0-9+/=]{16,64}")
"""What follows the first line of a private key: the line alone is no secret."""
SHORTEST_VALUE = 8
"""Characters of a group of a pattern that is a secret by itself."""
SCORE = 0.9
"""Of all matches, which are specific: they win over personal data that they overlap."""


class SecretPatterns:
    """Finds secrets."""

    def __init__(self) -> None:
        self._plugins = [plugin() for plugin in PLUGINS]
        self.settings = {"secrets": f"detect-secrets {VERSION}, {len(PLUGINS)} patterns"}

    def find(self, text: str) -> list[Match]:
        """Return the secrets in a text."""
        found = []
        for plugin in self._plugins:
            for pattern in plugin.denylist:
                for place in pattern.finditer(text):
                    if isinstance(plugin, JwtTokenDetector) and not plugin.is_formally_valid(
                        place[0]
                    ):
                        continue
                    start, stop = _secret_part(place)
                    if isinstance(plugin, PrivateKeyDetector):
                        body = KEY_BODY.match(text, stop)
                        stop = body.end() if body else stop
                    found.append(Match("secret", plugin.secret_type, start, stop, SCORE))
        return found


def _secret_part(place: re.Match[str]) -> tuple[int, int]:
    """Return the longest group of a match, which is the value of an assignment, or all of it.

    The library takes every group, and with it the `ghp` of a GitHub token alone.
    """
    spans = [place.span(number) for number in range(1, len(place.groups()) + 1)]
    start, stop = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
    return (start, stop) if stop - start >= SHORTEST_VALUE else place.span()
