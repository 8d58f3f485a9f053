"""A reporter that ends a training half-way."""

from pressoir.reporting import LogReporter


class StoppedError(Exception):
    pass


class StopsAt(LogReporter):
    """Ends a training, of those whose title has `part`, at a step, as a kill would."""

    def __init__(self, step, part=""):
        super().__init__()
        self.step, self.part, self.messages, self.metrics = step, part, [], []

    def progress(self, done, total, what):
        if self.part in what and done == self.step:
            raise StoppedError

    def metric(self, name, value, step=None):
        self.metrics.append((name, value, step))

    def message(self, text):
        self.messages.append(text)
