"""What /v1/models says of many names."""

import gc
from time import thread_time

from axiond.gateway.listing import list_models, show_model
from tests.fakes.rulings import manifest, table


def test_thousands_of_routes_are_listed_at_once() -> None:
    """As many are checked in seconds at plan time; here the loop waits."""
    many = table(manifest(*({"name": f"r{number}", "models": ["a"]} for number in range(2000))))
    gc.collect()
    gc.disable()  # what other tests have left is not to be gone through meanwhile
    try:
        began_s = thread_time()
        listed = list_models(many)["data"]
        took_s = thread_time() - began_s
    finally:
        gc.enable()
    assert took_s < 0.2
    assert [entry["id"] for entry in listed[-3:]] == ["r1998", "r1999", "auto"]
    assert [entry["axiond"]["kind"] for entry in listed[-2:]] == ["route", "auto"]
    assert show_model(many, "r1999") in listed
