"""Every error that this package raises on purpose.

    PunieError                  exit code 1: something went wrong while working
    ├── InputError              exit code 2: what was given cannot be used
    │   ├── ModelError          a model directory, adapter or tokenizer
    │   ├── DataError           rows, suites and other data files
    │   ├── ConfigError         options, recipes and their combinations
    │   ├── OutputError         the output exists already, or cannot be written
    │   ├── DiskError           not enough free disk for the output
    │   ├── PortError           the address or port cannot be bound
    │   └── HubError            the model hub cannot be reached or has no such model
    ├── ServerError             the server process died or did not answer
    ├── FingerprintError        exit code 3: the server serves another model than the one asked for
    └── StoppedError            exit code 130 or 143: Ctrl-C or SIGTERM; what was done is saved

A message says what is wrong, where (file and line), and what to do next.
"""


class PunieError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(PunieError):
    exit_code = 2


class ModelError(InputError):
    pass


class DataError(InputError):
    pass


class ConfigError(InputError):
    pass


class OutputError(InputError):
    pass


class DiskError(InputError):
    pass


class PortError(InputError):
    pass


class HubError(InputError):
    pass


class ServerError(PunieError):
    pass


class FingerprintError(PunieError):
    exit_code = 3


class StoppedError(PunieError):
    """Stopped by a signal, of which the exit code tells, as a shell has it."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
