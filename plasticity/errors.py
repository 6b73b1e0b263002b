"""Errors that tell a user what to change."""


class UserError(ValueError):
    """A mistake in what the user asked for: one clear line, no traceback needed to understand it."""


class TraceError(UserError):
    """A model whose hidden units cannot be found; the message names the module and the operation."""
