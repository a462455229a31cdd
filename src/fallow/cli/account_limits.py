"""`--account-limit`: what the jobs of one account may have of the pool at once."""

from __future__ import annotations

from collections.abc import Sequence

from fallow.model.errors import SettingError
from fallow.model.job import AccountLimits, is_account

_FORM = "expected ACCOUNT:jobs=N,slots=N, such as team-a:jobs=20 or '*:slots=64' (every account that is not named)"


def account_limits(texts: Sequence[str]) -> dict[str, AccountLimits]:
    """By account. Raises SettingError in words."""
    found: dict[str, AccountLimits] = {}
    for text in texts:
        account, _, words = text.rpartition(":")
        if account != "*" and not is_account(account):
            raise SettingError(f"--account-limit {text!r}: {_FORM}.")
        if account in found:
            raise SettingError(f"--account-limit {text!r}: {account!r} has its limits already.")
        values: dict[str, int] = {}
        for word in words.split(","):
            name, _, number = word.partition("=")
            if name not in ("jobs", "slots") or name in values or not number.isdecimal() or not int(number):
                raise SettingError(f"--account-limit {text!r}: {word!r} is no limit; {_FORM}.")
            values[name] = int(number)
        found[account] = AccountLimits(**values)
    return found
