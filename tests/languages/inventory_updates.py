"""Somebody's script, which knows of no bus: `inventory_updates.py send 4711`, and `inventory_updates.py receive`."""

from __future__ import annotations

import os
import sys

import pika


QUEUE = "inventory_updates"
BROKER = pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/"))


def send(order_number: str) -> None:
    with pika.BlockingConnection(BROKER) as connection:
        channel = connection.channel()
        channel.queue_declare(queue=QUEUE, durable=True)
        channel.basic_publish(exchange="", routing_key=QUEUE, body=order_number)
        print(f"sent {order_number}")


def receive() -> None:
    with pika.BlockingConnection(BROKER) as connection:
        channel = connection.channel()
        channel.queue_declare(queue=QUEUE, durable=True)
        for method, _, body in channel.consume(QUEUE):
            print(f"received {body.decode()}", flush=True)
            channel.basic_ack(method.delivery_tag)


if __name__ == "__main__":
    send(sys.argv[2]) if sys.argv[1] == "send" else receive()
