"""Middleware: one file each. A middleware is a function of a handler and a process, called once per handler."""
