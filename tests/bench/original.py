#!/usr/bin/python3
"""What the Python original does for each request, by the libraries it uses: prints nanoseconds to open a session,
nanoseconds to seal one, and the length of its cookie's value."""

import statistics
import time

import jwt
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric import rsa

TURNS, REPEATS = 20, 50
ACCESS, REFRESH = "0a1b2c3d" * 8, "4e5f6071" * 8

private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
public = private.public_key()
fernet = Fernet(Fernet.generate_key())


def seal() -> str:
    claims = {
        "gitlab": fernet.encrypt(ACCESS.encode()).decode(),
        "refresh": fernet.encrypt(REFRESH.encode()).decode(),
        "target": "tuebingen",
    }
    return jwt.encode(claims, private, algorithm="RS256")


def open_(value: str) -> None:
    claims = jwt.decode(value, public, algorithms=["RS256"])
    assert fernet.decrypt(claims["gitlab"].encode()).decode() == ACCESS
    assert fernet.decrypt(claims["refresh"].encode()).decode() == REFRESH


def nanoseconds(work) -> float:
    def turn() -> float:
        started = time.perf_counter_ns()
        for _ in range(REPEATS):
            work()
        return (time.perf_counter_ns() - started) / REPEATS

    return statistics.median(turn() for _ in range(TURNS))


sealed = seal()
print(nanoseconds(lambda: open_(sealed)), nanoseconds(seal), len(sealed))
