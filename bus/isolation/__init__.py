"""Processes of their own: a supervisor in one, and in each other one a worker for a group of services.

`supervisor` keeps the processes; `child` is one of them as the supervisor sees it; `supervised` is what that has of its
supervisor; `whole` answers for all of them.
"""
