"""The recipient: `service` is the flow, the twin of the device's `flow`; it knows no HTTP."""

from splitinfer.cloud.service import CloudService

__all__ = ["CloudService"]
