"""The frequent commands of rabbitmqctl in Erlang, since that program takes a second of processor time to start.

Words that are not known here are left to rabbitmqctl itself.
"""

from __future__ import annotations

import re


_LIKE = 'lists:flatten(io_lib:format("~0p", [begin {} end])).\n'
_DONE = re.compile(r'\{ok, (?:"(.*)"|\[\])\}\s*', re.DOTALL)


def expression(words: tuple[str, ...]) -> str | None:
    """Return what a node has to evaluate for a command, None where only rabbitmqctl knows it."""
    match words:
        case ("eval", code):
            return code.strip().removesuffix(".")
        case ("await_startup", "--timeout", seconds):
            return f"rabbit:await_startup({seconds}000)"
        case ("add_user", user, password):
            return _call("rabbit_auth_backend_internal:add_user", user, password, "tests")
        case ("change_password", user, password):
            return _call("rabbit_auth_backend_internal:change_password", user, password, "tests")
        case ("set_permissions", "-p", vhost, user, configure, write, read):
            return _call("rabbit_auth_backend_internal:set_permissions", user, vhost, configure, write, read, "tests")
        case ("close_all_connections", "-p" | "--vhost", vhost, reason):
            tracked = _call("rabbit_connection_tracking:list", vhost)
            return f'rabbit_connection_tracking:close_connections({tracked}, "{reason}", 0)'
        case ("stop_app",):
            return "rabbit:stop()"
        case ("start_app",):
            return "rabbit:start()"
        case ("set_vm_memory_high_watermark", share):
            return f"vm_memory_monitor:set_vm_memory_high_watermark({share})"
        case _:
            return None


def question(code: str) -> str:
    """Return what `erl_call -e` has to read so that it prints the value as one line."""
    return _LIKE.format(code)


def answer(printed: str) -> str | None:
    """Return the value of what `erl_call` printed, None where the evaluation failed."""
    done = _DONE.fullmatch(printed)
    return None if done is None else (done[1] or "").replace('\\"', '"').replace("\\\\", "\\")


def _call(function: str, *texts: str) -> str:
    return f"{function}({', '.join(map(_binary, texts))})"


def _binary(text: str) -> str:
    escaped = "".join(letter if letter.isalnum() and letter.isascii() else f"\\x{{{ord(letter):x}}}" for letter in text)
    return f'<<"{escaped}"/utf8>>'
