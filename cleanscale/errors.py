"""What can go wrong for a user. Every message says what was found, what was expected and what to do."""


class CleanscaleError(Exception):
    """A user's error: shown as one readable message without a traceback, exit status 2."""

    exit_status = 2


class ConfigError(CleanscaleError):
    """A setting that cannot be used."""


class DataError(CleanscaleError):
    """A file, column or place that cannot be read as what the settings say it is."""


class StageError(CleanscaleError):
    """A stage whose inputs cannot give what it is asked for."""
