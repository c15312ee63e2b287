"""The contract: each guarantee, by its number, on each transport that keeps it."""
