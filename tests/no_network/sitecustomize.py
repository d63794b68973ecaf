"""Refuse and record every look-up and connection that leaves this machine.

Python imports this file at start-up when its folder is on PYTHONPATH, kernels and their children included. Each attempt
becomes a line in the file that DEPLOYKIT_TEST_NETWORK_LOG names.
"""

import ipaddress
import os
import sys
from urllib.parse import urlsplit

LOG = os.environ.get("DEPLOYKIT_TEST_NETWORK_LOG")
LOCAL_NAMES = {"", "localhost", "ip6-localhost", "None"}


def target(event, arguments):
    """Return the host or URL that an audit event is about; None if the event is about something else."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        return str(address[0]) if isinstance(address, tuple) else ""  # an AF_UNIX address is a path
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
        return host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    return str(arguments[0]) if event == "urllib.Request" else None


def is_local(host):
    """Say whether a host is this machine; a URL is local when its host is, or its scheme needs none."""
    if host in LOCAL_NAMES or host.startswith(("file:", "data:")):
        return True
    if host.startswith(("http:", "https:")):
        return is_local(urlsplit(host).hostname or "")  # behind a proxy, the connection to it is seen
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def refuse(event, arguments):
    """Let nothing but this machine be reached; an audit hook stops what it hears of by raising."""
    host = target(event, arguments)
    if host is None or is_local(host):
        return
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(log, f"{event} {host}\n".encode())
    os.close(log)
    raise ConnectionRefusedError(f"a test forbids the network: {event} {host}")


if LOG:
    sys.addaudithook(refuse)
