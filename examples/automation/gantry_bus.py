"""A client of the Gantry API in Python's standard library alone.

It speaks the NATS protocol over a socket (INFO, CONNECT, PUB/HPUB, SUB, MSG/HMSG,
PING/PONG; https://docs.nats.io/reference/reference-protocols/nats-protocol), and
proves who it is with an nkey, which is an Ed25519 key (RFC 8032) in base32.
"""

import base64
import hashlib
import json
import os
import secrets
import socket
import ssl
import urllib.parse

# --- Ed25519 signatures (RFC 8032, section 5.1), which the library has not ---

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_BASE_Y = 4 * pow(5, _P - 2, _P) % _P


def _recover_x(y, sign):
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    return _P - x if x % 2 != sign else x


_BASE_X = _recover_x(_BASE_Y, 0)
_BASE = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def _add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _multiply(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _encode(point):
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


class Key:
    """The key of a user, from the seed in a credentials file ("SU...")."""

    def __init__(self, seed):
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        # Two bytes that say what it is, 32 of the key, two of a checksum.
        digest = hashlib.sha512(raw[2:34]).digest()
        self._scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
        self._prefix = digest[32:]
        self._public = _encode(_multiply(self._scalar, _BASE))

    def public(self):
        """The public half as an nkey ("U...")."""
        body = bytes([20 << 3]) + self._public
        crc = 0  # CRC-16/XMODEM
        for byte in body:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
        return base64.b32encode(body + crc.to_bytes(2, "little")).decode().rstrip("=")

    def sign(self, message):
        def number(data):
            return int.from_bytes(hashlib.sha512(data).digest(), "little") % _L

        r = number(self._prefix + message)
        point = _encode(_multiply(r, _BASE))
        s = (r + number(point + self._public + message) * self._scalar) % _L
        return point + s.to_bytes(32, "little")


# --- NATS ---


class Refused(Exception):
    """What the API said no with; status is a Kubernetes Status."""

    def __init__(self, status):
        super().__init__(status.get("message", status))
        self.status = status


class Unanswered(Exception):
    """No answer came: of a write it is not known whether it took place."""


class Answer:
    """A body, and the headers by name (a list of values each)."""

    def __init__(self, body, headers):
        self.body = body
        self.headers = headers

    def header(self, name, default=None):
        return self.headers.get(name.lower(), [default])[0]

    def json(self):
        return json.loads(self.body)


class Bus:
    """A connection. It is used by one thread; requests follow one another."""

    def __init__(self, credentials, timeout=40):
        with open(credentials, encoding="utf-8") as file:
            given = json.load(file)
        self._prefix = given["prefix"] + "." if given.get("prefix") else ""
        url = urllib.parse.urlsplit(given["urls"][0])
        self._socket = socket.create_connection((url.hostname, url.port or 4222), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._input = self._socket.makefile("rb")
        info = json.loads(self._input.readline().split(b" ", 1)[1])
        if given.get("ca") or url.scheme == "tls" or info.get("tls_required"):
            context = ssl.create_default_context(cadata=given.get("ca") or None)
            self._socket = context.wrap_socket(self._socket, server_hostname=url.hostname)
            self._input = self._socket.makefile("rb")
        key = Key(given["seed"])
        signature = base64.urlsafe_b64encode(key.sign(info["nonce"].encode())).decode().rstrip("=")
        self._inbox = "_INBOX." + secrets.token_hex(16)
        self._next = 0
        hello = {
            "nkey": key.public(), "sig": signature, "headers": True, "no_responders": True,
            "verbose": False, "pedantic": False, "lang": "python", "version": "1", "name": "automate.py",
        }
        self._send(b"CONNECT " + json.dumps(hello).encode() + b"\r\nSUB " + self._inbox.encode() + b".* 1\r\nPING\r\n")
        while self._line() != b"PONG":
            pass

    def close(self):
        self._input.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _send(self, data):
        self._socket.sendall(data)

    def _line(self):
        """The next line that is not the server's asking whether we live."""
        while True:
            line = self._input.readline()
            if not line:
                raise ConnectionError("the server closed the connection")
            line = line.rstrip(b"\r\n")
            if line == b"PING":
                self._send(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise ConnectionError(line.decode())
            elif not line.startswith((b"INFO", b"+OK")):
                return line

    def request(self, subject, body=b"", headers=None):
        """Ask on a subject and wait for the one answer."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self._next += 1
        reply = f"{self._inbox}.{self._next}"
        subject = self._prefix + subject
        if headers:
            head = b"NATS/1.0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in headers.items()) + b"\r\n"
            self._send(f"HPUB {subject} {reply} {len(head)} {len(head) + len(body)}\r\n".encode() + head + body + b"\r\n")
        else:
            self._send(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")
        try:
            return self._answer(reply)
        except TimeoutError:
            raise Unanswered(f"{subject}: no answer in time") from None

    def _answer(self, reply):
        while True:
            words = self._line().split()
            if words[0] not in (b"MSG", b"HMSG"):
                continue
            total = int(words[-1])
            data = self._input.read(total + 2)[:total]
            headers = {}
            if words[0] == b"HMSG":
                size = int(words[-2])
                head, data = data[:size].decode(), data[size:]
                lines = head.split("\r\n")
                if " 503" in lines[0]:
                    raise Unanswered("nobody listens: does the control plane run?")
                for line in lines[1:]:
                    if line:
                        name, value = line.split(":", 1)
                        headers.setdefault(name.strip().lower(), []).append(value.strip())
            if words[1].decode() != reply:
                continue  # the late answer to a request that was given up
            if "nats-service-error" in headers:
                raise Refused(json.loads(data))
            return Answer(data, headers)

    # --- the API ---

    def call(self, verb, resource, namespace="", name="", body=b"", headers=None):
        """One call: api.<verb>.<resource>.<namespace or _>[.<name>]."""
        subject = f"api.{verb}.{resource}.{namespace or '_'}"
        return self.request(subject + ("." + escape(name) if name else ""), body, headers)

    def watch(self, resource, namespace, revision, **options):
        """Yield (type, object) for what happens after a revision, without end."""
        while True:
            answer = self.call("watch", resource, namespace, body={"resourceVersion": revision, "timeoutSeconds": 20, **options}).json()
            for event in answer["items"]:
                yield event["type"], event["object"]
            revision = answer["resourceVersion"]

    def log(self, namespace, pod, container="", lines=None):
        """The lines of a container's log up to now."""
        asked = {"container": container}
        if lines is not None:
            asked["tailLines"] = lines
        return self.call("log", "pods", namespace, pod, asked).body

    def exec(self, namespace, pod, command, container="", stdin=None):
        """Run a command; returns (exit code, stdout, stderr)."""
        session = secrets.token_hex(16)
        self.call("exec", "pods", namespace, pod, {"session": session, "container": container, "command": command, "stdin": stdin is not None})
        sent = 0
        while stdin is not None and (sent < len(stdin) or sent == 0):
            piece = stdin[sent : sent + 65536]
            last = sent + len(piece) == len(stdin)
            answer = self.call("send", "pods", namespace, pod, piece, {
                "Gantry-Session": session, "Gantry-Offset": sent, "Gantry-Last": str(last).lower()})
            sent = int(answer.header("Gantry-Offset"))
            if last and sent == len(stdin):
                break
        output = {"stdout": b"", "stderr": b"", "error": b""}
        cursor = "0"
        while True:
            answer = self.call("recv", "pods", namespace, pod, b"", {
                "Gantry-Session": session, "Gantry-Cursor": cursor, "Gantry-Wait": 20})
            output[answer.header("Gantry-Channel", "stdout")] += answer.body
            cursor = answer.header("Gantry-Cursor", cursor)
            if answer.header("Gantry-Eof") == "true":
                if output["error"]:
                    raise RuntimeError(output["error"].decode())
                return int(answer.header("Gantry-Exit-Code", -1)), output["stdout"], output["stderr"]


def escape(name):
    """A name as one part of a subject: what it cannot hold is written =XX."""
    safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    out = ""
    for i, char in enumerate(name):
        inner_dot = char == "." and 0 < i < len(name) - 1 and name[i - 1] != "."
        out += char if char in safe or inner_dot else "".join(f"={b:02X}" for b in char.encode())
    return out


def credentials():
    """The credentials file to use, found as gantry does."""
    if os.environ.get("GANTRY_CREDENTIALS"):
        return os.environ["GANTRY_CREDENTIALS"]
    own = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "gantry", "credentials.json")
    return own if os.path.exists(own) else "/var/lib/gantry/controlplane/credentials/admin.json"
