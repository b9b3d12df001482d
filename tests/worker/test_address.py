"""How the hosts of a job find each other."""

import socket

import pytest

from shared.settings import Settings, SettingsError, from_environment
from worker.address import address_towards, interface_of, meeting_address, own_address, own_interface

ROUTABLE = "192.0.2.7"  # RFC 5737: of no real host


def settings(**fields: object) -> Settings:
    return Settings.model_validate({"broker_url": "redis://127.0.0.1:6379/0", **fields})


def test_the_address_is_the_one_by_which_the_broker_is_reached() -> None:
    assert own_address(settings()) == "127.0.0.1"
    assert own_address(settings(broker_url=f"redis://user:secret@{ROUTABLE}:6379/0")) == address_towards(ROUTABLE)
    assert own_address(settings(broker_url="redis://no-such-host.invalid:1/0")) == "127.0.0.1"


def test_a_setting_overrides_it() -> None:
    assert own_address(settings(address="10.9.8.7")) == "10.9.8.7"


def test_an_address_with_a_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHCAST_ADDRESS", "10.0.0.1 10.0.0.2")
    with pytest.raises(SettingsError, match="EPOCHCAST_ADDRESS"):
        from_environment()


def test_a_first_host_with_the_broker_on_its_loopback_is_still_reached_by_the_others() -> None:
    assert meeting_address(settings(), "127.0.0.1", ["127.0.0.1"]) == "127.0.0.1"
    assert meeting_address(settings(), "127.0.0.1", [ROUTABLE]) == address_towards(ROUTABLE)
    assert meeting_address(settings(address="10.9.8.7"), "10.9.8.7", [ROUTABLE]) == "10.9.8.7"


def test_a_host_with_the_broker_on_its_loopback_meets_the_others_on_its_network() -> None:
    assert own_interface(settings(), "127.0.0.1") == "lo"
    assert own_interface(settings(), ROUTABLE) == interface_of(address_towards(ROUTABLE))


def test_gloo_is_told_the_interface_that_has_the_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
    assert interface_of(address_towards(ROUTABLE)) in {name for _, name in socket.if_nameindex()}
