"""What /v1/models says of many names."""

from time import thread_time

from axiond.gateway.listing import list_models, show_model
from tests.fakes.rulings import manifest, table


def test_thousands_of_routes_are_listed_at_once() -> None:
    """As many are checked in seconds at plan time; here the loop waits."""
    many = table(manifest(*({"name": f"r{number}", "models": ["a"]} for number in range(2000))))
    began_s = thread_time()
    listed = list_models(many)["data"]
    assert thread_time() - began_s < 0.2
    assert [entry["id"] for entry in listed[-3:]] == ["r1998", "r1999", "auto"]
    assert [entry["axiond"]["kind"] for entry in listed[-2:]] == ["route", "auto"]
    assert show_model(many, "r1999") in listed
