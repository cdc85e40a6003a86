"""Logs that nobody wrote, and a look into what a replay of them kept."""

import json
from datetime import datetime, timedelta

import duckdb

SECRET = "xylophone-4711"
START = datetime(2026, 3, 1, 8)


def traffic(path, days, a_day, start=0):
    """A log of so many days, chats and plain prompts in turn."""
    lines = []
    for number in range(start * a_day, days * a_day):
        day, turn = divmod(number, a_day)
        at = (START + timedelta(days=day, minutes=5 * turn)).isoformat() + "Z"
        if number % 2:
            asked = {"messages": [{"role": "user", "content": f"{SECRET} question {number}"}]}
        else:
            asked = {"prompt": f"{SECRET} beginning {number}"}
        lines.append(json.dumps({"timestamp": at, "body": {"model": "m", **asked}}))
    with path.open("a") as stream:
        stream.write("".join(f"{line}\n" for line in lines))
    return path


def rows(folder, query):
    with duckdb.connect(str(folder / "replay.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()
