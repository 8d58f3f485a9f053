"""Every error a user can cause, as one small tree.

::

    PressoirError
    ├── RecipeError       a recipe or a command-line option is wrong (all mistakes at once)
    ├── SourceError       a model, tokenizer or data set cannot be found, read or trusted
    ├── DataError         a data file has a malformed row, a missing column, an unknown label
    ├── StoreError        PRESSOIR_HOME cannot be written, is full, or holds a damaged artifact
    ├── ShardError        a shard is missing, truncated, altered or has an unsafe name
    ├── ParityError       an exported graph does not compute what its checkpoint computes
    ├── MergeError        models that cannot be merged as asked (all findings at once)
    ├── QuantizationError a weight or a model that cannot be stored in that many bits
    ├── RegistryError     the model registry is not valid, or lacks an id
    ├── ExtensionError    a task, stage, algorithm or architecture that nothing declares rightly
    └── ServingError      a request that a server refuses or cannot answer (see `pressoir.serving.errors`)

A message says what is wrong, where (file, field, line), and what to change. The command line prints it and
exits with code 2.
"""


class PressoirError(Exception):
    """The base of all errors that a message can help with."""

    def __str__(self) -> str:
        """The message, fit for a terminal, a log and a response: half a surrogate pair is escaped."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class RecipeError(PressoirError):
    """A recipe, or an option, that cannot be run as written."""


class SourceError(PressoirError):
    """A model or data source that cannot be found, read or trusted."""


class DataError(PressoirError):
    """A malformed data file."""


class StoreError(PressoirError):
    """The artifact store cannot be used."""


class ShardError(PressoirError):
    """A shard that must not be loaded."""


class ParityError(PressoirError):
    """An exported graph that departs from its checkpoint."""


class MergeError(PressoirError):
    """Models that cannot be merged as asked."""


class QuantizationError(PressoirError):
    """A weight or a model that cannot be quantised as asked, or a quantised one that is damaged."""


class RegistryError(PressoirError):
    """The registry file, or an id in it, is wrong."""


class ExtensionError(PressoirError):
    """A name that nothing declares, or a package whose declaration cannot be used."""


class UnreachableError(SourceError):
    """The hub or a server did not answer; the only source error that trying again can cure."""
