"""The errors a caller can meet, one small hierarchy under `DashInferError`."""


class DashInferError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelError(DashInferError, ValueError):
    """A model folder cannot be used: a file, weight, option or tokenizer is missing, broken or not supported."""


class RequestError(DashInferError, ValueError):
    """A request cannot be served as asked: a parameter, prompt or conversation is wrong."""


class DeviceError(DashInferError):
    """A device is missing, cannot run what is asked, or failed while running."""


class CapacityError(DashInferError):
    """There is no room: the queue is full, or the memory limit can never hold what is asked."""


class CancelledError(DashInferError):
    """The request was cancelled before it finished."""
