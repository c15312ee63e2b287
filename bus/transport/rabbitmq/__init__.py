"""The RabbitMQ transport, 3.10 to 4.x, no plugins.

Two planes: aio-pika declares, browses and administers on short-lived connections; messages move on links of our own.

    address.py     BUS_URL taken apart            topology.py      names and declarations
    wire.py        frames as bytes                delay.py         the cascade behind delays
    link.py        one connection                 envelope.py      a message as headers, and back
    channel.py     one channel; acks.py           copies.py        retries, dead letters, replays
    supervisor.py  keeps a link alive             dead_letters.py  dead letters, as an operator has them
    publisher.py   confirmed publishing           consumer.py      feeds; delivery.py settles
    doubts.py      acks that may be lost          suspects.py      marks of what may kill workers

Dead letters are a stream of letters and marks for each service:

    stream.py      reads and stores               fold.py          what the entries come to; pure
    records.py     one entry, read                desk.py          one service's letters; claims and marks
    compaction.py  erases what is closed
"""

from .transport import RabbitMQTransport


__all__ = ["RabbitMQTransport"]
