#!/usr/bin/python3
"""Does what a service manager does with listening sockets.

    service_manager.py PLACE[=NAME] … -- COMMAND …

PLACE is unix:PATH or tcp:PORT. The sockets listen before the command starts, are passed to it as descriptors from 3 on,
and go on listening when it has ended. SIGUSR1 ends the command in good order and starts it again; SIGTERM ends both.
"""

import os
import signal
import socket
import sys


def listen(place):
    kind, where = place.split(":", 1)
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(where)
    else:
        sock = socket.socket(socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", int(where)))
    sock.listen(64)
    return sock


def start(sockets, names, command):
    child = os.fork()
    if child:
        return child
    # Out of the way first: a target may be the number of another.
    high = [os.dup2(sock.fileno(), 100 + index) for index, sock in enumerate(sockets)]
    for index, number in enumerate(high):
        os.dup2(number, 3 + index)
        os.set_inheritable(3 + index, True)
        os.close(number)
    os.environ["LISTEN_FDS"] = str(len(sockets))
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDNAMES"] = ":".join(names)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvp(command[0], command)


def main():
    split = sys.argv.index("--")
    places = [argument.partition("=") for argument in sys.argv[1:split]]
    command = sys.argv[split + 1 :]
    sockets = [listen(place) for place, _, _ in places]
    names = [name or "unknown" for _, _, name in places]
    wanted = [signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD]
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    print("listening", flush=True)
    child = start(sockets, names, command)
    while True:
        came = signal.sigwait(wanted)
        if came == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            sys.exit(os.waitstatus_to_exitcode(status))
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        if came == signal.SIGTERM or status:
            sys.exit(os.waitstatus_to_exitcode(status))
        child = start(sockets, names, command)


main()
