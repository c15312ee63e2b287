"""Tests: unit/ mirrors bus/, contract/ proves the guarantees on every transport, rabbitmq/ breaks a real broker."""
