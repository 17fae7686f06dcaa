"""The one multiplication on the curve P-256, against published results."""

from __future__ import annotations

import base64

import pytest

from reportsvc.registry import vapid

#: The curve's B, of FIPS 186-5; the module has no need of it.
B = 0x5AC635D8_AA3A93E7_B3EBBD55_769886BC_651D06B0_CC53B0F6_3BCE3C3E_27D2604B


def coordinates(private_key: str) -> tuple[int, int]:
    """The point of a private key, read back from what browsers are given."""
    point = base64.urlsafe_b64decode(vapid.public_key(private_key) + "=")
    assert (len(point), point[0]) == (65, 4)
    return int.from_bytes(point[1:33]), int.from_bytes(point[33:])


@pytest.mark.parametrize("private_key, x, y", [
    # The generating point itself, and its double.
    (f"{1:064x}", "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
     "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"),
    (f"{2:064x}", "7cf27b188d034f7e8a52380304b51ac3c08969e277f21b35a60b48fc47669978",
     "07775510db8ed040293d9ac69f7430dbba7dade63ce982299e04b79d227873d1"),
    # RFC 6979, A.2.5
    ("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
     "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6",
     "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"),
    # The largest: minus the generating point.
    (f"{vapid.ORDER - 1:064x}", "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
     f"{vapid.PRIME - 0x4FE342E2_FE1A7F9B_8EE7EB4A_7C0F9E16_2BCE3357_6B315ECE_CBB64068_37BF51F5:064x}"),
])
def test_known_points(private_key: str, x: str, y: str) -> None:
    """A private key has the public key that the standards print beside it."""

    assert coordinates(private_key) == (int(x, 16), int(y, 16))


def test_new_keys_are_on_the_curve_and_differ() -> None:
    """A new private key is 64 hexadecimal digits, within the order of the curve, and its public key is on the curve."""

    keys = [vapid.make_private_key() for _ in range(10)]

    assert len(set(keys)) == 10
    for key in keys:
        x, y = coordinates(key)
        assert (len(key), 0 < int(key, 16) < vapid.ORDER) == (64, True)
        assert (y * y - (x ** 3 - 3 * x + B)) % vapid.PRIME == 0


def test_private_key_for_sending_libraries() -> None:
    """The private key is handed to its owner as 32 bytes in base64url, leading zeros kept."""

    assert vapid.shareable(f"{1:064x}") == base64.urlsafe_b64encode(bytes(31) + b"\x01").rstrip(b"=").decode()


def test_infinity_is_no_key() -> None:
    """The point at infinity, which no key may have, is where the multiples of the order lie."""

    with pytest.raises(ValueError, match="not between 0 and the order"):
        vapid.public_key(f"{vapid.ORDER:064x}")
