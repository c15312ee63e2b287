"""Forks: what a child is rid of."""

from __future__ import annotations

import os
import socket

from bus.forks import in_child, let_go

from .forked import FORKS, forked


class Owner:
    """Whatever has something that a child must not have."""


@FORKS
def test_a_child_is_told_for_each_owner_that_lives() -> None:
    called: list[str] = []
    lives, died = Owner(), Owner()
    in_child(lives, lambda _: called.append("lives"))
    in_child(died, lambda _: called.append("died"))
    del died

    def check() -> None:
        assert called == ["lives"]

    with forked(check):
        assert called == []


@FORKS
def test_one_that_fails_keeps_no_other_from_its_own() -> None:
    called: list[str] = []
    fails, works = Owner(), Owner()

    def fail(_: Owner) -> None:
        raise OSError(24, "Too many open files")

    in_child(fails, fail)
    in_child(works, lambda _: called.append("works"))

    def check() -> None:
        assert called == ["works"]

    with forked(check):
        assert called == []


@FORKS
def test_what_a_child_let_go_ends_with_its_parent_and_its_number_is_not_given_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def check() -> None:
            let_go(ours.fileno())
            assert os.open(os.devnull, os.O_RDONLY) != ours.fileno()

        with forked(check):
            ours.sendall(b"the parent's")
            assert theirs.recv(100) == b"the parent's"
            ours.close()
            theirs.settimeout(20)
            assert theirs.recv(100) == b""
